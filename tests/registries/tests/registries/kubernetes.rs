//! Kubernetes: a small API server, to which the real client connects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use serde_json::json;
use tokio::time::{Instant, sleep};
use tower_lb::discover::{AddressFamily, Found, Kubernetes, StartError};
use tower_lb_registries::{
    backends::Backends,
    kubernetes::{ApiServer, Mode, slice},
    program::until,
    traffic::no_request_is_lost,
};

fn ip(i: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, i], 80))
}

fn last_octets(found: &Found) -> BTreeSet<u8> {
    let targets = found.targets();
    let octet = |address: &SocketAddr| address.ip().to_string().rsplit('.').next()?.parse().ok();
    targets
        .iter()
        .filter_map(|target| octet(&target.address))
        .collect()
}

async fn until_found(found: &Found, expected: &[u8]) -> Duration {
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    until(&format!("{expected:?} are found"), || {
        last_octets(found) == expected
    })
    .await
}

#[tokio::test]
async fn slices_are_followed_as_they_change() {
    let api = ApiServer::start();
    // More than a page.
    for i in 0..8 {
        api.apply(&format!("users-{i}"), slice(&[ip(i)]));
    }
    let found = api.source().start().unwrap();
    let first = found.first(Duration::from_secs(10)).await.unwrap();
    assert_eq!(first.len(), 8, "a list is seen when it is complete");
    api.apply("users-8", slice(&[ip(8), ip(9)]));
    let took = until_found(&found, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).await;
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    api.delete("users-0");
    api.apply("users-8", slice(&[ip(9), ip(7)]));
    until_found(&found, &[1, 2, 3, 4, 5, 6, 7, 9]).await;
    assert_eq!(
        found.targets().len(),
        8,
        "7 is in two slices, and counts once"
    );
    assert!(!found.state().is_stale());
}

#[tokio::test]
async fn a_service_without_slices_is_empty_at_first() {
    let api = ApiServer::start();
    let found = api.source().start().unwrap();
    assert!(
        found
            .first(Duration::from_secs(10))
            .await
            .unwrap()
            .is_empty()
    );
    api.apply("users", slice(&[ip(1)]));
    until_found(&found, &[1]).await;
    // Then it is kept for half a minute.
    api.delete("users");
    until("the last set is kept", || found.state().is_keeping).await;
    assert_eq!(found.targets().len(), 1);
}

#[tokio::test]
async fn settings_choose_port_family_and_weight() {
    let api = ApiServer::start();
    let mut v4 = slice(&[ip(1)]);
    v4["ports"] = json!([{ "name": "http", "port": 80 }, { "name": "grpc", "port": 81 }]);
    v4["metadata"] = json!({ "annotations": { "example.com/weight": "3" } });
    let mut v6 = v4.clone();
    v6["addressType"] = "IPv6".into();
    v6["endpoints"] = json!([{ "addresses": ["2001:db8::1"], "zone": "eu-1a" }]);
    api.apply("v4", v4);
    api.apply("v6", v6);
    let grpc = api
        .source()
        .port("grpc")
        .weight_annotation("example.com/weight");
    let found = grpc.start().unwrap();
    let first = found.first(Duration::from_secs(10)).await.unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(
        (first[0].address, first[0].weight),
        (SocketAddr::from(([10, 0, 0, 1], 81)), 3)
    );
    let both = api
        .source()
        .port(80)
        .family(AddressFamily::Both)
        .start()
        .unwrap();
    assert_eq!(both.first(Duration::from_secs(10)).await.unwrap().len(), 2);
    let unclear = api.source().start().unwrap();
    let error = unclear.first(Duration::from_secs(1)).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("choose one of grpc (81), http (80)"),
        "{error}"
    );
}

/// A watch that breaks, or that is too old, is no failure.
#[tokio::test]
async fn disconnects_and_410_are_survived() {
    let mut api = ApiServer::start();
    api.apply("users", slice(&[ip(1)]));
    let found = api.source().start().unwrap();
    until_found(&found, &[1]).await;
    let lists = api.asked().0;
    sleep(Duration::from_secs(6)).await;
    api.break_connections().await;
    api.apply("users", slice(&[ip(2)]));
    until_found(&found, &[2]).await;
    assert_eq!(api.asked().0, lists, "the watch goes on from where it was");
    assert!(found.state().last_failure.is_none(), "{:?}", found.state());
    // While it is away, all is another: what it watched from is too old.
    sleep(Duration::from_secs(6)).await;
    api.replace_all(BTreeMap::from([("others".to_owned(), slice(&[ip(3)]))]));
    api.compact();
    api.break_connections().await;
    until_found(&found, &[3]).await;
    assert!(api.asked().0 > lists, "it was listed once more");
    assert!(!found.state().is_stale());
    // Once more, so soon that it counts as a failure. It is well again.
    api.compact();
    api.break_connections().await;
    api.apply("others", slice(&[ip(4)]));
    until_found(&found, &[4]).await;
    until("it is well again", || !found.state().is_stale()).await;
}

#[tokio::test]
async fn pieces_may_end_anywhere() {
    let api = ApiServer::start();
    api.set_mode(Mode::InPieces);
    for i in 0..5 {
        api.apply(&format!("users-{i}"), slice(&[ip(i)]));
    }
    let found = api.source().start().unwrap();
    until_found(&found, &[0, 1, 2, 3, 4]).await;
    for i in 5..9 {
        api.apply(&format!("users-{i}"), slice(&[ip(i)]));
    }
    until_found(&found, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).await;
}

/// The set stays until a list is complete.
#[tokio::test]
async fn a_list_that_breaks_is_never_seen() {
    let mut api = ApiServer::start();
    for i in 0..8 {
        api.apply(&format!("users-{i}"), slice(&[ip(i)]));
    }
    let found = api.source().start().unwrap();
    until_found(&found, &[0, 1, 2, 3, 4, 5, 6, 7]).await;
    let mut sets = found.subscribe();
    sets.mark_unchanged();
    api.set_mode(Mode::BreaksLists);
    api.compact();
    api.break_connections().await;
    until("the lists fail", || found.state().is_failing).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!sets.has_changed().unwrap(), "another set was seen");
    api.set_mode(Mode::Well);
    until("it is well again", || !found.state().is_failing).await;
    assert!(!sets.has_changed().unwrap());
}

#[tokio::test]
async fn an_api_server_that_is_away_for_long_is_survived() {
    let mut api = ApiServer::start();
    api.apply("users", slice(&[ip(1)]));
    let found = api.source().start().unwrap();
    until_found(&found, &[1]).await;
    api.stop().await;
    until("the source fails", || found.state().is_failing).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(last_octets(&found), BTreeSet::from([1]));
    api.apply("users", slice(&[ip(2)]));
    api.restart();
    until_found(&found, &[2]).await;
    until("it is well again", || !found.state().is_stale()).await;
}

#[tokio::test]
async fn bad_answers_are_failures_and_keep_the_set() {
    for mode in [Mode::Hangs, Mode::Garbage, Mode::Fails] {
        let mut api = ApiServer::start();
        api.apply("users", slice(&[ip(1)]));
        let found = api.source().start().unwrap();
        until_found(&found, &[1]).await;
        api.set_mode(mode);
        api.compact();
        api.break_connections().await;
        if mode != Mode::Hangs {
            until(&format!("{mode:?}"), || found.state().is_failing).await;
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!(last_octets(&found), BTreeSet::from([1]));
        api.set_mode(Mode::Well);
        api.break_connections().await;
        api.apply("users", slice(&[ip(2)]));
        until_found(&found, &[2]).await;
    }
}

#[tokio::test]
async fn tokens_rotate() {
    let mut api = ApiServer::start();
    api.apply("users", slice(&[ip(1)]));
    let found = api.source().start().unwrap();
    until_found(&found, &[1]).await;
    api.rotate_token("second-token");
    api.break_connections().await;
    api.apply("users", slice(&[ip(2)]));
    until_found(&found, &[2]).await;
    let state = format!("{:?}", found.state());
    assert!(
        !state.contains("first-token") && !state.contains("second-token"),
        "{state}"
    );
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let error = |source: Kubernetes| match source.start() {
        Err(error @ StartError::BadSetting { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error(Kubernetes::new("")),
        "kubernetes : the name of the service is none"
    );
    let bad = Kubernetes::new("users").namespace("A shop");
    assert_eq!(
        error(bad),
        "kubernetes A shop/users: the name of the namespace is none"
    );
    assert_eq!(
        error(Kubernetes::new("users").port(0)),
        "kubernetes users:0: the port is 0"
    );
    let nowhere = Kubernetes::new("users")
        .kubeconfig("/nowhere/config")
        .start()
        .unwrap();
    let start = Instant::now();
    let error = nowhere
        .first(Duration::from_secs(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nowhere/config"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_slices_change() {
    let mut api = ApiServer::start();
    let mut backends = Backends::start(4).await;
    let found = api.source().start().unwrap();
    no_request_is_lost(&mut api, &mut backends, &found).await;
}
