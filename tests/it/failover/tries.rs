//! Where, how often and when a request is tried again.

use std::task::Poll;

use super::*;

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
    let broken = Act::Fail(ErrorKind::BrokenPipe);
    let (_, make) = backends(move |_| (Duration::ZERO, broken));
    let pauses = |seed, base, max| {
        let client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(Idempotent::all())
                    .backoff(ms(base), ms(max))
                    .attempts(5)
                    .budget(Budget::builder().minimum(1_000_000).build())
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
    // The longest pauses add up to 25 + 75 + 175 + 250 ms, and tokio's timers round each one up.
    assert!(default.iter().all(|&sum| sum <= ms(525 + 4)));
    let mean = default.iter().sum::<Duration>() / 200;
    assert!((ms(250)..ms(276)).contains(&mean), "{mean:?}");
    let differing: HashSet<_> = default.iter().collect();
    assert!(differing.len() > 100);
    assert_eq!(pauses(7, 25, 250).await, default, "of the same seed");
    assert!(pauses(7, 0, 250).await.iter().all(Duration::is_zero));
}

/// No server has been busy with the request. Where nobody else is left, the usual pause follows.
#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_followed_by_no_pause_before_a_try_elsewhere() {
    for (endpoints, has_pause) in [(3, false), (1, true)] {
        let (calls, make) = backends(|endpoint| match endpoint {
            2 => (Duration::ZERO, Act::Answer(200)),
            _ => (Duration::ZERO, Act::Fail(ErrorKind::ConnectionRefused)),
        });
        let client = ServiceBuilder::new()
            .layer(FailoverLayer::new(ConnectErrors::default()).seeded(1))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..endpoints))
            .service(make);
        let start = Instant::now();
        assert_eq!(client.oneshot(Post).await.is_ok(), endpoints == 3);
        assert_eq!(calls.lock().unwrap().len(), 3);
        assert_eq!(start.elapsed() > Duration::ZERO, has_pause);
    }
}

/// Knows the error of a server that has not begun with a request.
#[derive(Clone)]
struct NotBegun;

impl<Req, Res> RetryPolicy<Req, Res> for NotBegun {
    fn is_idempotent(&self, _: &Req) -> bool {
        false
    }

    fn retry(&self, _: &Req, answer: Result<&Res, &BoxError>) -> Retry {
        answer.map_or(Retry::Yes, |_| Retry::No)
    }

    fn reach(&self, _: &BoxError) -> Reach {
        Reach::Unprocessed
    }
}

/// gRFC A6, transparent retries.
#[tokio::test(start_paused = true)]
async fn the_first_try_that_no_server_began_takes_no_attempt_and_no_budget() {
    for (attempts, minimum, expected) in [(1, 0, 2), (3, 0, 2), (3, 10, 4)] {
        let (calls, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::ConnectionReset)));
        let budget = Budget::builder().ratio(0.0).minimum(minimum).build();
        let client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(NotBegun)
                    .attempts(attempts)
                    .budget(budget.clone()),
            )
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..9))
            .service(make);
        let start = Instant::now();
        let error = client.oneshot(Post).await.unwrap_err();
        assert_eq!(calls.lock().unwrap().len(), expected, "{error}");
        assert_eq!(start.elapsed(), Duration::ZERO);
        let spent = f64::from(minimum) * 10.0 - budget.balance();
        assert_eq!(spent, expected.saturating_sub(2) as f64);
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
        let members = balance.members();
        members
            .iter()
            .map(|m| m.service().in_flight())
            .sum::<usize>()
    };
    assert_eq!(in_flight(&balance), 0);
    // A request dropped at any time, in a try or in a pause, gives everything back.
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

/// A runtime without `enable_time`, and none at all, as in an executor that is not tokio's.
#[test]
fn without_timers_a_try_elsewhere_comes_without_a_pause() {
    let without_time = tokio::runtime::Builder::new_current_thread().build();
    let without_time = without_time.unwrap();
    for runtime in [None, Some(&without_time)] {
        let _guard = runtime.map(tokio::runtime::Runtime::enter);
        let script = |endpoint| match endpoint {
            0 => Act::Fail(ErrorKind::BrokenPipe),
            _ => Act::Answer(200),
        };
        let (calls, make) = backends(move |endpoint| (Duration::ZERO, script(endpoint)));
        let (balance, driver) = Balance::<_, _, Verb, _>::pair(fixed([0, 1]).layer(make), InOrder);
        let mut driver = tokio_test::task::spawn(driver);
        let _ = driver.poll();
        let failover = ServiceBuilder::new()
            .layer(DeadlineLayer::new(secs(1)))
            .layer(FailoverLayer::new(Idempotent::all()).try_timeout(ms(50)))
            .service(balance.clone());
        let hedge = HedgeLayer::after(ms(10), Idempotent::all()).layer(balance);
        let answer = tokio_test::task::spawn(failover.oneshot(Get)).poll();
        assert!(matches!(answer, Poll::Ready(Ok(200))), "{answer:?}");
        let answer = tokio_test::task::spawn(hedge.oneshot(Get)).poll();
        assert!(matches!(answer, Poll::Ready(Ok(200))), "{answer:?}");
        assert_eq!(*calls.lock().unwrap(), [0, 1, 0, 1]);
    }
}
