//! Consul: a real agent where there is one, and a small one of our own, by the same tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::{BoxError, service_fn};
use tower_lb::discover::{Consul, Found, StartError};
use tower_lb_registries::{
    backends::Backends,
    consul::{Agent, Mode},
    program::until,
    traffic::no_request_is_lost,
};

/// The weights of the targets by their addresses.
fn weights(found: &Found) -> BTreeMap<String, u32> {
    let targets = found.targets();
    targets
        .iter()
        .map(|t| (t.address.to_string(), t.weight))
        .collect()
}

async fn until_found(found: &Found, expected: &[(&str, u32)]) -> Duration {
    let expected = expected
        .iter()
        .map(|(at, weight)| ((*at).to_owned(), *weight));
    let expected: BTreeMap<_, _> = expected.collect();
    until(&format!("{expected:?} are found"), || {
        weights(found) == expected
    })
    .await
}

/// Runs a test with both agents.
async fn with_both(test: impl AsyncFn(Agent)) {
    test(Agent::small()).await;
    if let Some(agent) = Agent::real().await {
        test(agent).await;
    }
}

#[tokio::test]
async fn instances_come_and_go_and_fail() {
    with_both(async |agent| {
        let none = json!({});
        agent
            .register("a", "10.0.0.1", 80, json!({ "Tags": ["v2", "a b&c"] }))
            .await;
        let passing = agent.source().start().unwrap();
        let warnings = agent.source().with_warnings().start().unwrap();
        let tagged = agent.source().tag("v2").tag("a b&c").start().unwrap();
        until_found(&passing, &[("10.0.0.1:80", 10)]).await;
        until_found(&warnings, &[("10.0.0.1:80", 10)]).await;
        until_found(&tagged, &[("10.0.0.1:80", 10)]).await;
        // One joins, at its node's address.
        agent.register("b", "", 81, none).await;
        let both = [("10.0.0.1:80", 10), ("127.0.0.1:81", 10)];
        let took = until_found(&passing, &both).await;
        assert!(took < Duration::from_secs(1), "it took {took:?}");
        assert_eq!(tagged.targets().len(), 1);
        let targets = passing.targets();
        let keys: BTreeSet<_> = targets
            .iter()
            .filter_map(|t| t.hash_key.as_deref())
            .collect();
        assert_eq!(keys, BTreeSet::from(["a", "b"]));
        // A check warns.
        agent.set_check("a", "warn").await;
        until_found(&passing, &[("127.0.0.1:81", 10)]).await;
        until_found(&warnings, &[("10.0.0.1:80", 2), ("127.0.0.1:81", 10)]).await;
        // It fails, and passes again.
        agent.set_check("a", "fail").await;
        until_found(&warnings, &[("127.0.0.1:81", 10)]).await;
        agent.set_check("a", "pass").await;
        until_found(&passing, &both).await;
        // Maintenance.
        agent.set_maintenance("b", true).await;
        until_found(&passing, &[("10.0.0.1:80", 10)]).await;
        agent.set_maintenance("b", false).await;
        until_found(&passing, &both).await;
        // One leaves. The last one is kept.
        agent.deregister("a").await;
        let took = until_found(&passing, &[("127.0.0.1:81", 10)]).await;
        assert!(took < Duration::from_secs(1), "it took {took:?}");
        agent.deregister("b").await;
        until("the last set is kept", || passing.state().is_keeping).await;
        assert_eq!(passing.targets().len(), 1);
        assert!(
            passing.state().last_failure.is_none(),
            "{:?}",
            passing.state()
        );
    })
    .await;
}

/// The index of an agent that was started again is lower: to wait on the old one would be to wait
/// for nothing.
#[tokio::test]
async fn a_restart_sets_the_index_back() {
    with_both(async |mut agent| {
        for i in 0..5 {
            agent
                .register(&format!("u{i}"), "10.0.0.1", 80 + i, json!({}))
                .await;
        }
        let found = agent.source().start().unwrap();
        until("all are found", || found.targets().len() == 5).await;
        agent.stop().await;
        until("the source fails", || found.state().is_failing).await;
        assert_eq!(found.targets().len(), 5);
        agent.restart().await;
        agent.register("u9", "10.0.0.9", 80, json!({})).await;
        until_found(&found, &[("10.0.0.9:80", 10)]).await;
        agent.register("u8", "10.0.0.8", 80, json!({})).await;
        let took = until_found(&found, &[("10.0.0.8:80", 10), ("10.0.0.9:80", 10)]).await;
        assert!(took < Duration::from_secs(1), "it took {took:?}");
        assert!(!found.state().is_stale());
    })
    .await;
}

/// The small agent answers as the real one does, in all that is read of it.
#[tokio::test]
async fn the_small_agent_is_faithful() {
    let Some(real) = Agent::real().await else {
        return;
    };
    let small = Agent::small();
    let ask = async |agent: &Agent, query: &str| {
        let path = format!("/v1/health/service/users?{query}");
        let answer = agent.ask(Method::GET, &path, None).await.unwrap();
        let mut list: Vec<Value> = serde_json::from_str(&answer).unwrap();
        list.sort_by_key(|one| one["Service"]["ID"].to_string());
        let read = |one: &Value| {
            let checks = one["Checks"].as_array().unwrap();
            let mut checks: Vec<_> = checks.iter().map(|check| check["Status"].clone()).collect();
            checks.sort_by_key(Value::to_string);
            let service = &one["Service"];
            json!([
                one["Node"]["Address"],
                service["ID"],
                service["Service"],
                service["Address"],
                service["Port"],
                service["Weights"],
                checks
            ])
        };
        list.iter().map(read).collect::<Vec<_>>()
    };
    for agent in [&real, &small] {
        agent
            .register("a", "10.0.0.1", 80, json!({ "Tags": ["v2"] }))
            .await;
        agent.register("b", "", 81, json!({})).await;
        agent.register("c", "10.0.0.3", 82, json!({})).await;
        agent.set_check("b", "warn").await;
        agent.set_maintenance("c", true).await;
    }
    for query in [
        "",
        "passing=1",
        "tag=v2",
        "tag=v2&tag=none",
        "passing=1&tag=v2&stale=",
    ] {
        assert_eq!(ask(&real, query).await, ask(&small, query).await, "{query}");
    }
}

#[tokio::test]
async fn bad_answers_are_failures_and_keep_the_set() {
    for mode in [Mode::Garbage, Mode::Fails, Mode::Hangs] {
        let mut agent = Agent::small();
        agent.register("a", "10.0.0.1", 80, json!({})).await;
        let found = agent
            .source()
            .wait(Duration::from_secs(1))
            .token("s3cret")
            .start()
            .unwrap();
        until_found(&found, &[("10.0.0.1:80", 10)]).await;
        agent.set_mode(mode);
        until(&format!("{mode:?} is a failure"), || {
            found.state().is_failing
        })
        .await;
        assert_eq!(found.targets().len(), 1);
        let state = format!("{:?} {found:?}", found.state());
        assert!(!state.contains("s3cret"), "{state}");
        agent.set_mode(Mode::Well);
        // A connection that hangs is dead.
        agent.stop().await;
        agent.restart().await;
        agent.register("b", "10.0.0.2", 80, json!({})).await;
        until_found(&found, &[("10.0.0.2:80", 10)]).await;
    }
}

#[tokio::test]
async fn an_empty_answer_is_not_believed_at_once() {
    let agent = Agent::small();
    agent.register("a", "10.0.0.1", 80, json!({})).await;
    let found = agent.source().start().unwrap();
    until_found(&found, &[("10.0.0.1:80", 10)]).await;
    agent.set_mode(Mode::Empty);
    until("the set is kept", || found.state().is_keeping).await;
    agent.set_mode(Mode::Well);
    until("it is true again", || !found.state().is_keeping).await;
    assert_eq!(found.targets().len(), 1);
}

/// What has no index can't be waited for, and must not be asked for without a pause.
#[tokio::test]
async fn without_an_index_a_query_comes_each_second() {
    let agent = Agent::small();
    agent.set_mode(Mode::NoIndex);
    let _found = agent.source().start().unwrap();
    sleep(Duration::from_millis(2_500)).await;
    let queries = agent.queries();
    assert_eq!(queries.len(), 3, "{queries:?}");
    assert!(queries.iter().all(|query| !query.contains("index=")));
}

#[tokio::test]
async fn a_query_says_what_was_set() {
    let agent = Agent::small();
    let consul = agent
        .source()
        .tag("v2")
        .namespace("team a")
        .datacenter("dc1")
        .near("_agent");
    let consul = consul.filter("Service.Meta.version == \"2\"");
    let consul = consul.consistency(tower_lb::discover::Consistency::Stale);
    let found = consul.wait(Duration::from_secs(30)).start().unwrap();
    found.first(Duration::from_secs(10)).await.unwrap();
    let first = agent.queries().remove(0);
    let filter = "filter=Service%2EMeta%2Eversion%20%3D%3D%20%222%22";
    let expected =
        format!("wait=30000ms&passing=1&tag=v2&ns=team%20a&dc=dc1&near=%5Fagent&{filter}&stale=");
    assert_eq!(first, expected);
    until("the next query waits beyond an index", || {
        agent
            .queries()
            .get(1)
            .is_some_and(|query| query.ends_with("&index=10"))
    })
    .await;
}

#[tokio::test]
async fn a_token_comes_from_a_value_a_file_or_a_variable() {
    let agent = Agent::small();
    agent.register("a", "10.0.0.1", 80, json!({})).await;
    agent.set_token("s3cret");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "an old one\n").unwrap();
    let denied = agent.source().token_file(file.path()).start().unwrap();
    let error = denied
        .first(Duration::from_secs(1))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("403 Forbidden: Permission denied: token (the token) not found"),
        "{error}"
    );
    // It rotates.
    std::fs::write(file.path(), "s3cret\n").unwrap();
    until_found(&denied, &[("10.0.0.1:80", 10)]).await;
    let given = agent.source().token("s3cret");
    assert!(!format!("{given:?}").contains("s3cret"));
    until_found(&given.start().unwrap(), &[("10.0.0.1:80", 10)]).await;
    let missing = agent
        .source()
        .token_variable("NO_SUCH_VARIABLE")
        .start()
        .unwrap();
    let error = missing
        .first(Duration::from_millis(300))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("no token: the variable NO_SUCH_VARIABLE is not set"),
        "{error}"
    );
}

/// A client of the user's own, which could do TLS.
#[tokio::test]
async fn a_client_can_be_handed_over() {
    let client = service_fn(|request: Request<String>| async move {
        assert_eq!(request.uri().scheme_str(), Some("https"));
        let list = json!([{
            "Node": { "Node": "n", "Address": "10.0.0.1" },
            "Service": { "ID": "u1", "Service": "users", "Port": 80 }
        }]);
        Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(list.to_string())))
    });
    let consul = Consul::new("users")
        .address("https://consul.example.com/proxy/")
        .client(client);
    until_found(&consul.start().unwrap(), &[("10.0.0.1:80", 1)]).await;
}

#[tokio::test]
async fn a_bad_setting_is_refused_at_the_start() {
    let error = |consul: Consul| match consul.start() {
        Err(error @ StartError::BadSetting { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        error(Consul::new("")),
        "consul : the name of the service is missing"
    );
    let tls = Consul::new("a").address("https://consul.example.com");
    assert_eq!(
        error(tls),
        "consul a: https needs a client with TLS, see `client`"
    );
    let socket = Consul::new("a").address("unix:///run/consul.sock");
    assert!(error(socket).starts_with("consul a: \"unix:///run/consul.sock\" is no address"));
    assert!(std::panic::catch_unwind(|| Consul::new("a").wait(Duration::ZERO)).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_instances_change() {
    let start = Instant::now();
    with_both(async |mut agent| {
        let mut backends = Backends::start(4).await;
        let found = agent.source().start().unwrap();
        no_request_is_lost(&mut agent, &mut backends, &found).await;
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(120));
}
