//! AWS Cloud Map: moto's server, asked by the real client.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::sleep;
use tower_lb::{
    Target,
    discover::{CloudMap, Found, StartError},
};
use tower_lb_registries::{
    backends::Backends,
    cloud_map::{Mode, Moto},
    program::until,
    traffic::no_request_is_lost,
};

fn ids(found: &Found) -> BTreeMap<String, String> {
    let targets = found.targets();
    let id = |target: &Target| {
        let id = target.hash_key.as_ref().unwrap().to_string();
        (id, target.address.to_string())
    };
    targets.iter().map(id).collect()
}

async fn until_found(found: &Found, expected: &[(&str, &str)]) -> Duration {
    let expected = expected
        .iter()
        .map(|(id, at)| ((*id).to_owned(), (*at).to_owned()));
    let expected: BTreeMap<_, _> = expected.collect();
    until(&format!("{expected:?} are found"), || {
        ids(found) == expected
    })
    .await
}

const A: [(&str, &str); 2] = [
    ("AWS_INSTANCE_IPV4", "10.0.0.1"),
    ("AWS_INSTANCE_PORT", "80"),
];

#[tokio::test]
async fn instances_come_and_go() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let mut attributes = A.to_vec();
    attributes.extend([
        ("AVAILABILITY_ZONE", "eu-1a"),
        ("weight", "3"),
        ("stage", "prod"),
    ]);
    moto.register("a", &attributes).await;
    let found = moto.source().weight_attribute("weight").start().unwrap();
    let first = found.first(Duration::from_secs(10)).await.unwrap();
    let expected = Target::new("10.0.0.1:80".parse().unwrap());
    assert_eq!(first[..], [expected.weight(3).zone("eu-1a").hash_key("a")]);
    moto.register(
        "b",
        &[
            ("AWS_INSTANCE_IPV6", "2001:db8::1"),
            ("AWS_INSTANCE_PORT", "81"),
        ],
    )
    .await;
    let took = until_found(&found, &[("a", "10.0.0.1:80"), ("b", "[2001:db8::1]:81")]).await;
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    let production = moto.source().attribute("stage", "prod").start().unwrap();
    until_found(&production, &[("a", "10.0.0.1:80")]).await;
    moto.deregister("a").await;
    until_found(&found, &[("b", "[2001:db8::1]:81")]).await;
    // One that can't be reached is left out.
    moto.register("c", &[("AWS_INSTANCE_CNAME", "c.example.com")])
        .await;
    moto.register("d", &A).await;
    until_found(&found, &[("b", "[2001:db8::1]:81"), ("d", "10.0.0.1:80")]).await;
    assert!(found.state().last_failure.is_none(), "{:?}", found.state());
}

/// The instances are asked for when their revision is another one.
#[tokio::test]
async fn what_has_not_changed_is_not_asked_for() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    moto.register("a", &A).await;
    let found = moto.source().start().unwrap();
    until_found(&found, &[("a", "10.0.0.1:80")]).await;
    let _ = moto.take_asked();
    sleep(Duration::from_secs(1)).await;
    let asked = moto.take_asked();
    assert!((3..=5).contains(&asked.len()), "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|operation| operation == "DiscoverInstancesRevision"),
        "{asked:?}"
    );
    // But now and then in any case.
    sleep(Duration::from_secs(3)).await;
    assert!(
        moto.take_asked()
            .iter()
            .any(|operation| operation == "DiscoverInstances")
    );
}

#[tokio::test]
async fn bad_answers_are_failures_and_keep_the_set() {
    let Some(mut moto) = Moto::start().await else {
        return;
    };
    moto.register("a", &A).await;
    for mode in [Mode::Garbage, Mode::Fails, Mode::Hangs] {
        let found = moto.source().start().unwrap();
        until_found(&found, &[("a", "10.0.0.1:80")]).await;
        moto.set_mode(mode);
        until(&format!("{mode:?} is a failure"), || {
            found.state().is_failing
        })
        .await;
        assert_eq!(ids(&found).len(), 1);
        let state = format!("{:?}", found.state());
        assert!(!state.contains("s3cret"), "{state}");
        moto.set_mode(Mode::Well);
        until("it is well again", || !found.state().is_failing).await;
    }
    let found = moto.source().start().unwrap();
    until_found(&found, &[("a", "10.0.0.1:80")]).await;
    moto.stop().await;
    until("it is away", || found.state().is_failing).await;
    moto.restart();
    until("it is well again", || !found.state().is_failing).await;
    moto.set_mode(Mode::Empty);
    until("nothing is not believed at once", || {
        found.state().is_keeping
    })
    .await;
    assert_eq!(ids(&found).len(), 1);
}

/// While there are too many requests, fewer are sent.
#[tokio::test]
async fn throttling_is_respected() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    moto.register("a", &A).await;
    let found = moto.source().start().unwrap();
    until_found(&found, &[("a", "10.0.0.1:80")]).await;
    moto.set_mode(Mode::Throttles);
    until("it is throttled", || found.state().is_failing).await;
    let error = found.state().last_failure.unwrap().error;
    assert!(error.contains("RequestLimitExceeded"), "{error}");
    let _ = moto.take_asked();
    sleep(Duration::from_secs(3)).await;
    let asked = moto.take_asked().len();
    // After 400 ms, then 800, then 1 600, and some.
    assert!((1..=4).contains(&asked), "{asked} requests");
    moto.set_mode(Mode::Well);
    until("it is well again", || !found.state().is_failing).await;
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let missing = moto.source().start().unwrap();
    assert!(
        missing
            .first(Duration::from_secs(10))
            .await
            .unwrap()
            .is_empty()
    );
    moto.register("a", &[("AWS_INSTANCE_CNAME", "a.example.com")])
        .await;
    until("no instance can be reached", || missing.state().is_failing).await;
    let error = missing.state().last_failure.unwrap().error;
    assert_eq!(error, "no instance has an IP address and a port: a");
    let error = |source: CloudMap| match source.start() {
        Err(error @ StartError::BadSetting { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error(moto.source().port(0)),
        "cloud-map shop/users: the port is 0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_instances_change() {
    let Some(mut moto) = Moto::start().await else {
        return;
    };
    let mut backends = Backends::start(4).await;
    let found = moto.source().start().unwrap();
    no_request_is_lost(&mut moto, &mut backends, &found).await;
}
