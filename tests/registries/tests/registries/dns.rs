//! DNS: knot, and a responder that misbehaves.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower_lb::{
    Target,
    discover::{AddressFamily, Dns, Found, StartError, WhenEmpty},
};
use tower_lb_registries::{
    backends::Backends,
    dns::{Knot, KnotName, Responder, Says},
    program::until,
    traffic::no_request_is_lost,
};

fn addresses(found: &Found) -> BTreeSet<String> {
    let targets = found.targets();
    targets.iter().map(|t| t.address.to_string()).collect()
}

async fn until_found(found: &Found, expected: &[&str]) -> Duration {
    let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
    until(&format!("{expected:?} are found"), || {
        addresses(found) == expected
    })
    .await
}

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

#[tokio::test]
async fn names_gain_lose_and_swap_addresses() {
    let Some(knot) = Knot::start().await else {
        return;
    };
    knot.set("users.internal.", &["A 10.0.0.1", "AAAA 2001:db8::1"]);
    let dns = || Dns::new("users.internal.", 80).servers([knot.address()]);
    let found = dns().start().unwrap();
    let v4 = dns().family(AddressFamily::V4).start().unwrap();
    let v6 = dns().family(AddressFamily::V6).start().unwrap();
    let prefers_v6 = dns().family(AddressFamily::PreferV6).start().unwrap();
    until_found(&found, &["10.0.0.1:80", "[2001:db8::1]:80"]).await;
    until_found(&v4, &["10.0.0.1:80"]).await;
    until_found(&v6, &["[2001:db8::1]:80"]).await;
    until_found(&prefers_v6, &["[2001:db8::1]:80"]).await;
    // It gains one, and loses its only one of the other family.
    knot.set("users.internal.", &["A 10.0.0.1", "A 10.0.0.2"]);
    let took = until_found(&found, &["10.0.0.1:80", "10.0.0.2:80"]).await;
    assert!(
        took < Duration::from_secs(5),
        "the TTL is 1 s, it took {took:?}"
    );
    until_found(&prefers_v6, &["10.0.0.1:80", "10.0.0.2:80"]).await;
    assert_eq!(
        addresses(&v6).len(),
        1,
        "no data is an empty answer, and the set is kept"
    );
    // It swaps all.
    knot.set("users.internal.", &["A 10.0.0.3", "A 10.0.0.4"]);
    until_found(&found, &["10.0.0.3:80", "10.0.0.4:80"]).await;
    // It is gone.
    knot.set::<&str>("users.internal.", &[]);
    until("nothing is found, and kept", || found.state().is_keeping).await;
    assert_eq!(addresses(&found).len(), 2);
    assert!(!found.state().is_failing, "no such name is an answer");
}

#[tokio::test]
async fn srv_records_have_weights_priorities_and_names() {
    let Some(knot) = Knot::start().await else {
        return;
    };
    knot.set("a.internal.", &["A 10.0.0.1"]);
    knot.set("b.internal.", &["A 10.0.0.2"]);
    let name = "_users._tcp.internal.";
    knot.set(
        name,
        &[
            "SRV 0 0 80 a.internal.",
            "SRV 0 5 81 b.internal.",
            "SRV 65535 7 82 a.internal.",
        ],
    );
    let found = Dns::srv(name).servers([knot.address()]).start().unwrap();
    let mut targets = found.first(Duration::from_secs(10)).await.unwrap().to_vec();
    targets.sort_by_key(|target| target.address);
    let target = |address: &str, weight, priority, key: &str| {
        let target = Target::new(address.parse::<SocketAddr>().unwrap());
        target.weight(weight).priority(priority).hash_key(key)
    };
    let expected = [
        target("10.0.0.1:80", 1, 0, "a.internal:80"),
        target("10.0.0.1:82", 7, 65_535, "a.internal:82"),
        target("10.0.0.2:81", 50, 0, "b.internal:81"),
    ];
    assert_eq!(targets, expected);
    // A name moves to another address, and keeps its key.
    knot.set("a.internal.", &["A 10.0.0.9"]);
    until_found(&found, &["10.0.0.9:80", "10.0.0.9:82", "10.0.0.2:81"]).await;
    let moved = found.targets();
    let moved = moved
        .iter()
        .find(|t| t.address.to_string() == "10.0.0.9:80");
    assert_eq!(moved.unwrap().hash_key.as_deref(), Some("a.internal:80"));
    // A name that does not exist takes nothing from the others.
    knot.set(
        name,
        &["SRV 0 1 80 none.internal.", "SRV 0 1 81 b.internal."],
    );
    until_found(&found, &["10.0.0.2:81"]).await;
    // The root: the service is not to be had here.
    let nothing = Dns::srv("_nothing._tcp.internal.").servers([knot.address()]);
    knot.set("_nothing._tcp.internal.", &["SRV 0 0 0 ."]);
    let nothing = nothing.start().unwrap();
    let first = nothing.first(Duration::from_secs(10)).await.unwrap();
    assert!(first.is_empty());
}

#[tokio::test]
async fn a_server_that_stops_keeps_the_set_and_is_heard_when_it_is_back() {
    let Some(mut knot) = Knot::start().await else {
        return;
    };
    knot.set("users.internal.", &["A 10.0.0.1"]);
    let dns = Dns::new("users.internal.", 80).servers([knot.address()]);
    let found = dns.start().unwrap();
    until_found(&found, &["10.0.0.1:80"]).await;
    knot.stop().await;
    until("the source fails", || found.state().is_failing).await;
    assert_eq!(addresses(&found).len(), 1);
    knot.restart().await;
    knot.set("users.internal.", &["A 10.0.0.2"]);
    until_found(&found, &["10.0.0.2:80"]).await;
    assert!(!found.state().is_stale());
}

/// Servers that answer badly don't change what is known.
#[tokio::test]
async fn bad_answers_are_failures_and_keep_the_set() {
    let says = [
        Says::Error(2),
        Says::Error(5),
        Says::Garbage,
        Says::Nothing,
        Says::Another(vec![B]),
    ];
    for says in says {
        let responder = Responder::start(Says::Addresses(vec![A], 1)).await;
        let dns = Dns::new("users.internal.", 80).servers([responder.address()]);
        let found = dns.start().unwrap();
        until_found(&found, &["10.0.0.1:80"]).await;
        responder.say(says.clone());
        until(&format!("{says:?} is a failure"), || {
            found.state().is_failing
        })
        .await;
        assert_eq!(
            addresses(&found),
            BTreeSet::from(["10.0.0.1:80".into()]),
            "{says:?}"
        );
        let error = found.state().last_failure.unwrap().error;
        assert!(
            error.contains("users.internal") || error.contains("10s"),
            "{says:?}: {error}"
        );
        responder.say(Says::Late(vec![B]));
        until_found(&found, &["10.0.0.2:80"]).await;
    }
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp() {
    let many: Vec<_> = (0..200).map(|i| Ipv4Addr::new(10, 0, 1, i)).collect();
    let responder = Responder::start(Says::Long(many)).await;
    let dns = Dns::new("users.internal.", 80).servers([responder.address()]);
    let found = dns.start().unwrap();
    assert_eq!(
        found.first(Duration::from_secs(10)).await.unwrap().len(),
        200
    );
}

/// Some servers have never heard of IPv6.
#[tokio::test]
async fn one_family_is_enough() {
    let responder = Responder::start(Says::OnlyV4(vec![A])).await;
    let dns = || Dns::new("users.internal.", 80).servers([responder.address()]);
    let found = dns().start().unwrap();
    until_found(&found, &["10.0.0.1:80"]).await;
    // But it is asked for again, and found.
    responder.say(Says::OnlyV4(vec![B]));
    until_found(&found, &["10.0.0.2:80"]).await;
    // What has failed may have had addresses.
    responder.say(Says::OnlyV4(Vec::new()));
    until("nothing and an error are an error", || {
        found.state().is_failing
    })
    .await;
    assert_eq!(addresses(&found).len(), 1);
}

#[tokio::test]
async fn nothing_there_is_an_empty_answer_that_is_believed_as_told() {
    let responder = Responder::start(Says::Error(3)).await;
    let dns = || Dns::new("users.internal.", 80).servers([responder.address()]);
    let found = dns().start().unwrap();
    assert!(
        found
            .first(Duration::from_secs(10))
            .await
            .unwrap()
            .is_empty()
    );
    responder.say(Says::Addresses(vec![A], 1));
    until_found(&found, &["10.0.0.1:80"]).await;
    let believes = dns().when_empty(WhenEmpty::Believe).start().unwrap();
    until_found(&believes, &["10.0.0.1:80"]).await;
    responder.say(Says::Addresses(Vec::new(), 1));
    until_found(&believes, &[]).await;
    until("the other keeps its set", || found.state().is_keeping).await;
    assert_eq!(addresses(&found).len(), 1);
}

/// The TTL tells when to ask again, within bounds.
#[tokio::test]
async fn lookups_come_at_the_ttl_within_bounds() {
    let asked_in_3_s = async |ttl, shortest, longest| {
        let responder = Responder::start(Says::Addresses(vec![A], ttl)).await;
        let dns = Dns::new("users.internal.", 80).servers([responder.address()]);
        let dns = dns
            .family(AddressFamily::V4)
            .refresh_between(shortest, longest);
        let _found = dns.start().unwrap();
        sleep(Duration::from_secs(3)).await;
        responder.asked()
    };
    let ms = Duration::from_millis;
    let (none, one, never, often) = tokio::join!(
        asked_in_3_s(0, ms(1000), ms(300_000)),
        asked_in_3_s(1, ms(100), ms(300_000)),
        asked_in_3_s(3_600, ms(1000), ms(300_000)),
        asked_in_3_s(3_600, ms(100), ms(200)),
    );
    assert!(
        (2..=3).contains(&none),
        "a TTL of 0 counts as the least time: {none}"
    );
    assert!(
        (3..=4).contains(&one),
        "before the TTL of 1 s has passed: {one}"
    );
    assert_eq!(never, 1);
    assert!((10..=16).contains(&often), "every 200 ms: {often}");
}

#[tokio::test]
async fn a_bad_setting_is_refused_at_the_start() {
    let error = |dns: Dns| match dns.start() {
        Err(error @ StartError::BadSetting { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(error(Dns::new("", 80)), "dns :80: the name is missing");
    assert_eq!(error(Dns::new("a", 0)), "dns a:0: the port is 0");
    assert!(error(Dns::srv("a..b")).starts_with("srv a..b: \"a..b\" is no name"));
    let none: [SocketAddr; 0] = [];
    assert_eq!(
        error(Dns::srv("a").servers(none)),
        "srv a: the list of servers is empty"
    );
}

#[tokio::test]
async fn an_address_needs_no_server() {
    let start = Instant::now();
    for (name, address) in [
        ("10.0.0.1", "10.0.0.1:80"),
        ("::1", "[::1]:80"),
        ("localhost", "127.0.0.1:80"),
    ] {
        let found = Dns::new(name, 80)
            .family(AddressFamily::PreferV4)
            .start()
            .unwrap();
        until_found(&found, &[address]).await;
    }
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_names_change() {
    let Some(knot) = Knot::start().await else {
        return;
    };
    let mut backends = Backends::start(4).await;
    let mut name = KnotName(&knot, "users.internal.");
    let dns = Dns::new(name.1, backends.port()).servers([knot.address()]);
    let found = dns.start().unwrap();
    no_request_is_lost(&mut name, &mut backends, &found).await;
}
