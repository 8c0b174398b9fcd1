//! The trackers: what they count, when they give it back, and that they work with tower.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, balance, discover::ServiceList, service_fn,
};
use tower_lb::*;

use crate::support::*;

/// Hands the handle to the caller together with the answer.
#[derive(Clone)]
struct InAnswer;

impl<H, V> TrackCompletion<H, V> for InAnswer {
    type Output = (H, V);

    fn track_completion(&self, handle: H, value: V) -> (H, V) {
        (handle, value)
    }
}

/// Both trackers give the count back however a request ends.
#[tokio::test(start_paused = true)]
async fn counts_are_given_back_however_a_request_ends() {
    async fn check<L>(layer: L)
    where
        L: Layer<Client, Service: Service<(), Response = usize, Error = Failed> + InFlight + Clone>,
    {
        let server = Server::new(3, Behaviour::Answer(ms(5)));
        let mut service = layer.layer(server.client());
        let clone = service.clone();
        let answer = start(&mut service).await;
        assert_eq!(clone.in_flight(), 1, "clones share the count");
        assert_eq!(answer.await, Ok(3));
        assert_eq!(clone.in_flight(), 0, "answered");
        server.behave(Behaviour::Fail(ms(5)));
        assert_eq!(start(&mut service).await.await, Err(Failed));
        assert_eq!(clone.in_flight(), 0, "failed");
        let (first, second) = (start(&mut service).await, start(&mut service).await);
        assert_eq!(clone.in_flight(), 2);
        drop(first);
        assert_eq!(clone.in_flight(), 1, "dropped before it was polled");
        let mut second = task::spawn(second);
        assert_pending!(second.poll());
        drop(second);
        assert_eq!(clone.in_flight(), 0, "dropped midway");
    }
    check(PendingRequestsLayer::default()).await;
    check(PeakEwmaLayer::default()).await;
}

#[tokio::test]
async fn counts_are_given_back_on_panic() {
    fn check<L, S, F>(layer: L, make: impl Fn() -> S)
    where
        L: Layer<S, Service: Service<bool, Future = F> + InFlight>,
        F: Future,
    {
        let mut service = layer.layer(make());
        let panicked = catch_unwind(AssertUnwindSafe(|| drop(service.call(true))));
        assert!(panicked.is_err());
        assert_eq!(service.in_flight(), 0, "panicked in call");
        let mut answer = task::spawn(service.call(false));
        assert_eq!(service.in_flight(), 1);
        assert!(catch_unwind(AssertUnwindSafe(|| answer.poll())).is_err());
        assert_eq!(
            service.in_flight(),
            0,
            "panicked in poll, the future still held"
        );
    }
    let make = || {
        service_fn(|at_once: bool| {
            assert!(!at_once);
            async move {
                if at_once {
                    Ok::<(), Failed>(())
                } else {
                    panic!("later")
                }
            }
        })
    };
    check(PendingRequestsLayer::default(), make);
    check(PeakEwmaLayer::default(), make);
}

#[tokio::test(start_paused = true)]
async fn completion_decides_when_a_request_is_over() {
    let server = Server::new(3, Behaviour::Answer(ms(5)));
    let mut service = PendingRequestsLayer::default()
        .completion(InAnswer)
        .layer(server.client());
    let (handle, answer) = start(&mut service).await.await.unwrap();
    assert_eq!((answer, service.in_flight()), (3, 1));
    drop(handle);
    assert_eq!(service.in_flight(), 0);
    // The latency lasts until the handle is dropped.
    let mut service = PeakEwmaLayer::default()
        .completion(InAnswer)
        .layer(server.client());
    let (handle, _) = start(&mut service).await.await.unwrap();
    sleep(ms(95)).await;
    assert_eq!(service.in_flight(), 1);
    drop(handle);
    assert_eq!(service.estimate(), ms(100));
}

#[tokio::test(start_paused = true)]
async fn constant_is_constant() {
    let server = Server::new(3, Behaviour::Hang);
    let service = ConstantLayer::new(7).layer(PendingRequests::new(server.client()));
    let _answer = start(&mut service.clone()).await;
    assert_eq!((service.load(), service.in_flight()), (7, 1));
}

/// tower's own balancer over this crate's trackers sends the second request to the idle endpoint.
#[tokio::test(start_paused = true)]
async fn trackers_work_in_towers_balance() {
    async fn check<L>(layer: L)
    where
        L: Layer<Client, Service: Service<(), Response = usize, Error = Failed> + Load + Clone>,
        <L::Service as Load>::Metric: std::fmt::Debug,
    {
        let servers = servers(&[Behaviour::Answer(ms(10)); 2]);
        let services: Vec<_> = servers
            .iter()
            .map(|server| layer.layer(server.client()))
            .collect();
        let mut balance = balance::p2c::Balance::<_, ()>::new(ServiceList::new::<()>(services));
        for round in 1..=20 {
            let first = balance.ready().await.unwrap().call(());
            let second = balance.ready().await.unwrap().call(());
            let calls: Vec<_> = servers.iter().map(Server::calls).collect();
            assert_eq!(calls, [round; 2]);
            let (first, second) = tokio::join!(first, second);
            assert_ne!(first.unwrap(), second.unwrap());
        }
    }
    check(PendingRequestsLayer::default()).await;
    check(PeakEwmaLayer::default()).await;
}

/// A tracked service whose answers take as long as the test says.
struct Probe {
    server: Server,
    service: PeakEwma<Client>,
}

impl Probe {
    fn new(layer: PeakEwmaLayer) -> Self {
        let server = Server::new(0, Behaviour::Answer(ms(10)));
        let service = layer.layer(server.client());
        Self { server, service }
    }

    async fn answer(&mut self, behaviour: Behaviour) {
        self.server.behave(behaviour);
        let _ = self.start().await.await;
    }

    async fn start(&mut self) -> impl Future<Output = Result<usize, Failed>> + use<> {
        start(&mut self.service).await
    }

    async fn cancel(&mut self, after: Duration) {
        self.server.behave(Behaviour::Hang);
        let _ = tokio::time::timeout(after, self.start().await).await;
    }

    fn millis(&self) -> f64 {
        self.service.estimate().as_secs_f64() * 1e3
    }
}

fn close(actual: f64, expected: f64) {
    assert!(
        (actual / expected - 1.0).abs() < 1e-3,
        "{actual}, not {expected}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_success_is_the_estimate() {
    let layer = PeakEwmaLayer::default().default_rtt(ms(10));
    let mut probe = Probe::new(layer);
    close(probe.service.load().cost(), 1.0);
    probe.server.behave(Behaviour::Answer(ms(2)));
    let first = probe.start().await;
    close(probe.service.load().cost() / 1e6, 20.0);
    first.await.unwrap();
    close(probe.millis(), 2.0);
}

/// Only a success is a first estimate. Other answers leave the default, and the endpoint is no
/// newcomer any more.
#[tokio::test(start_paused = true)]
async fn what_is_no_success_leaves_the_default() {
    for outcome in [Outcome::Neutral, Outcome::Undecided] {
        let server = Server::new(0, Behaviour::Answer(ms(1)));
        let mut service = PeakEwmaLayer::default()
            .classify(move |_: Result<&usize, &Failed>| outcome)
            .layer(server.client());
        start(&mut service).await.await.unwrap();
        assert!(
            (29..=30).contains(&service.estimate().as_millis()),
            "{outcome:?}"
        );
    }
    let mut probe = Probe::new(PeakEwmaLayer::default());
    probe.cancel(ms(1)).await;
    close(probe.millis(), 30.0);
    probe.answer(Behaviour::Answer(ms(3))).await;
    close(probe.millis(), 3.0);
}

/// An endpoint that answers each request with a refusal must not seem idle, and so the fastest.
#[tokio::test(start_paused = true)]
async fn neutral_answers_do_not_let_the_estimate_fade() {
    let neutral = |answer: Result<&usize, &Failed>| match answer {
        Ok(1) => Outcome::Neutral,
        _ => Outcome::Success,
    };
    let servers = servers(&[Behaviour::Answer(ms(10)), Behaviour::Answer(ms(2))]);
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(LeastLoaded::seeded(1)))
        .layer(each(PeakEwmaLayer::default().classify(neutral)))
        .layer(fixed(0..2))
        .service(factory(&servers));
    let (_, late) = send(client, &servers, 100, 60, None).await;
    assert!(share(&late, 1) < 0.5, "{late:?}");
}

/// The steps are those of tower's test `compound_decay`.
#[tokio::test(start_paused = true)]
async fn costs_grow_with_requests_in_flight_and_fall_with_time() {
    let layer = PeakEwmaLayer::default().decay(Duration::from_secs(1));
    let mut probe = Probe::new(layer);
    let cost = |probe: &Probe| probe.service.load().cost() / 1e6;
    probe.answer(Behaviour::Answer(ms(20))).await;
    close(cost(&probe), 20.0);
    advance(ms(100)).await;
    close(cost(&probe), 20.0 * (-0.1_f64).exp());
    probe.server.behave(Behaviour::Answer(ms(200)));
    let mut first = task::spawn(probe.start().await);
    assert_pending!(first.poll());
    assert!(cost(&probe) > 20.0);
    advance(ms(100)).await;
    let mut second = task::spawn(probe.start().await);
    assert_pending!(second.poll());
    assert!(cost(&probe) > 40.0);
    advance(ms(100)).await;
    let _ = assert_ready!(first.poll());
    close(cost(&probe), 400.0);
    advance(ms(100)).await;
    let _ = assert_ready!(second.poll());
    close(cost(&probe), 200.0);
    advance(Duration::from_secs(1)).await;
    assert!(cost(&probe) < 100.0);
    advance(Duration::from_secs(10)).await;
    assert!(cost(&probe) < 0.1);
}

/// A spike of 1 s over answers of 10 ms has fallen by half after 6.931 s, and to 20 ms after 45.95
/// s.
#[tokio::test(start_paused = true)]
async fn a_peak_decays_as_finagles_does() {
    let mut probe = Probe::new(PeakEwmaLayer::default());
    probe.answer(Behaviour::Answer(ms(1000))).await;
    close(probe.millis(), 1000.0);
    let spike = Instant::now();
    let (mut half, mut twice) = (None, None);
    while twice.is_none() {
        probe.answer(Behaviour::Answer(ms(10))).await;
        let since = spike.elapsed().as_secs_f64();
        half = half.or((probe.millis() <= 505.0).then_some(since));
        twice = twice.or((probe.millis() <= 20.0).then_some(since));
    }
    assert!((half.unwrap() - 6.931).abs() < 0.05, "{half:?}");
    assert!((twice.unwrap() - 45.95).abs() < 0.2, "{twice:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_count_as_the_penalty_until_a_trial_succeeds() {
    let mut probe = Probe::new(PeakEwmaLayer::default());
    probe.answer(Behaviour::Answer(ms(10))).await;
    for _ in 0..5 {
        probe.answer(Behaviour::Fail(ms(1))).await;
        close(probe.millis(), 5000.0);
    }
    // The first trial, and then the others.
    for seconds in [1, 2, 4, 5, 5] {
        advance(Duration::from_secs(seconds) - ms(20)).await;
        close(probe.millis(), 5000.0);
        advance(ms(40)).await;
        assert!(probe.millis() < 11.0, "worth a trial after {seconds} s");
        probe.answer(Behaviour::Fail(ms(1))).await;
        close(probe.millis(), 5000.0);
    }
    // A success ends it at once, and the latency is what it was.
    probe.answer(Behaviour::Answer(ms(10))).await;
    close(probe.millis(), 10.0);
}

/// It answers, so it is not down. Before, it got a request in five seconds until a success came.
#[tokio::test(start_paused = true)]
async fn a_neutral_answer_ends_the_penalty() {
    let server = Server::new(0, Behaviour::Fail(ms(1)));
    let classify = |answer: Result<&usize, &Failed>| match answer {
        Ok(_) => Outcome::Neutral,
        Err(_) => Outcome::Failure,
    };
    let mut service = PeakEwmaLayer::default()
        .classify(classify)
        .layer(server.client());
    let _ = start(&mut service).await.await;
    assert!(service.estimate() >= Duration::from_secs(5));
    server.behave(Behaviour::Answer(ms(1)));
    start(&mut service).await.await.unwrap();
    assert!(service.estimate() <= ms(30), "{:?}", service.estimate());
}

/// The penalty says nothing about an endpoint that takes as long when it is well.
#[tokio::test(start_paused = true)]
async fn a_failure_counts_at_least_twice_the_usual_latency() {
    let mut probe = Probe::new(PeakEwmaLayer::default().failure_penalty(ms(100)));
    probe.answer(Behaviour::Answer(ms(80))).await;
    probe.answer(Behaviour::Fail(ms(1))).await;
    close(probe.millis(), 160.0);
}

#[tokio::test(start_paused = true)]
async fn the_classifier_decides_what_a_failure_is() {
    let classify = |answer: Result<&usize, &Failed>| match answer {
        Ok(1) => Outcome::Failure,
        Ok(2) => Outcome::Neutral,
        Ok(_) => Outcome::Success,
        Err(_) => Outcome::Neutral,
    };
    for (name, expected) in [(1, 5000.0), (2, 30.0), (3, 100.0)] {
        let server = Server::new(name, Behaviour::Answer(ms(100)));
        let mut service = PeakEwmaLayer::default()
            .classify(classify)
            .layer(server.client());
        start(&mut service).await.await.unwrap();
        assert!(
            (service.estimate().as_secs_f64() * 1e3 / expected - 1.0).abs() < 0.02,
            "{name}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn cancellations_in_a_row_raise_and_a_lone_one_says_little() {
    let mut probe = Probe::new(PeakEwmaLayer::default());
    probe.answer(Behaviour::Answer(ms(30))).await;
    let before = probe.millis();
    probe.cancel(ms(200)).await;
    assert!(
        probe.millis() <= before && probe.millis() > before * 0.97,
        "one: {}",
        probe.millis()
    );
    let mut last = before;
    for k in 2..6 {
        probe.cancel(ms(200)).await;
        assert!(probe.millis() > last, "{k} in a row: {}", probe.millis());
        last = probe.millis();
    }
    close(last, 800.0);
    // Many cancellations raise the estimate to the penalty and no further.
    for _ in 0..100 {
        probe.cancel(ms(200)).await;
    }
    close(probe.millis(), 5000.0);
    // An answer ends the series of cancellations.
    probe.answer(Behaviour::Answer(ms(10))).await;
    assert!(probe.millis() < 31.0, "{}", probe.millis());
    probe.cancel(ms(200)).await;
    assert!(probe.millis() < 31.0, "{}", probe.millis());
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_less_patience_does_not_lower_what_others_have_shown() {
    let layer = PeakEwmaLayer::default().failure_penalty(ms(100));
    let mut probe = Probe::new(layer);
    probe.cancel(ms(1000)).await;
    probe.cancel(ms(1000)).await;
    close(probe.millis(), 1000.0);
    probe.cancel(ms(10)).await;
    close(probe.millis(), 1000.0);
}

/// A neutral answer shows that the endpoint does not hang, so it ends a series of cancellations. A
/// neutral error does not, because its cause may be the client. Nor does an undecided answer.
#[tokio::test(start_paused = true)]
async fn an_ignored_answer_ends_a_row_of_cancellations_and_an_error_does_not() {
    for (behaviour, outcome, hangs) in [
        (Behaviour::Answer(ms(1)), Outcome::Neutral, false),
        (Behaviour::Fail(ms(1)), Outcome::Neutral, true),
        (Behaviour::Answer(ms(1)), Outcome::Undecided, true),
    ] {
        let server = Server::new(0, Behaviour::Hang);
        let mut service = PeakEwmaLayer::default()
            .classify(move |_: Result<&usize, &Failed>| outcome)
            .layer(server.client());
        for _ in 0..20 {
            let cancelled = start(&mut service).await;
            sleep(ms(200)).await;
            drop(cancelled);
            server.behave(behaviour);
            let _ = start(&mut service).await.await;
            server.behave(Behaviour::Hang);
        }
        let estimate = service.estimate();
        assert_eq!(estimate > ms(1000), hangs, "{estimate:?} by {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_estimate_is_never_below_the_age_of_what_is_in_flight() {
    let mut probe = Probe::new(PeakEwmaLayer::default());
    probe.server.behave(Behaviour::Hang);
    let mut held = Vec::new();
    for second in 1..=20 {
        held.push((probe.start().await, Instant::now()));
        sleep(Duration::from_secs(1)).await;
        if second % 3 == 0 {
            drop(held.remove(0));
        }
        let oldest = held[0].1.elapsed().as_secs_f64() * 1e3;
        assert!(
            probe.millis() >= oldest,
            "{} is below {oldest}",
            probe.millis()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_faded_endpoint_is_tried_with_one_request_at_a_time() {
    let mut probe = Probe::new(PeakEwmaLayer::default());
    probe.answer(Behaviour::Answer(ms(1000))).await;
    advance(Duration::from_secs(10)).await;
    assert!(probe.millis() < 1.0, "worth a trial");
    probe.server.behave(Behaviour::Hang);
    let _trial = probe.start().await;
    close(probe.service.load().cost() / 1e6, 2000.0);
}

#[tokio::test(start_paused = true)]
async fn of_a_burst_an_endpoint_that_has_only_faded_gets_one() {
    let servers = servers(&[Behaviour::Answer(ms(20)), Behaviour::Answer(ms(1000))]);
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(1)))
        .layer(each(PeakEwmaLayer::default()))
        .layer(fixed(0..2))
        .service(factory(&servers));
    let burst = async |size: usize| {
        let mut answers = Vec::new();
        for _ in 0..size {
            let answer = client.clone().ready().await.unwrap().call(());
            answers.push(tokio::spawn(answer));
        }
        answers
    };
    for answer in burst(10).await {
        answer.await.unwrap().unwrap();
    }
    sleep(Duration::from_secs(10)).await;
    servers[1].behave(Behaviour::Hang);
    let before = servers[1].calls();
    assert!(before > 0);
    burst(50).await;
    assert_eq!(servers[1].calls() - before, 1);
    // It gets no other request while that one is not answered.
    sleep(Duration::from_secs(10)).await;
    burst(50).await;
    assert_eq!(servers[1].calls() - before, 1);
}

#[test]
fn settings_that_are_nonsense_are_refused() {
    let layer = PeakEwmaLayer::default;
    let refused: [fn(PeakEwmaLayer) -> PeakEwmaLayer; 3] = [
        |layer| layer.default_rtt(Duration::ZERO),
        |layer| layer.decay(Duration::ZERO),
        |layer| layer.failure_penalty(Duration::ZERO),
    ];
    for set in refused {
        assert!(catch_unwind(|| set(layer())).is_err());
    }
    let largest = layer()
        .default_rtt(Duration::MAX)
        .decay(Duration::MAX)
        .failure_penalty(Duration::MAX);
    let _ = largest.layer(());
}

/// Counts stay exact while two threads clone, call and drop.
#[test]
fn counts_are_exact_from_two_threads() {
    fn check<S: Service<u8> + InFlight + Clone + Send + 'static>(service: S)
    where
        S::Future: Send,
    {
        let held = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (service, held) = (service.clone(), held.clone());
                std::thread::spawn(move || {
                    for i in 0..20_000 {
                        let answer = service.clone().call(0);
                        if i % 100 == 0 {
                            held.lock().unwrap().push(answer);
                        }
                    }
                })
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(service.in_flight(), 400);
        held.lock().unwrap().clear();
        assert_eq!(service.in_flight(), 0);
    }
    let service = service_fn(|_: u8| std::future::pending::<Result<(), Failed>>());
    check(PendingRequests::new(service));
    check(PeakEwma::new(service));
}
