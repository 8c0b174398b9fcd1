//! Compiler messages of wrong stacks: each must lead to the fix.
//!
//! `trybuild` compiles every stack in [`STACKS`] and writes the message of each to a file. The test
//! searches the message for the sentence that names the fix. Where rustc cannot be made to print
//! that sentence, the message contains a keyword of the table "When it does not compile", at the
//! root of the crate's docs. (While a type is still open, rustc reports the missing trait by its
//! name alone.)

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A wrong stack: its name, its code, and what the message must contain.
type Stack = (&'static str, &'static str, Says);

enum Says {
    /// The sentence that names the fix.
    Sentence(&'static str),
    /// A keyword of the table.
    Key(&'static str),
    /// These words, which have a key word of the table in them.
    Words(&'static str, &'static str),
}

use Says::{Key, Sentence, Words};

const STACKS: &[Stack] = &[
    // Layers in the wrong place.
    (
        "outlier_detection_above_the_balancer",
        "stack().layer(OutlierLayer::default()).layer(BalanceLayer::<_, String>::new(P2c::default()))
            .layer(each(PendingRequestsLayer::default())).layer(fixed(addresses())).service(client);",
        Key("DiscoverEndpoints"),
    ),
    (
        "health_checks_above_the_balancer",
        "stack().layer(HealthCheckLayer::new(|_: Endpoint, _| async { Ok::<_, String>(()) }))
            .layer(BalanceLayer::<_, String>::new(P2c::default()))
            .layer(each(PendingRequestsLayer::default())).layer(fixed(addresses())).service(client);",
        Key("DiscoverEndpoints"),
    ),
    (
        "sessions_above_the_balancer",
        "stack().layer(SessionLayer::new(\"lb\", [7; 16])).layer(BalanceLayer::<_, String>::new(Random::default()))
            .layer(fixed(addresses())).service(client);",
        Key("DiscoverEndpoints"),
    ),
    (
        "authority_above_the_balancer",
        "stack().layer(AuthorityLayer::new()).layer(BalanceLayer::<_, String>::new(Random::default()))
            .layer(fixed(addresses())).service(client);",
        Key("DiscoverEndpoints"),
    ),
    (
        "heartbeats_above_the_balancer",
        "stack().layer(Heartbeats::<SocketAddr>::new(Duration::from_secs(1)))
            .layer(BalanceLayer::<_, String>::new(Random::default())).layer(fixed(addresses())).service(client);",
        Key("DiscoverEndpoints"),
    ),
    (
        "a_tracker_without_each",
        "stack().layer(BalanceLayer::<_, String>::new(P2c::default())).layer(PendingRequestsLayer::default())
            .layer(fixed(addresses())).service(client);",
        Key("Stream"),
    ),
    (
        "discovery_above_the_balancer",
        "stack().layer(fixed(addresses())).layer(BalanceLayer::<_, String>::new(Random::default())).service(client);",
        Sentence("is no discovery of endpoints"),
    ),
    (
        "no_discovery",
        "stack().layer(BalanceLayer::<_, String>::new(P2c::default())).layer(each(PendingRequestsLayer::default()))
            .service(client);",
        Sentence("is no discovery of endpoints"),
    ),
    (
        "a_balancer_over_a_client",
        "let one = client(&Endpoint::new(addresses()[0]));
        stack().layer(BalanceLayer::<_, String>::new(Random::default())).service(one);",
        Sentence("is no discovery of endpoints"),
    ),
    (
        "outlier_detection_in_each",
        "stack().layer(BalanceLayer::<_, String>::new(Random::default())).layer(each(OutlierLayer::default()))
            .layer(fixed(addresses())).service(client);",
        Key("OutlierDiscover"),
    ),
    (
        "failover_in_each",
        "stack().layer(BalanceLayer::<_, String>::new(Random::default()))
            .layer(each(FailoverLayer::new(ConnectErrors::default()))).layer(fixed(addresses())).service(client);",
        Sentence("a layer for one endpoint's service goes into `each`"),
    ),
    (
        "a_timeout_between_failover_and_balancer",
        "stack().layer(FailoverLayer::new(ConnectErrors::default())).timeout(Duration::from_secs(1))
            .layer(BalanceLayer::<_, String>::new(Random::default())).layer(fixed(addresses())).service(client);",
        Key("SendsElsewhere"),
    ),
    (
        "hedging_over_a_client",
        "let one = client(&Endpoint::new(addresses()[0]));
        stack().layer(HedgeLayer::after(Duration::from_millis(10), Idempotent::all())).service(one);",
        Sentence("is no balancer"),
    ),
    (
        "failover_below_the_balancer",
        "stack().layer(BalanceLayer::<_, String>::new(Random::default()))
            .layer(FailoverLayer::new(ConnectErrors::default())).layer(fixed(addresses())).service(client);",
        Key("SendsElsewhere"),
    ),
    // What a policy lacks.
    (
        "p2c_without_a_tracker",
        "stack().layer(BalanceLayer::<_, String>::new(P2c::default())).layer(fixed(addresses())).service(client);",
        Sentence("or another tracker right below the balancer"),
    ),
    (
        "least_loaded_without_a_tracker",
        "stack().layer(BalanceLayer::<_, String>::new(LeastLoaded::default())).layer(OutlierLayer::default())
            .layer(fixed(addresses())).service(client);",
        Sentence("or another tracker right below the balancer"),
    ),
    (
        "bounded_without_a_total",
        "let policy = RingHash::by(|path: &String| path.as_bytes()).bounded(1.25).unwrap();
        stack().layer(BalanceLayer::<_, String>::new(policy)).layer(each(PendingRequestsLayer::default()))
            .layer(fixed(addresses())).service(client);",
        Key("TotalInFlight"),
    ),
    (
        "a_key_of_another_request",
        "stack().layer(BalanceLayer::<_, String>::new(RingHash::by(|path: &Vec<u8>| path.as_slice())))
            .layer(fixed(addresses())).service(client);",
        Key("Policy"),
    ),
    (
        "a_header_of_a_request_that_is_not_http",
        "stack().layer(BalanceLayer::<_, String>::new(RingHash::by_key(http::key::Header::new(\"x\"))))
            .layer(fixed(addresses())).service(client);",
        Key("HashKey"),
    ),
    (
        "no_policy",
        "stack().layer(BalanceLayer::<_, String>::new(7_u32)).layer(fixed(addresses())).service(client);",
        Key("Policy"),
    ),
    (
        "the_layer_of_a_policy_in_place_of_it",
        "stack().layer(BalanceLayer::<_, String>::new(PendingRequestsLayer::default()))
            .layer(fixed(addresses())).service(client);",
        Key("Policy"),
    ),
    // Factories.
    (
        "a_factory_that_returns_a_result",
        "stack().layer(BalanceLayer::<_, String>::new(P2c::default())).layer(each(PendingRequestsLayer::default()))
            .layer(fixed(addresses())).service(|endpoint: &Endpoint| Ok::<_, std::io::Error>(client(endpoint)));",
        Words("`std::io::Error: Clone`", "Clone"),
    ),
    (
        "a_factory_of_addresses",
        "let make = |address: SocketAddr| client(&Endpoint::new(address));
        stack().layer(BalanceLayer::<_, String>::new(Random::default())).layer(fixed(addresses())).service(make);",
        Sentence("&'a tower_lb::Endpoint"),
    ),
    (
        "a_factory_for_names_over_addresses",
        "let make = |_: &Endpoint<&'static str>| client(&Endpoint::new(addresses()[0]));
        stack().layer(BalanceLayer::<_, String>::new(Random::default())).layer(fixed(addresses())).service(make);",
        Sentence("&'a tower_lb::Endpoint"),
    ),
    (
        "a_service_that_is_not_clone",
        "let make = |endpoint: &Endpoint| tower::util::BoxService::new(client(endpoint));
        stack().layer(BalanceLayer::<_, String>::new(Random::default())).layer(fixed(addresses())).service(make);",
        Words("BoxService<String, String, Infallible>: Clone", "Clone"),
    ),
    // Targets.
    (
        "a_list_of_what_is_no_target",
        "let (_lists, rx) = tokio::sync::watch::channel(vec![1_u8]);
        stack().layer(BalanceLayer::<_, String>::new(Random::default())).layer(WatchLayer::new(rx))
            .service(|_: &Endpoint<u8>| client(&Endpoint::new(addresses()[0])));",
        Key("IntoTarget"),
    ),
    // Requests and answers.
    (
        "failover_of_a_request_that_is_not_clone",
        "let make = |_: &Endpoint| service_fn(|_: Upload| async { Ok::<_, Infallible>(String::new()) });
        let failover = stack().layer(FailoverLayer::new(ConnectErrors::default()))
            .layer(BalanceLayer::new(Random::default())).layer(fixed(addresses())).service(make);
        send(failover, Upload);",
        Sentence("can't be copied to be sent a second time"),
    ),
    (
        "a_retry_policy_that_is_none",
        "let failover = stack().layer(FailoverLayer::new(3)).layer(BalanceLayer::new(Random::default()))
            .layer(fixed(addresses())).service(client);
        send(failover, String::new());",
        Sentence("does not decide what is sent again"),
    ),
    (
        "a_classifier_closure_without_types",
        "PeakEwmaLayer::default().classify(|answer| match answer { Ok(_) => Outcome::Success, Err(_) => Outcome::Failure })
            .layer(client(&Endpoint::new(addresses()[0])));",
        Key("type annotations needed"),
    ),
    (
        "a_classifier_of_other_answers",
        "let balance = stack().layer(BalanceLayer::new(Random::default()))
            .layer(OutlierLayer::default().classify(http::HttpStatus::new())).layer(fixed(addresses())).service(client);
        send(balance, String::new());",
        Sentence("does not classify these answers"),
    ),
    (
        "completion_by_bodies_that_are_none",
        "let layer = PendingRequestsLayer::default().completion(http::CompleteOnBody::new());
        let balance = stack().layer(BalanceLayer::new(P2c::default())).layer(each(layer))
            .layer(fixed(addresses())).service(client);
        send(balance, String::new());",
        Key("CompleteOnBody"),
    ),
    (
        "a_budget_that_is_a_number",
        "FailoverLayer::new(ConnectErrors::default()).budget(0.2);",
        Sentence("From<tower_lb::Budget>"),
    ),
];

/// The code that all stacks share.
const PRELUDE: &str = r#"
#![allow(unused)]
use std::{convert::Infallible, net::SocketAddr, time::Duration};
use tower::{BoxError, Layer, Service, ServiceBuilder, service_fn};
use tower_lb::{*, http::{AuthorityLayer, SessionLayer}};

struct Upload;

fn client(_: &Endpoint) -> impl Service<String, Response = String, Error = Infallible, Future: Send>
    + Clone + Send + Sync + 'static + use<>
{
    service_fn(|path: String| async move { Ok(path) })
}

fn addresses() -> [SocketAddr; 2] {
    [1, 2].map(|i| SocketAddr::from(([10, 0, 0, i], 80)))
}

fn stack() -> ServiceBuilder<tower::layer::util::Identity> {
    ServiceBuilder::new()
}

fn send<S: Service<Req>, Req>(_: S, _: Req) {}

fn main() {
"#;

fn main() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("wrong_stacks");
    // With `TRYBUILD=overwrite`, `trybuild` writes messages instead of comparing them.
    if env::var_os("TRYBUILD").is_some() {
        let cases = trybuild::TestCases::new();
        cases.compile_fail(folder.join("*.rs"));
        return;
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for the stacks");
    for (name, stack, _) in STACKS {
        let source = format!("{PRELUDE}{stack}\n}}\n");
        fs::write(folder.join(format!("{name}.rs")), source).expect("a stack");
    }
    let this = env::current_exe().expect("this program");
    let status = Command::new(this).env("TRYBUILD", "overwrite").status();
    assert!(
        status.expect("it starts").success(),
        "a wrong stack compiles"
    );
    let failed = STACKS
        .iter()
        .filter(|stack| !leads_to_its_mend(&folder, stack));
    let failed = failed.count();
    println!("{} passed, {failed} failed", STACKS.len() - failed);
    assert_eq!(failed, 0);
}

/// Returns whether the message of a stack, together with the table, leads to the fix.
fn leads_to_its_mend(folder: &Path, (name, _, says): &Stack) -> bool {
    let message = fs::read_to_string(folder.join(format!("{name}.stderr"))).unwrap_or_default();
    let (is_said, words) = match says {
        Sentence(words) => (message.contains(words), words),
        Key(word) => (message.contains(word) && is_in_table(word), word),
        Words(words, key) => (message.contains(words) && is_in_table(key), words),
    };
    println!("{} {name}", if is_said { "ok  " } else { "FAIL" });
    if !is_said {
        println!("{message}\n    does not say {words:?}, or the table does not");
    }
    is_said
}

/// Returns whether a row of the table begins with this key word.
fn is_in_table(word: &str) -> bool {
    let docs = include_str!("../../../src/lib.rs");
    let rows = docs
        .lines()
        .skip_while(|line| !line.ends_with("# When it does not compile"));
    let mut rows = rows.take_while(|line| !line.ends_with("# Bad values"));
    rows.any(|row| {
        row.split('|')
            .nth(1)
            .is_some_and(|says| says.contains(word))
    })
}
