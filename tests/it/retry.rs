//! Another try, elsewhere: which failures are tried again, where, and how often.

use std::{
    collections::HashSet,
    fmt,
    io::{self, ErrorKind},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use tokio::{
    sync::watch,
    time::{Instant, advance, sleep, timeout},
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer,
    load_shed::error::Overloaded, service_fn,
};
use tower_lb::{
    hash::{Maglev, Rendezvous, RingHash},
    retry::{
        AdaptiveThrottleLayer, AttemptsFailed, Budget, ConnectErrors, FailoverLayer, HedgeLayer,
        Idempotent, LimitLayer, LimitReached, Retry, RetryPolicy, Stopped, Throttled,
        TokenThrottle, Tried, TryTimedOut,
    },
    *,
};

use crate::support::{Behaviour, Server, factory, ms, poll_ready_once, servers, settle};

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(future)
}

/// What a backend does with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Answer(u16),
    Fail(ErrorKind),
    Hang,
}

type Calls = Arc<Mutex<Vec<usize>>>;

/// Backends that act as `script(endpoint)` says; who was called is in the list returned.
fn backends(
    script: impl Fn(usize) -> (Duration, Act) + Clone + Send + Sync + 'static,
) -> (
    Calls,
    impl Fn(&Endpoint<usize>) -> BoxedBackend + Clone + Send + 'static,
) {
    let calls = Calls::default();
    let seen = calls.clone();
    let make = move |endpoint: &Endpoint<usize>| {
        let (name, script, calls) = (*endpoint.address(), script.clone(), calls.clone());
        BoxedBackend::new(service_fn(move |_: Verb| {
            calls.lock().unwrap().push(name);
            let (after, act) = script(name);
            async move {
                if after > Duration::ZERO {
                    sleep(after).await;
                }
                match act {
                    Act::Answer(status) => Ok(status),
                    Act::Fail(kind) => Err(io::Error::from(kind)),
                    Act::Hang => std::future::pending().await,
                }
            }
        }))
    };
    (seen, make)
}

/// A clonable service of one type.
type BoxedBackend = tower::util::BoxCloneSyncService<Verb, u16, io::Error>;

/// Status 500 and above is a failure.
#[derive(Clone, Copy, Debug)]
struct Statuses;

impl Classify<u16, BoxError> for Statuses {
    fn classify(&self, answer: Result<&u16, &BoxError>) -> Outcome {
        match answer {
            Ok(500..) | Err(_) => Outcome::Failure,
            Ok(400..500) => Outcome::Ignore,
            Ok(_) => Outcome::Success,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    Get,
    Post,
}

use Verb::{Get, Post};

fn is_get(request: &Verb) -> bool {
    *request == Get
}

/// Always the first that may be picked, so that who is tried next is known.
#[derive(Clone, Debug)]
struct InOrder;

impl<A, S, Req> Policy<A, S, Req> for InOrder {
    type Table = ();

    fn table(&self, _: &[Member<A, S>], _: Option<&()>) {}

    fn pick(
        &self,
        (): &(),
        candidates: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        let first = candidates.iter().next();
        first.map_or(Choice::None, |(position, _)| Choice::Member(position))
    }
}

fn names(error: &BoxError) -> Vec<String> {
    let failed = error.downcast_ref::<AttemptsFailed>().expect("attempts");
    let names = failed.attempts().iter();
    names
        .map(|attempt| attempt.endpoint().unwrap_or("?").to_owned())
        .collect()
}

fn stopped(error: &BoxError) -> Stopped {
    let failed = error.downcast_ref::<AttemptsFailed>();
    failed.unwrap_or_else(|| panic!("{error}")).stopped()
}

// Which failures are tried again.

/// The table of the module's docs: server 0 fails, server 1 answers.
#[tokio::test(start_paused = true)]
async fn each_kind_of_failure_is_tried_again_where_it_is_safe() {
    use Act::*;
    let refused = Fail(ErrorKind::ConnectionRefused);
    // What happens; whether it is tried again: connect errors, idempotent requests, others.
    let table = [
        (refused, [true, true, true]),
        (Fail(ErrorKind::HostUnreachable), [false, true, false]),
        (Fail(ErrorKind::NetworkUnreachable), [false, true, false]),
        (Fail(ErrorKind::NetworkDown), [false, true, false]),
        (Fail(ErrorKind::AddrNotAvailable), [true, true, true]),
        (Fail(ErrorKind::ConnectionReset), [false, true, false]),
        (Fail(ErrorKind::TimedOut), [false, true, false]),
        (Fail(ErrorKind::BrokenPipe), [false, true, false]),
        (Fail(ErrorKind::Other), [false, true, false]),
        (Hang, [false, true, false]),
        (Answer(503), [false, true, false]),
        (Answer(404), [false, false, false]),
        (Answer(200), [false, false, false]),
    ];
    for (act, expected) in table {
        let (calls, make) = backends(move |endpoint| {
            let act = if endpoint == 0 { act } else { Answer(299) };
            (Duration::ZERO, act)
        });
        let balancer = || {
            ServiceBuilder::new()
                .layer(BalanceLayer::new(InOrder))
                .layer(fixed([0, 1]))
                .service(make.clone())
        };
        let connect = FailoverLayer::new(ConnectErrors::default())
            .try_timeout(ms(100))
            .layer(balancer());
        let idempotent = FailoverLayer::new(Idempotent::when(is_get).classify(Statuses))
            .try_timeout(ms(100))
            .layer(balancer());
        let cases = [
            connect.oneshot(Get).await,
            idempotent.clone().oneshot(Get).await,
            idempotent.oneshot(Post).await,
        ];
        let mut expected_calls = Vec::new();
        for (answer, again) in cases.iter().zip(expected) {
            let second = matches!(answer, Ok(299));
            assert_eq!(second, again, "{act:?}: {answer:?}");
            expected_calls.push(0);
            if again {
                expected_calls.push(1);
            }
        }
        assert_eq!(*calls.lock().unwrap(), expected_calls, "{act:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn failed_readiness_is_tried_again_for_any_request() {
    let servers = servers(&[Behaviour::Answer(ms(0))]);
    servers[0].fail_readiness(true);
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(ConnectErrors::default()).backoff(ms(25), ms(25)))
        .layer(BalanceLayer::new(P2c::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed([0]))
        .service(factory(&servers));
    let answer = tokio::spawn(client.clone().oneshot(()));
    settle().await;
    servers[0].fail_readiness(false);
    assert_eq!(answer.await.unwrap().unwrap(), 0);
    // And for good:
    servers[0].fail_readiness(true);
    let error = client.oneshot(()).await.unwrap_err();
    assert_eq!(stopped(&error), Stopped::Attempts);
    assert_eq!(names(&error), ["?", "?", "?"]);
    assert!(std::error::Error::source(&*error).unwrap().is::<NotReady>());
}

#[tokio::test(start_paused = true)]
async fn nobody_to_send_to_is_said_at_once_and_as_it_is() {
    let (_, make) = backends(|_| (Duration::ZERO, Act::Answer(200)));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0; 0]))
        .service(make);
    let start = Instant::now();
    let error = client.oneshot(Get).await.unwrap_err();
    assert!(error.is::<NoEndpoints>());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_users_own_connect_errors_count_wherever_they_are_in_the_chain() {
    #[derive(Debug)]
    struct Dial(io::Error);
    impl fmt::Display for Dial {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("dialling failed")
        }
    }
    impl std::error::Error for Dial {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let policy = ConnectErrors::default();
    let judge = |policy: &dyn RetryPolicy<(), ()>, error| policy.retry(&(), Err(&error));
    let refused = || io::Error::from(ErrorKind::ConnectionRefused);
    assert_eq!(judge(&policy, refused().into()), Retry::Yes);
    assert_eq!(judge(&policy, Dial(refused()).into()), Retry::Yes);
    let other = || BoxError::from(Dial(io::Error::other("no")));
    assert_eq!(judge(&policy, other()), Retry::No);
    let policy = policy.or(|error| error.is::<Dial>());
    assert_eq!(judge(&policy, other()), Retry::Yes);
}

// Where, how often and when.

#[tokio::test(start_paused = true)]
async fn the_error_names_who_was_tried_and_why_each_failed() {
    let (calls, make) = backends(|endpoint| {
        let act = match endpoint {
            0 => Act::Fail(ErrorKind::ConnectionRefused),
            1 => Act::Hang,
            _ => Act::Fail(ErrorKind::BrokenPipe),
        };
        (Duration::ZERO, act)
    });
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()).try_timeout(ms(50)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..5))
        .service(make);
    let error = client.oneshot(Get).await.unwrap_err();
    assert_eq!(*calls.lock().unwrap(), [0, 1, 2]);
    assert_eq!(names(&error), ["0", "1", "2"]);
    let failed = error.downcast_ref::<AttemptsFailed>().unwrap();
    assert!(failed.attempts()[1].error().is::<TryTimedOut>());
    assert!(!failed.all_were_tried());
    assert_eq!(
        error.to_string(),
        "3 attempts failed: 0: connection refused; 1: no answer within 50ms; 2: broken pipe"
    );
    let source = std::error::Error::source(failed).unwrap();
    assert_eq!(source.to_string(), "broken pipe");
}

#[tokio::test(start_paused = true)]
async fn when_all_were_tried_one_is_tried_again_and_the_error_says_so() {
    let refused = Act::Fail(ErrorKind::ConnectionRefused);
    let (calls, make) = backends(move |_| (Duration::ZERO, refused));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(ConnectErrors::default()).attempts(3))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0, 1]))
        .service(make);
    let error = client.oneshot(Post).await.unwrap_err();
    assert_eq!(*calls.lock().unwrap(), [0, 1, 0]);
    let failed = error.downcast_ref::<AttemptsFailed>().unwrap();
    let repeated: Vec<_> = failed.attempts().iter().map(|a| a.is_repeated()).collect();
    assert_eq!(repeated, [false, false, true]);
    assert!(
        error
            .to_string()
            .contains("every available endpoint was tried")
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_tried_again_is_returned_as_it_is() {
    let (calls, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::BrokenPipe)));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()).copy_with(|_: &Verb| None))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0, 1]))
        .service(make.clone());
    let error = client.oneshot(Get).await.unwrap_err();
    assert!(error.is::<io::Error>());
    assert_eq!(calls.lock().unwrap().len(), 1);
    // Not idempotent:
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::when(is_get)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0, 1]))
        .service(make);
    assert!(client.oneshot(Post).await.unwrap_err().is::<io::Error>());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_no_further_try_betters_is_the_callers() {
    let (calls, make) = backends(|endpoint| (Duration::ZERO, Act::Answer(500 + endpoint as u16)));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all().classify(Statuses)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..5))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 502);
    assert_eq!(*calls.lock().unwrap(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn pauses_are_random_and_within_their_range() {
    let broken = Act::Fail(ErrorKind::ConnectionRefused);
    let (_, make) = backends(move |_| (Duration::ZERO, broken));
    let pauses = |seed, base, max| {
        let client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(ConnectErrors::default())
                    .backoff(ms(base), ms(max))
                    .attempts(5)
                    .budget(Budget::new().minimum(1_000_000))
                    .seeded(seed),
            )
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed([0, 1]))
            .service(make.clone());
        async move {
            let mut pauses = Vec::new();
            for _ in 0..200 {
                let start = Instant::now();
                client.clone().oneshot(Get).await.unwrap_err();
                pauses.push(start.elapsed());
            }
            pauses
        }
    };
    let default = pauses(7, 25, 250).await;
    // 25 + 75 + 175 + 250, and tokio's timers round up.
    assert!(default.iter().all(|&sum| sum <= ms(525 + 4)));
    let mean = default.iter().sum::<Duration>() / 200;
    assert!((ms(250)..ms(276)).contains(&mean), "{mean:?}");
    let differing: HashSet<_> = default.iter().collect();
    assert!(differing.len() > 100);
    assert_eq!(pauses(7, 25, 250).await, default, "of the same seed");
    assert!(pauses(7, 0, 250).await.iter().all(Duration::is_zero));
}

/// Says after how long to come back.
#[derive(Clone, Debug)]
struct ComeBack(Duration);

impl RetryPolicy<Verb, u16> for ComeBack {
    fn is_idempotent(&self, _: &Verb) -> bool {
        true
    }

    fn retry(&self, _: &Verb, answer: Result<&u16, &BoxError>) -> Retry {
        match answer {
            Ok(503) => Retry::After(self.0),
            _ => Retry::No,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_servers_pushback_is_honoured_up_to_the_longest() {
    let (_, make) = backends(|endpoint| {
        let status = if endpoint == 0 { 503 } else { 200 };
        (Duration::ZERO, Act::Answer(status))
    });
    for (asked, answered, after) in [
        (ms(0), 200, ms(0)),
        (ms(700), 200, ms(700)),
        (secs(5), 200, secs(5)),
        (ms(5001), 503, ms(0)),
        (Duration::MAX, 503, ms(0)),
    ] {
        let client = ServiceBuilder::new()
            .layer(FailoverLayer::new(ComeBack(asked)))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed([0, 1]))
            .service(make.clone());
        let start = Instant::now();
        assert_eq!(client.oneshot(Get).await.unwrap(), answered);
        let elapsed = start.elapsed();
        assert!((after..=after + ms(1)).contains(&elapsed), "{elapsed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_try_that_is_given_up_gives_its_load_back() {
    let servers = servers(&[Behaviour::Hang, Behaviour::Hang, Behaviour::Answer(ms(1))]);
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(0..3))
        .service(factory(&servers));
    let client = FailoverLayer::new(Idempotent::all())
        .try_timeout(ms(10))
        .layer(balance.clone());
    assert_eq!(client.clone().oneshot(()).await.unwrap(), 2);
    let in_flight = |balance: &Balance<_, PendingRequests<_>, (), _>| {
        let members = balance.endpoints();
        members
            .iter()
            .map(|m| m.service().in_flight())
            .sum::<usize>()
    };
    assert_eq!(in_flight(&balance), 0);
    // Dropped at any time, all is given back: in a try, in a pause, in another try.
    for wait in 0..60 {
        assert!(timeout(ms(wait), client.clone().oneshot(())).await.is_err() || wait > 20);
        assert_eq!(in_flight(&balance), 0, "after {wait} ms");
    }
}

/// A retry waits for an endpoint that has not been tried, although a tried one is ready.
#[tokio::test(start_paused = true)]
async fn a_saturated_endpoint_is_waited_for_before_a_tried_one_is_tried_again() {
    let servers = servers(&[Behaviour::Fail(ms(0)), Behaviour::Answer(ms(0))]);
    servers[1].allow(0);
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()).backoff(ms(0), ms(0)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(factory(&servers));
    let answer = tokio::spawn(client.oneshot(()));
    advance(secs(10)).await;
    settle().await;
    assert_eq!((servers[0].calls(), servers[1].calls()), (1, 0));
    servers[1].allow(1);
    assert_eq!(answer.await.unwrap().unwrap(), 1);
    assert_eq!(servers[0].calls(), 1);
}

// The laws of leaving out.

/// Members and what stands against them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// With this weight.
    Well(u32),
    Draining,
    Unhealthy,
    Ejected,
    NotReady,
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        4 => (1_u32..4).prop_map(State::Well),
        1 => Just(State::Draining),
        1 => Just(State::Unhealthy),
        1 => Just(State::Ejected),
        1 => Just(State::NotReady),
    ]
}

type Tracked = PendingRequests<crate::support::Client, CompleteOnResponse, load::SharedTotal>;

/// Fails one request as often as there are endpoints, and once more: by `call_excluding` and through the layer.
fn untried_first<P>(policy: P, states: &[State], request: &'static str)
where
    P: Policy<usize, Tracked, &'static str> + Clone + fmt::Debug,
{
    let name = format!("{policy:?} over {states:?}");
    run(async {
        let servers = servers(&vec![Behaviour::Fail(ms(0)); states.len()]);
        let weight = |state: &State| match state {
            State::Well(weight) => *weight,
            State::Draining => 0,
            _ => 1,
        };
        let targets: Vec<_> = states.iter().map(weight).enumerate().collect();
        let mut balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy).fail_closed())
            .layer(each(PendingRequestsLayer::default().with_total()))
            .layer(fixed(targets))
            .service(factory(&servers));
        settle().await;
        for (member, state) in balance.endpoints().iter().zip(states) {
            let endpoint = member.endpoint();
            match state {
                State::Unhealthy => endpoint.mark_unhealthy(),
                State::Ejected => endpoint.eject(Instant::now() + secs(3600)),
                State::NotReady => servers[*endpoint.address()].fail_readiness(true),
                State::Well(_) | State::Draining => {}
            }
        }
        settle().await;
        let well = |i: usize| matches!(states[i], State::Well(_));
        let ready = (0..states.len()).filter(|&i| well(i)).count();
        let tried = Tried::new();
        for attempt in 0..=states.len() {
            let balance = balance.ready().await.unwrap();
            let error = balance.call_excluding(request, &tried).await.unwrap_err();
            if ready == 0 {
                assert!(tried.is_empty(), "{name}: {error}");
                continue;
            }
            assert!(error.is::<crate::support::Failed>(), "{name}: {error}");
            let endpoints = tried.endpoints();
            assert_eq!(endpoints.len(), attempt + 1, "{name}");
            let distinct: HashSet<_> = endpoints.iter().map(|e| *e.address()).collect();
            assert_eq!(distinct.len(), ready.min(attempt + 1), "{name}: {tried:?}");
            assert!(distinct.iter().all(|&i| well(i)), "{name}");
        }
        let before: Vec<_> = servers.iter().map(Server::calls).collect();
        let failover = FailoverLayer::new(Idempotent::all())
            .attempts(ready.max(1) as u32)
            .backoff(ms(0), ms(0))
            .layer(balance);
        failover.oneshot(request).await.unwrap_err();
        for (i, server) in servers.iter().enumerate() {
            let calls = server.calls() - before[i];
            assert_eq!(calls, usize::from(well(i)), "{name}: each once, {i}");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_retry_never_goes_to_a_tried_endpoint_while_another_is_available(
        states in prop::collection::vec(state(), 1..9),
        key in prop::sample::select(vec!["a", "b", "c", "d"]),
    ) {
        fn bytes<'a>(key: &'a &'static str) -> &'a [u8] {
            key.as_bytes()
        }
        untried_first(P2c::seeded(1), &states, key);
        untried_first(P2c::seeded(1).choices(3), &states, key);
        untried_first(LeastLoaded::seeded(1), &states, key);
        untried_first(Random::seeded(1), &states, key);
        untried_first(RoundRobin::seeded(1), &states, key);
        untried_first(WeightedRoundRobin::seeded(1), &states, key);
        untried_first(RingHash::by(bytes), &states, key);
        untried_first(Maglev::by(bytes), &states, key);
        untried_first(Rendezvous::by(bytes), &states, key);
        untried_first(RingHash::by(bytes).bounded(1.25).unwrap(), &states, key);
        untried_first(Maglev::by(bytes).bounded(1.25).unwrap(), &states, key);
        untried_first(Rendezvous::by(bytes).bounded(1.25).unwrap(), &states, key);
        untried_first(InOrder, &states, key);
    }
}

/// With a hash policy the tries follow the key's own order of distinct hosts.
#[tokio::test(start_paused = true)]
async fn a_hash_policy_walks_to_the_next_distinct_host() {
    let servers = servers(&[Behaviour::Fail(ms(0)); 6]);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RingHash::by(|key: &&'static str| {
            key.as_bytes()
        })))
        .layer(fixed(0..6))
        .service(factory(&servers));
    settle().await;
    for key in ["a", "b", "c", "d", "e"] {
        let order = balance.with_table(|members, ring| {
            let replicas = ring.replicas(key.as_bytes(), 6);
            let replicas = replicas.map(|at| *members[at].endpoint().address());
            replicas.collect::<Vec<_>>()
        });
        let tried = Tried::new();
        for _ in 0..6 {
            balance.ready().await.unwrap();
            balance.call_excluding(key, &tried).await.unwrap_err();
        }
        let walked: Vec<_> = tried.endpoints().iter().map(|e| *e.address()).collect();
        assert_eq!(walked, order, "of {key}");
    }
}

/// An endpoint that joins while a request waits for want of another is one that is not tried.
#[tokio::test(start_paused = true)]
async fn a_retry_that_waits_goes_to_one_that_joins() {
    let servers = servers(&[Behaviour::Answer(ms(0)); 2]);
    let (targets, rx) = watch::channel(vec![0]);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    let tried = Tried::new();
    assert_eq!(balance.call_excluding((), &tried).await.unwrap(), 0);
    servers[0].allow(0);
    let answer = tokio::spawn(balance.call_excluding((), &tried));
    settle().await;
    targets.send_replace(vec![0, 1]);
    assert_eq!(answer.await.unwrap().unwrap(), 1);
}

/// One member fails to become ready, another is not ready: who waits is woken by what changes, and by nothing else.
#[tokio::test(start_paused = true)]
async fn who_waits_beside_a_failed_member_does_not_spin() {
    let servers = servers(&[Behaviour::Answer(ms(0)); 2]);
    servers[0].fail_readiness(true);
    servers[1].allow(0);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(0..2))
        .service(factory(&servers));
    let polls = Arc::new(Mutex::new(0));
    let counted = polls.clone();
    let waiting = tokio::spawn(async move {
        std::future::poll_fn(|cx| {
            *counted.lock().unwrap() += 1;
            Service::<()>::poll_ready(&mut balance, cx)
        })
        .await
        .unwrap();
        balance.call(()).await
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(
        *polls.lock().unwrap() < 10,
        "{} polls",
        polls.lock().unwrap()
    );
    servers[1].allow(1);
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
}

/// An endpoint that leaves while its try is under way, and comes back, has been tried and has a name.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_left_is_named_and_left_out_when_it_is_back() {
    let (calls, make) = backends(|_| (ms(10), Act::Fail(ErrorKind::Other)));
    let (targets, rx) = watch::channel(vec![0, 1]);
    let client = ServiceBuilder::new()
        .layer(
            FailoverLayer::new(Idempotent::all())
                .attempts(2)
                .backoff(ms(0), ms(0)),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(WatchLayer::new(rx))
        .service(make);
    let answer = tokio::spawn(client.oneshot(Get));
    sleep(ms(5)).await;
    targets.send_replace(vec![1]);
    settle().await;
    targets.send_replace(vec![0, 1]);
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
    assert_eq!(names(&error), ["0", "1"]);
}

/// A try that nobody was ready for blames nobody, and is one to try again.
#[tokio::test(start_paused = true)]
async fn a_try_that_was_never_sent_names_no_endpoint() {
    let servers = servers(&[Behaviour::Fail(ms(0)), Behaviour::Answer(ms(0))]);
    servers[0].allow(1);
    servers[1].allow(0);
    let client = ServiceBuilder::new()
        .layer(
            FailoverLayer::new(Idempotent::all())
                .try_timeout(ms(50))
                .backoff(ms(0), ms(0)),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(0..2))
        .service(factory(&servers));
    let error = client.clone().oneshot(()).await.unwrap_err();
    assert_eq!(names(&error), ["0", "?", "?"]);
    // The second try finds nobody in time, the third does.
    servers[0].allow(1);
    let answer = tokio::spawn(client.oneshot(()));
    sleep(ms(75)).await;
    servers[1].allow(1);
    assert_eq!(answer.await.unwrap().unwrap(), 1);
}

/// Takes no answer for a rejection.
#[derive(Clone, Debug)]
struct NoRejections;

impl<T, E> Classify<T, E> for NoRejections {
    fn classify(&self, _: Result<&T, &E>) -> Outcome {
        Outcome::Ignore
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_turned_away_on_this_side_is_not_tried_again() {
    let (calls, make) = backends(|_| (Duration::ZERO, Act::Answer(200)));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()))
        .layer(LimitLayer::new(0))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0, 1]))
        .service(make);
    assert!(client.oneshot(Get).await.unwrap_err().is::<LimitReached>());
    // Between the two, a throttle sees retries too, and passes on whom they leave out.
    let (tried, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::Other)));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()).attempts(2))
        .layer(AdaptiveThrottleLayer::default().classify(NoRejections))
        .layer(LimitLayer::new(10))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0, 1]))
        .service(make);
    let error = client.oneshot(Get).await.unwrap_err();
    assert_eq!(names(&error), ["0", "1"]);
    assert_eq!(
        (calls.lock().unwrap().len(), &*tried.lock().unwrap()),
        (0, &vec![0, 1])
    );
}

/// A try that timed out and is not tried again is dropped with what it counts, though its future is still held.
#[tokio::test(start_paused = true)]
async fn a_try_that_timed_out_for_good_is_let_go_at_once() {
    let servers = servers(&[Behaviour::Hang]);
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed([0]))
        .service(factory(&servers));
    let mut client = FailoverLayer::new(ConnectErrors::default())
        .try_timeout(ms(10))
        .layer(balance.clone());
    let mut answer = std::pin::pin!(client.ready().await.unwrap().call(()));
    assert!(answer.as_mut().await.unwrap_err().is::<TryTimedOut>());
    assert_eq!(balance.endpoints()[0].service().in_flight(), 0);
}

// Budgets.

fn withdrawals(budget: &Budget) -> u32 {
    let mut withdrawn = 0;
    while budget.withdraw() {
        withdrawn += 1;
    }
    withdrawn
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_exact_for_any_ratio() {
    for ratio in [
        0.01,
        0.3,
        0.4,
        0.6,
        0.75,
        0.99,
        2.0,
        0.2,
        1.0,
        0.0,
        1.0 / 3.0,
        100.0,
    ] {
        for minimum in [0, 10] {
            for deposits in [0, 1, 7, 99, 10_000] {
                let budget = Budget::new().ratio(ratio).minimum(minimum);
                (0..deposits).for_each(|_| budget.deposit());
                let exact = ratio * f64::from(deposits) + f64::from(minimum) * 10.0;
                let withdrawn = f64::from(withdrawals(&budget));
                assert!(
                    withdrawn <= exact + 1e-6 && withdrawn > exact - 1.0 - 1e-3,
                    "{withdrawn} of {exact}, ratio {ratio}"
                );
                // Deposits and withdrawals by turns: the same in all.
                let budget = Budget::new().ratio(ratio).minimum(minimum);
                let mut by_turns = 0;
                for _ in 0..deposits {
                    budget.deposit();
                    by_turns += u32::from(budget.withdraw());
                }
                by_turns += withdrawals(&budget);
                let most = f64::from(deposits).max(0.0) + exact;
                assert!(f64::from(by_turns) <= exact.min(most) + 1e-6);
                assert!(
                    f64::from(by_turns) > exact - 1.0 - 1e-3,
                    "{by_turns} of {exact}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn deposits_and_withdrawals_are_forgotten_after_the_ttl() {
    let budget = Budget::new().minimum(1).ratio(0.5);
    (0..20).for_each(|_| budget.deposit());
    assert_eq!(withdrawals(&budget), 20);
    advance(ms(9_999)).await;
    assert_eq!(withdrawals(&budget), 0);
    advance(ms(1)).await;
    assert_eq!(withdrawals(&budget), 10, "the minimum is there again");
    advance(secs(10)).await;
    (0..20).for_each(|_| budget.deposit());
    advance(ms(9_999)).await;
    // To within one: which slot the first few fell into is not looked at.
    assert!((19.0..=20.0).contains(&budget.balance()));
    advance(ms(1)).await;
    assert_eq!(budget.balance(), 10.0, "but not the deposits");
}

/// In any ttl, whatever happens: the ratio of the requests and the minimum.
#[tokio::test(start_paused = true)]
async fn a_steady_stream_of_failures_is_retried_at_the_ratio_and_the_minimum() {
    for (ratio, minimum) in [(0.2, 10), (0.3, 0), (0.01, 1), (2.0, 5)] {
        let budget = Budget::new().ratio(ratio).minimum(minimum);
        let mut retries = 0_u32;
        // 100 a second for 200 s, each one failing; the first 100 s spend what was saved up.
        for i in 0..20_000 {
            budget.deposit();
            for _ in 0..3 {
                let retried = budget.withdraw();
                retries += u32::from(retried && i >= 10_000);
            }
            advance(ms(10)).await;
        }
        let expected = (100.0 * ratio + f64::from(minimum)).min(300.0) * 100.0;
        let share = f64::from(retries) / expected;
        assert!((0.97..1.03).contains(&share), "{retries} of {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_month_leaves_nothing_and_is_not_caught_up_on() {
    let budget = Budget::new();
    (0..1003).for_each(|_| budget.deposit());
    advance(secs(30 * 24 * 60 * 60)).await;
    (0..1000).for_each(|_| budget.deposit());
    let withdrawn = withdrawals(&budget);
    assert!((299..=301).contains(&withdrawn), "{withdrawn}");
    advance(secs(30 * 24 * 60 * 60)).await;
    assert_eq!(withdrawals(&budget), 100);
}

#[tokio::test(start_paused = true)]
async fn clones_share_a_budget_and_drawing_ones_deposit_nothing() {
    let budget = Budget::new().minimum(0).ratio(1.0);
    let clone = budget.clone();
    let drawing = budget.drawing();
    clone.deposit();
    drawing.deposit();
    assert_eq!(budget.balance(), 1.0);
    assert!(drawing.clone().withdraw());
    assert!(!budget.withdraw());
    let other = budget.clone().ratio(0.5);
    other.deposit();
    assert_eq!(budget.balance(), 0.0, "changed ones are new ones");
}

#[test]
fn a_budget_loses_and_invents_nothing_between_threads() {
    let budget = Budget::new().minimum(0).ratio(0.25);
    let withdrawn: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..20_000)
                        .map(|_| {
                            budget.deposit();
                            u32::from(budget.withdraw())
                        })
                        .sum::<u32>()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    // At most what is left in the purses is not withdrawn yet; within the ttl none is lost.
    let left = budget.balance();
    assert_eq!(f64::from(withdrawn) + left, 20_000.0);
    assert!(left < 4.0 * 1.25 + 1.0, "{left}");
}

#[tokio::test(start_paused = true)]
async fn towers_retry_takes_our_budgets() {
    fn take(budget: &dyn tower::retry::budget::Budget) -> bool {
        budget.deposit();
        budget.withdraw()
    }
    assert!(take(&Budget::new()));
    assert!(take(&TokenThrottle::new(10, 0.1)));

    #[derive(Clone)]
    struct Attempts(Budget);
    impl<E> tower::retry::Policy<Verb, u16, E> for Attempts {
        type Future = std::future::Ready<()>;
        fn retry(&mut self, _: &mut Verb, result: &mut Result<u16, E>) -> Option<Self::Future> {
            let failed = result.is_err();
            (failed && self.0.withdraw()).then(|| std::future::ready(()))
        }
        fn clone_request(&mut self, request: &Verb) -> Option<Verb> {
            Some(*request)
        }
    }
    let (calls, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::Other)));
    let budget = Budget::new().minimum(1);
    let client = ServiceBuilder::new()
        .retry(Attempts(budget.clone()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    client.oneshot(Get).await.unwrap_err();
    assert_eq!(calls.lock().unwrap().len(), 11, "one, and ten retries");
    assert!(!budget.withdraw());
}

/// The retries that a whole stack makes are those that the budget allows.
#[tokio::test(start_paused = true)]
async fn failover_deposits_first_tries_only_and_stays_within_its_budget() {
    let (calls, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::Other)));
    for ratio in [0.01, 0.2, 0.3, 0.75, 2.0] {
        calls.lock().unwrap().clear();
        let mut client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(Idempotent::all())
                    .backoff(ms(0), ms(0))
                    .attempts(10)
                    .budget(Budget::new().minimum(0).ratio(ratio)),
            )
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed([0, 1]))
            .service(make.clone());
        let mut last = None;
        for _ in 0..1000 {
            last = client.ready().await.unwrap().call(Get).await.err();
        }
        if ratio < 1.0 {
            assert_eq!(stopped(&last.unwrap()), Stopped::Budget);
        }
        let retries = calls.lock().unwrap().len() as f64 - 1000.0;
        let exact = 1000.0 * ratio;
        assert!(
            retries <= exact + 1e-6 && retries >= exact - 2.0,
            "{retries}"
        );
    }
}

/// gRFC A6: of 10 tokens five failures leave 5.0, and no more retries; one success makes it 5.1.
#[tokio::test(start_paused = true)]
async fn the_token_throttle_is_grpcs() {
    let throttle = TokenThrottle::new(10, 0.1);
    for left in [9.0, 8.0, 7.0, 6.0] {
        assert!(throttle.failed());
        assert_eq!(throttle.tokens(), left);
    }
    assert!(!throttle.failed());
    assert_eq!(throttle.tokens(), 5.0);
    throttle.succeeded();
    assert_eq!(throttle.tokens(), 5.1);
    assert!(throttle.allows());
    // Never below nothing, never above all.
    (0..20).for_each(|_| assert!(!throttle.failed()));
    assert_eq!(throttle.tokens(), 0.0);
    (0..200).for_each(|_| throttle.succeeded());
    assert_eq!(throttle.tokens(), 10.0);
    // Through the layer: the first request's tries are two failures and a success.
    let broken = Arc::new(Mutex::new(true));
    let script = broken.clone();
    let (calls, make) = backends(move |_| {
        let act = match *script.lock().unwrap() {
            true => Act::Fail(ErrorKind::Other),
            false => Act::Answer(200),
        };
        (Duration::ZERO, act)
    });
    let throttle = TokenThrottle::new(10, 0.1);
    let client = ServiceBuilder::new()
        .layer(
            FailoverLayer::new(Idempotent::all())
                .attempts(4)
                .throttle(throttle.clone()),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..9))
        .service(make);
    let error = client.clone().oneshot(Get).await.unwrap_err();
    assert_eq!(stopped(&error), Stopped::Attempts);
    assert_eq!((throttle.tokens(), calls.lock().unwrap().len()), (6.0, 4));
    let error = client.clone().oneshot(Get).await.unwrap_err();
    assert_eq!(stopped(&error), Stopped::Budget);
    assert_eq!((throttle.tokens(), calls.lock().unwrap().len()), (5.0, 5));
    *broken.lock().unwrap() = false;
    client.oneshot(Get).await.unwrap();
    assert_eq!(throttle.tokens(), 5.1);
}

#[tokio::test(start_paused = true)]
async fn only_answers_that_are_well_fill_the_throttle() {
    let (_, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::ConnectionReset)));
    let throttle = TokenThrottle::new(10, 1.0);
    (0..8).for_each(|_| assert!(throttle.failed() || throttle.tokens() <= 5.0));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::when(is_get)).throttle(throttle.clone()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    client.clone().oneshot(Post).await.unwrap_err();
    assert_eq!(throttle.tokens(), 2.0, "a failure that is not tried again");
    client.oneshot(Get).await.unwrap_err();
    assert_eq!(throttle.tokens(), 1.0, "one that would be");
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let refused = |what: &str, set: fn()| {
        assert!(std::panic::catch_unwind(set).is_err(), "{what}");
    };
    refused("a ttl of nothing", || {
        drop(Budget::new().ttl(Duration::ZERO))
    });
    refused("an endless ttl", || drop(Budget::new().ttl(Duration::MAX)));
    refused("a negative ratio", || drop(Budget::new().ratio(-0.1)));
    refused("no ratio", || drop(Budget::new().ratio(f64::NAN)));
    refused("no tokens", || drop(TokenThrottle::new(0, 0.1)));
    refused("no success", || drop(TokenThrottle::new(10, 0.0)));
    refused("no attempts", || {
        drop(FailoverLayer::new(ConnectErrors::default()).attempts(0));
    });
    refused("a K below one", || {
        drop(AdaptiveThrottleLayer::default().k(0.5));
    });
    refused("no window", || {
        drop(AdaptiveThrottleLayer::default().window(Duration::ZERO));
    });
    // And the largest are taken.
    let budget = Budget::new().minimum(u32::MAX).ratio(100.0).ttl(secs(60));
    (0..1000).for_each(|_| budget.deposit());
    assert!(budget.withdraw());
    assert_eq!(TokenThrottle::new(1000, 1e-9).tokens(), 1000.0);
}

// Hedging.

/// Server 0 takes `slow`, the others 1 ms.
fn one_slow(
    slow: Duration,
    act: Act,
) -> (Calls, impl Fn(&Endpoint<usize>) -> BoxedBackend + Clone) {
    backends(move |endpoint| match endpoint {
        0 => (slow, act),
        _ => (ms(1), Act::Answer(200 + endpoint as u16)),
    })
}

#[tokio::test(start_paused = true)]
async fn a_slow_request_goes_to_another_endpoint_and_the_first_answer_wins() {
    for (slow, answer, after, sent) in [
        (ms(5), 200, 5, vec![0]),
        (ms(10_000), 201, 11, vec![0, 1]),
        // The first one wins after all.
        (Duration::from_micros(10_500), 200, 11, vec![0, 1]),
    ] {
        let (calls, make) = one_slow(slow, Act::Answer(200));
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer(each(PendingRequestsLayer::default()))
            .layer(fixed(0..3))
            .service(make);
        let client = HedgeLayer::after(ms(10), Idempotent::all()).layer(balance.clone());
        let start = Instant::now();
        assert_eq!(client.oneshot(Get).await.unwrap(), answer);
        let elapsed = start.elapsed();
        assert!(
            elapsed >= ms(after) && elapsed <= ms(after + 1),
            "{elapsed:?}"
        );
        assert_eq!(*calls.lock().unwrap(), sent);
        // The loser is gone, and its load with it.
        let members = balance.endpoints();
        assert!(
            members
                .iter()
                .all(|member| member.service().in_flight() == 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_immediate_failure_sends_the_second_at_once() {
    let (calls, make) = one_slow(Duration::ZERO, Act::Fail(ErrorKind::Other));
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(secs(1), Idempotent::all()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..3))
        .service(make);
    let start = Instant::now();
    assert_eq!(client.oneshot(Get).await.unwrap(), 201);
    assert!(start.elapsed() <= ms(2));
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_fails_does_not_hide_the_first_answer() {
    let (_, make) = backends(|endpoint| match endpoint {
        0 => (ms(50), Act::Answer(200)),
        _ => (ms(1), Act::Fail(ErrorKind::Other)),
    });
    let client = |n| {
        ServiceBuilder::new()
            .layer(HedgeLayer::after(ms(10), Idempotent::all()))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..n))
            .service(make.clone())
    };
    assert_eq!(client(2).oneshot(Get).await.unwrap(), 200);
    // Both fail: the error names both.
    let (_, make) = backends(|_| (ms(20), Act::Fail(ErrorKind::Other)));
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(make);
    let error = client.oneshot(Get).await.unwrap_err();
    assert_eq!(names(&error), ["0", "1"]);
}

#[tokio::test(start_paused = true)]
async fn unsafe_requests_and_those_beyond_the_budget_are_not_hedged() {
    let (calls, make) = one_slow(ms(100), Act::Answer(200));
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::when(is_get)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..3))
        .service(make.clone());
    assert_eq!(client.oneshot(Post).await.unwrap(), 200);
    assert_eq!(*calls.lock().unwrap(), [0]);
    let spent = Budget::new().minimum(0);
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()).budget(spent))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..3))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 200);
    assert_eq!(*calls.lock().unwrap(), [0, 0]);
}

/// A hash policy chooses in the response future, which may wait: nothing is hedged before something was sent.
#[tokio::test(start_paused = true)]
async fn what_was_not_sent_is_not_hedged() {
    let servers = servers(&[Behaviour::Answer(ms(100)); 2]);
    servers.iter().for_each(|server| server.allow(0));
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()))
        .layer(BalanceLayer::new(RingHash::by(|(): &()| b"key")))
        .layer(fixed(0..2))
        .service(factory(&servers));
    let answer = tokio::spawn(client.oneshot(()));
    sleep(ms(55)).await;
    servers.iter().for_each(|server| server.allow(2));
    settle().await;
    let calls = |servers: &[Server]| servers.iter().map(Server::calls).collect::<Vec<_>>();
    assert_eq!(calls(&servers).iter().sum::<usize>(), 1);
    answer.await.unwrap().unwrap();
    assert_eq!(calls(&servers), [1, 1], "and then to the other one");
}

#[tokio::test(start_paused = true)]
async fn hedging_over_failover_leaves_out_whom_either_tried() {
    let (calls, make) = backends(|endpoint| match endpoint {
        0 => (ms(1), Act::Fail(ErrorKind::Other)),
        1 => (secs(1), Act::Answer(201)),
        2 => (ms(1), Act::Fail(ErrorKind::Other)),
        _ => (ms(1), Act::Answer(203)),
    });
    let budget = Budget::new();
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()).budget(budget.drawing()))
        .layer(
            FailoverLayer::new(Idempotent::all())
                .backoff(ms(0), ms(0))
                .budget(budget),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..5))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 203);
    assert_eq!(*calls.lock().unwrap(), [0, 1, 2, 3]);
}

/// The hedge goes out first, then the first try fails: its retry leaves out whom the hedge has.
#[tokio::test(start_paused = true)]
async fn a_retry_below_a_hedge_leaves_out_whom_the_hedge_has() {
    let (calls, make) = backends(|endpoint| match endpoint {
        0 => (ms(20), Act::Fail(ErrorKind::Other)),
        1 => (ms(0), Act::Hang),
        _ => (ms(1), Act::Answer(202)),
    });
    let budget = Budget::new().ratio(1.0);
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()).budget(budget.drawing()))
        .layer(
            FailoverLayer::new(Idempotent::all())
                .backoff(ms(0), ms(0))
                .budget(budget.clone()),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..3))
        .service(make);
    let start = Instant::now();
    assert_eq!(client.oneshot(Get).await.unwrap(), 202);
    assert!(start.elapsed() < ms(30));
    assert_eq!(*calls.lock().unwrap(), [0, 1, 2]);
    // One first try, one hedge, one retry.
    assert_eq!(budget.balance(), 100.0 + 1.0 - 2.0);
}

#[tokio::test(start_paused = true)]
async fn without_another_endpoint_there_is_no_hedge_and_nothing_is_paid() {
    let (calls, make) = one_slow(ms(100), Act::Answer(200));
    let budget = Budget::new();
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()).budget(budget.clone()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 200);
    assert_eq!(*calls.lock().unwrap(), [0]);
    assert_eq!(budget.balance(), 100.2);
}

#[tokio::test(start_paused = true)]
async fn hedges_that_nobody_is_ready_for_are_not_paid() {
    let servers = servers(&[Behaviour::Hang, Behaviour::Answer(ms(0))]);
    servers[1].allow(0);
    let budget = Budget::new().minimum(1).ratio(0.0);
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()).budget(budget.clone()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(factory(&servers));
    for _ in 0..50 {
        assert!(timeout(ms(50), client.clone().oneshot(())).await.is_err());
    }
    assert_eq!(budget.balance(), 10.0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_hears_of_pushback_up_to_the_longest() {
    for (pause, answered, sent) in [(ms(700), 201, 2), (secs(86_400), 503, 1)] {
        let (calls, make) = one_slow(Duration::ZERO, Act::Answer(503));
        let client = ServiceBuilder::new()
            .layer(HedgeLayer::after(ms(10), ComeBack(pause)))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..2))
            .service(make);
        let start = Instant::now();
        assert_eq!(client.oneshot(Get).await.unwrap(), answered);
        assert!(start.elapsed() < secs(1));
        assert_eq!(calls.lock().unwrap().len(), sent);
    }
}

#[tokio::test(start_paused = true)]
async fn no_delay_at_all_sends_two_at_once_and_does_not_spin() {
    let (calls, make) = one_slow(ms(100), Act::Answer(200));
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(Duration::ZERO, Idempotent::all()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 201);
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
    let servers = servers(&[Behaviour::Answer(ms(0))]);
    servers[0].allow(0);
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(Duration::ZERO, Idempotent::all()))
        .layer(BalanceLayer::new(RingHash::by(|(): &()| b"key")))
        .layer(fixed([0]))
        .service(factory(&servers));
    let mut polls = 0;
    let mut answer = std::pin::pin!(client.oneshot(()));
    let waiting = std::future::poll_fn(|cx| {
        polls += 1;
        answer.as_mut().poll(cx)
    });
    assert!(timeout(ms(100), waiting).await.is_err());
    assert!(polls < 300, "{polls} polls in 100 ms");
}

/// What the policy does not try again is an answer, error or not, whichever try it comes from.
#[tokio::test(start_paused = true)]
async fn a_hedges_error_that_is_an_answer_wins() {
    #[derive(Clone, Copy, Debug)]
    struct NotFoundIsAnAnswer;
    impl Classify<u16, BoxError> for NotFoundIsAnAnswer {
        fn classify(&self, answer: Result<&u16, &BoxError>) -> Outcome {
            let kind = answer
                .err()
                .and_then(|error| error.downcast_ref::<io::Error>());
            match kind.map(io::Error::kind) {
                Some(ErrorKind::NotFound) | None => Outcome::Success,
                _ => Outcome::Failure,
            }
        }
    }
    let (_, make) = backends(|endpoint| match endpoint {
        0 => (secs(10), Act::Answer(200)),
        _ => (ms(1), Act::Fail(ErrorKind::NotFound)),
    });
    let policy = Idempotent::all().classify(NotFoundIsAnAnswer);
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), policy))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(make);
    let start = Instant::now();
    assert!(client.oneshot(Get).await.unwrap_err().is::<io::Error>());
    assert!(start.elapsed() <= ms(12));
}

#[tokio::test(start_paused = true)]
async fn both_failures_are_named_whichever_comes_first() {
    for first in [15, 50] {
        let (_, make) = backends(move |endpoint| {
            let after = if endpoint == 0 { first } else { 20 };
            (ms(after), Act::Fail(ErrorKind::Other))
        });
        let client = ServiceBuilder::new()
            .layer(HedgeLayer::after(ms(10), Idempotent::all()))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..2))
            .service(make);
        let error = client.oneshot(Get).await.unwrap_err();
        let expected = if first == 15 { ["0", "1"] } else { ["1", "0"] };
        assert_eq!(names(&error), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_loser_is_let_go_though_the_winners_future_is_held() {
    let (_, make) = one_slow(secs(1), Act::Answer(200));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(0..2))
        .service(make);
    let mut client = HedgeLayer::after(ms(10), Idempotent::all()).layer(balance.clone());
    let mut answer = std::pin::pin!(client.ready().await.unwrap().call(Get));
    assert_eq!(answer.as_mut().await.unwrap(), 201);
    let members = balance.endpoints();
    assert!(
        members
            .iter()
            .all(|member| member.service().in_flight() == 0)
    );
}

/// Dean and Barroso's figure: LogN(ln 4, .4) with 2 % of stragglers U(100, 2000), a hedge after 10. In seconds, for tokio's
/// timers count milliseconds.
#[test]
fn a_hedge_after_10_makes_a_99th_percentile_of_1047_one_of_14() {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    const REQUESTS: usize = 200_000;

    fn p99(hedged: bool) -> (f64, f64) {
        run(async move {
            let rng = Arc::new(Mutex::new(SmallRng::seed_from_u64(5)));
            let latency = move || {
                let rng = &mut rng.lock().unwrap();
                if rng.random::<f64>() < 0.02 {
                    return rng.random_range(100.0..2000.0);
                }
                let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
                let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                4.0 * (0.4 * normal).exp()
            };
            let (calls, make) =
                backends(move |_| (Duration::from_secs_f64(latency()), Act::Answer(200)));
            let delay = if hedged { secs(10) } else { Duration::MAX };
            let client = ServiceBuilder::new()
                .layer(
                    HedgeLayer::after(delay, Idempotent::all())
                        .budget(Budget::new().minimum(1_000_000)),
                )
                .layer(BalanceLayer::new(P2c::seeded(1)))
                .layer(each(PendingRequestsLayer::default()))
                .layer(fixed(0..10))
                .service(make);
            let start = Instant::now();
            let tasks: Vec<_> = (0..REQUESTS)
                .map(|_| {
                    let request = client.clone().oneshot(Get);
                    tokio::spawn(async move {
                        request.await.unwrap();
                        start.elapsed().as_secs_f64()
                    })
                })
                .collect();
            let mut latencies = Vec::new();
            for task in tasks {
                latencies.push(task.await.unwrap());
            }
            latencies.sort_by(f64::total_cmp);
            let sent = calls.lock().unwrap().len();
            let more = sent as f64 / REQUESTS as f64 - 1.0;
            (latencies[REQUESTS * 99 / 100], more)
        })
    }
    let within = |what: &str, value: f64, expected: f64| {
        println!("{what} {value:.4}, expected {expected}");
        assert!((value / expected - 1.0).abs() < 0.05, "{what}: {value}");
    };
    let (plain, none) = p99(false);
    within("p99 without hedging", plain, 1047.0);
    assert_eq!(none, 0.0);
    let (hedged, more) = p99(true);
    within("p99 with hedging", hedged, 14.1);
    within("more requests", more, 0.031);
}

#[tokio::test(start_paused = true)]
async fn hedges_go_out_after_a_measured_percentile() {
    // Of 100 requests to server 0, 95 take 10 ms and 5 take a second.
    let count = Arc::new(Mutex::new(0_u32));
    let (calls, make) = backends(move |endpoint| {
        let mut count = count.lock().unwrap();
        *count += u32::from(endpoint == 0);
        let slow = endpoint == 0 && *count % 20 == 0;
        (if slow { secs(1) } else { ms(10) }, Act::Answer(200))
    });
    let mut client = ServiceBuilder::new()
        .layer(
            HedgeLayer::at_percentile(0.9, Idempotent::all())
                .budget(Budget::new().minimum(1_000_000)),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(make);
    let mut latencies = Vec::new();
    for _ in 0..400 {
        let start = Instant::now();
        client.ready().await.unwrap().call(Get).await.unwrap();
        latencies.push(start.elapsed());
    }
    let slow = |latencies: &[Duration]| latencies.iter().filter(|&&l| l >= ms(1000)).count();
    // Read after 64, when there are too few, and after 128.
    assert_eq!(
        slow(&latencies[..128]),
        6,
        "nothing is hedged before enough is measured"
    );
    assert_eq!(slow(&latencies[128..]), 0);
    assert!(latencies[128..].iter().all(|&latency| latency <= ms(23)));
    let hedges = calls.lock().unwrap().iter().filter(|&&to| to == 1).count();
    assert_eq!(hedges, 14, "of the slow ones, and no others");
}

// Throttling and limits.

/// TABLES.md P25, and a service that is well.
#[test]
fn an_adaptive_throttle_rejects_what_the_backends_would() {
    for (offered, expected) in [
        (0.5, 0.0),
        (1.5, 0.0),
        (2.0, 0.0),
        (3.0, 0.333),
        (4.0, 0.5),
        (10.0, 0.8),
    ] {
        run(async move {
            const ACCEPTED: u32 = 50;
            let start = Instant::now();
            let accepted = Arc::new(Mutex::new((0_u64, 0_u32)));
            let backend = service_fn(move |()| {
                let second = start.elapsed().as_secs();
                let mut accepted = accepted.lock().unwrap();
                if accepted.0 != second {
                    *accepted = (second, 0);
                }
                accepted.1 += 1;
                let is_accepted = accepted.1 <= ACCEPTED;
                std::future::ready(is_accepted.then_some(()).ok_or("too many"))
            });
            let mut client = AdaptiveThrottleLayer::default().seeded(3).layer(backend);
            let per_second = (f64::from(ACCEPTED) * offered) as u32;
            let (mut rejected, mut sent) = (0_u32, 0_u32);
            for i in 0..per_second * 600 {
                tokio::time::sleep_until(start + secs(1) * i / per_second).await;
                let answer = client.ready().await.unwrap().call(()).await;
                // Once the window is full twice.
                if start.elapsed() >= secs(300) {
                    sent += 1;
                    rejected += u32::from(answer.is_err_and(|error| error.is::<Throttled>()));
                }
            }
            let share = f64::from(rejected) / f64::from(sent);
            println!("offered {offered}: {share:.4} rejected, expected {expected}");
            assert!((share - expected).abs() <= 0.01, "{share} at {offered}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_is_as_if_it_had_not_been_throttled_for() {
    let hanging = service_fn(|()| std::future::pending::<Result<(), BoxError>>());
    let throttle = AdaptiveThrottleLayer::default().layer(hanging);
    for _ in 0..100 {
        assert!(timeout(ms(1), throttle.clone().oneshot(())).await.is_err());
    }
    assert_eq!(throttle.probability(), 0.0);
    // Where backends reject all, nearly all is rejected here; two minutes later all is forgotten.
    let broken = service_fn(|()| std::future::ready(Err::<(), _>("no")));
    let mut throttle = AdaptiveThrottleLayer::default().layer(broken);
    for _ in 0..1000 {
        throttle.ready().await.unwrap().call(()).await.unwrap_err();
    }
    assert!(throttle.probability() > 0.99);
    advance(secs(120)).await;
    assert_eq!(throttle.probability(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_rejects_by_name_and_makes_room_again() {
    let (_, make) = one_slow(ms(100), Act::Answer(200));
    let client = ServiceBuilder::new()
        .layer(LimitLayer::new(2).named("payments"))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(tokio::spawn(client.clone().oneshot(Get)));
    }
    settle().await;
    assert_eq!(client.in_flight(), 2);
    let error = answers.pop().unwrap().await.unwrap().unwrap_err();
    let limit = error.downcast_ref::<LimitReached>().unwrap();
    assert_eq!((limit.max(), limit.name()), (2, Some("payments")));
    assert_eq!(
        error.to_string(),
        "payments: the limit of 2 requests in flight is reached"
    );
    // One ends, one is given up.
    answers.pop().unwrap().abort();
    answers.pop().unwrap().await.unwrap().unwrap();
    settle().await;
    assert_eq!(client.in_flight(), 0);
    client.clone().oneshot(Get).await.unwrap();
    let none = LimitLayer::new(0).layer(client);
    assert!(none.oneshot(Get).await.unwrap_err().is::<LimitReached>());
}

/// What tower's own layers do, as the docs of the module say.
#[tokio::test(start_paused = true)]
async fn towers_limits_work_for_each_endpoint_and_for_the_whole() {
    let (calls, make) = one_slow(ms(100), Act::Answer(200));
    let client = ServiceBuilder::new()
        .load_shed()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(ConcurrencyLimitLayer::new(1)))
        .layer(fixed([0, 1]))
        .service(make);
    settle().await;
    let mut handles: Vec<_> = (0..3).map(|_| client.clone()).collect();
    let mut answers = Vec::new();
    for handle in &mut handles {
        answers.push(handle.ready().await.unwrap().call(Get));
    }
    // The full one is passed over; when both are, the third is shed.
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
    let error = answers.pop().unwrap().await.unwrap_err();
    assert!(error.is::<Overloaded>());
    for answer in answers {
        answer.await.unwrap();
    }
    // Without shedding, readiness waits.
    let (_, make) = one_slow(ms(100), Act::Answer(200));
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(ConcurrencyLimitLayer::new(1)))
        .layer(fixed([0]))
        .service(make);
    settle().await;
    let answer = client.ready().await.unwrap().call(Get);
    assert!(poll_ready_once(&mut client).await.is_pending());
    answer.await.unwrap();
    assert!(poll_ready_once(&mut client).await.is_ready());
}

// Metastability.

/// Four servers with a queue each, `rate` requests a second in all.
fn queues(rate: watch::Receiver<u64>) -> impl Fn(&Endpoint<usize>) -> BoxedBackend + Clone {
    use tokio::sync::{mpsc, oneshot};
    move |_: &Endpoint<usize>| {
        let (queue, mut requests) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let rate = rate.clone();
        tokio::spawn(async move {
            while let Some(answer) = requests.recv().await {
                let service = secs(4) / *rate.borrow() as u32;
                sleep(service).await;
                // Work is done for those who have given up, too.
                let _ = answer.send(());
            }
        });
        BoxedBackend::new(service_fn(move |_: Verb| {
            let (tx, rx) = oneshot::channel();
            let _ = queue.send(tx);
            async move { rx.await.map(|()| 200).map_err(io::Error::other) }
        }))
    }
}

/// TABLES.md P26: capacity 1000/s, offered 700/s, a timeout of 1 s for a try, 3 attempts, capacity 300 for 10 s.
/// Returns the goodput of each second.
fn goodput(budget: Budget, seconds: u64) -> Vec<u32> {
    run(async move {
        let (rate, rx) = watch::channel(1000);
        let client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(Idempotent::all())
                    .try_timeout(secs(1))
                    .budget(budget)
                    .seeded(1),
            )
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(fixed(0..4))
            .service(queues(rx));
        let good = Arc::new(Mutex::new(vec![0; seconds as usize + 1]));
        let start = Instant::now();
        for tick in 0..seconds * 100 {
            tokio::time::sleep_until(start + ms(10) * tick as u32).await;
            let capacity = if (1000..2000).contains(&tick) {
                300
            } else {
                1000
            };
            rate.send_replace(capacity);
            for _ in 0..7 {
                let (client, good) = (client.clone(), good.clone());
                tokio::spawn(async move {
                    if client.oneshot(Get).await.is_ok() {
                        let second = start.elapsed().as_secs() as usize;
                        if let Some(good) = good.lock().unwrap().get_mut(second) {
                            *good += 1;
                        }
                    }
                });
            }
        }
        let good = good.lock().unwrap();
        good[..seconds as usize].to_vec()
    })
}

#[test]
fn a_budget_ends_an_outage_that_retries_alone_would_keep_up() {
    // Far more than anybody retries: as without one.
    let without = goodput(Budget::new().minimum(1_000_000), 90);
    println!("without a budget, each second: {without:?}");
    assert!(without[2..10].iter().all(|&good| good >= 690), "before it");
    let after: u32 = without[60..].iter().sum();
    assert!(after < 30 * 35, "{after} in 30 s: it should stay down");
    let with = goodput(Budget::new().minimum(0).ratio(0.2), 90);
    println!("with a budget of 20 %, each second: {with:?}");
    let recovered = with[20..].iter().position(|&good| good >= 690);
    println!("recovered after {recovered:?} s");
    assert!(recovered.is_some_and(|secs| secs <= 40));
    assert!(with[60..].iter().all(|&good| good >= 690));
}
