//! The rules by which another try leaves out the endpoints that were tried.

use super::*;

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Takes requests, with this weight.
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

type Tracked =
    PendingRequests<crate::support::Client, CompleteOnResponse, load::handle::SharedTotal>;

/// Fails one request once more often than there are endpoints, by `call_excluding`. Then sends it
/// through the layer.
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
        for (member, state) in balance.members().iter().zip(states) {
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

/// With a hash policy the tries follow the key's own order of distinct endpoints.
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

/// A retry that waits for an untried endpoint takes one that joins meanwhile.
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

/// One member fails to become ready and another is not ready. A waiting caller must be woken only
/// by a change.
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

/// An endpoint that leaves during its try and then returns still counts as tried, and the error
/// names it.
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

/// A try that no endpoint was ready for names no endpoint, and the request may be tried again.
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
    // No endpoint is ready in time for the second try; one is for the third.
    servers[0].allow(1);
    let answer = tokio::spawn(client.oneshot(()));
    sleep(ms(75)).await;
    servers[1].allow(1);
    assert_eq!(answer.await.unwrap().unwrap(), 1);
}

/// Classifies every answer as neutral, so that a throttle never rejects.
#[derive(Clone, Debug)]
struct NoRejections;

impl<T, E> Classify<T, E> for NoRejections {
    fn classify(&self, _: Result<&T, &E>) -> Outcome {
        Outcome::Neutral
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
    // A throttle between failover and balancer sees retries too, and passes on which endpoints to
    // leave out.
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

/// A try that timed out and is not repeated is dropped at once, with its load, even if the future
/// is kept.
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
    assert_eq!(balance.members()[0].service().in_flight(), 0);
}
