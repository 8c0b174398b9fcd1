//! Hedging.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_slow_request_goes_to_another_endpoint_and_the_first_answer_wins() {
    for (slow, answer, after, sent) in [
        (ms(5), 200, 5, vec![0]),
        (ms(10_000), 201, 11, vec![0, 1]),
        // The first try still wins.
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
        // The losing try is dropped, and its load with it.
        let members = balance.members();
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
    let spent = Budget::builder().minimum(0).build();
    let client = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(10), Idempotent::all()).budget(spent))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..3))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 200);
    assert_eq!(*calls.lock().unwrap(), [0, 0]);
}

/// A hash policy chooses in the response future, which may wait. Nothing is hedged before the first
/// try is sent.
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

/// The hedge goes out, then the first try fails. Its retry leaves out the hedge's endpoint.
#[tokio::test(start_paused = true)]
async fn a_retry_below_a_hedge_leaves_out_whom_the_hedge_has() {
    let (calls, make) = backends(|endpoint| match endpoint {
        0 => (ms(20), Act::Fail(ErrorKind::Other)),
        1 => (ms(0), Act::Hang),
        _ => (ms(1), Act::Answer(202)),
    });
    let budget = Budget::builder().ratio(1.0).build();
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
    // The budget has paid for one hedge and one retry, and one first try was deposited.
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
    let budget = Budget::builder().minimum(1).ratio(0.0).build();
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

/// An answer that the policy does not try again wins, error or not, whichever try it comes from.
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
    let members = balance.members();
    assert!(
        members
            .iter()
            .all(|member| member.service().in_flight() == 0)
    );
}

/// Dean and Barroso's figure: LogN(ln 4, .4) with 2 % of stragglers U(100, 2000), and a hedge after
/// 10. Milliseconds are simulated as seconds, because tokio's timers round to milliseconds.
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
                        .budget(Budget::builder().minimum(1_000_000).build()),
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
            HedgeLayer::at_quantile(0.9, Idempotent::all())
                .budget(Budget::builder().minimum(1_000_000).build()),
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
    // The quantile is read after 64 answers, which are too few, and after 128.
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

/// How many of so many requests, one after the other, are hedged. Each takes `takes`.
async fn hedged<P>(layer: HedgeLayer<P>, requests: usize, takes: Duration) -> usize
where
    P: RetryPolicy<Verb, u16> + Clone + Send + Sync + 'static,
{
    let (calls, make) = backends(move |_| (takes, Act::Answer(200)));
    let client = ServiceBuilder::new()
        .layer(layer)
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(fixed(0..3))
        .service(make);
    for _ in 0..requests {
        client.clone().oneshot(Get).await.unwrap();
    }
    calls.lock().unwrap().len() - requests
}

#[tokio::test(start_paused = true)]
async fn hedges_are_at_most_their_share_of_the_requests() {
    // So few are slow that the share of slow answers allows all of them.
    let rich = || Budget::builder().minimum(100_000).build();
    for (ratio, most) in [(0.0, 10), (0.1, 20), (0.15, 25)] {
        let layer = HedgeLayer::after(ms(1), Idempotent::all());
        let layer = layer.ratio(ratio).budget(rich());
        // Answers that are slow in a tenth of the cases.
        let n = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (calls, make) = backends(move |_| {
            let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            (ms(if n % 6 == 0 { 5 } else { 0 }), Act::Answer(200))
        });
        let client = ServiceBuilder::new()
            .layer(layer)
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(fixed(0..3))
            .service(make);
        for _ in 0..100 {
            client.clone().oneshot(Get).await.unwrap();
        }
        let hedges = calls.lock().unwrap().len() - 100;
        // With a wanted share of nothing, a sixth of the answers is too many at once.
        let least = if ratio == 0.0 { 5 } else { most - 6 };
        assert!(
            (least..=most).contains(&hedges),
            "{hedges} of 100 at {ratio}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn hedges_leave_half_of_the_budget() {
    let budget = Budget::builder().ratio(0.0).minimum(2).build();
    let layer = HedgeLayer::after(ms(1), Idempotent::all()).ratio(1.0);
    let layer = layer.budget(budget.clone());
    // Of 20 retries in ten seconds, hedges have ten.
    assert_eq!(hedged(layer, 30, ms(5)).await, 10);
    assert_eq!(budget.balance(), 10.0);
}

/// All answers take longer than the delay: then the servers are overloaded.
#[tokio::test(start_paused = true)]
async fn nothing_is_hedged_while_many_answers_are_slow() {
    let rich = Budget::builder().minimum(100_000).build();
    let layer = HedgeLayer::after(ms(1), Idempotent::when(is_get)).ratio(0.1);
    let hedges = hedged(layer.budget(rich), 1000, ms(5)).await;
    // Ten are free, and a tenth of each request so far, until twenty answers were slow.
    assert!(hedges <= 12, "{hedges}");
}
