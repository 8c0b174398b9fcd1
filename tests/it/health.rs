//! Outlier detection, health checks, heartbeats and slow start, through the balancer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, advance, sleep_until, timeout},
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    discover::{Change, Discover},
    service_fn,
};
use tower_lb::{
    health::{
        FailurePercentage, HealthCheckLayer, Heartbeats, Outlier, OutlierLayer, SlowLatency,
        SlowStart, UntilFirstCheck,
    },
    *,
};

use crate::support::*;

type Watched = Outlier<Client, usize>;

/// Round robin over servers that are watched, so that each gets every n-th request.
fn round_robin(servers: &[Server], layer: OutlierLayer) -> Balance<RoundRobin, Watched, (), usize> {
    ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(layer)
        .layer(fixed(0..servers.len()))
        .service(factory(servers))
}

async fn call<S: Service<(), Error = BoxError>>(service: &mut S) -> Result<S::Response, BoxError> {
    service.ready().await?.call(()).await
}

/// Sends so many requests, one after the other; their outcomes are of no account.
async fn calls<S: Service<(), Error = BoxError>>(service: &mut S, n: usize) {
    for _ in 0..n {
        let _ = call(service).await;
    }
    settle().await;
}

fn statuses<P, S>(balance: &Balance<P, S, (), usize>) -> Vec<Status>
where
    P: Policy<usize, S, ()>,
    S: Clone + Send + Sync + 'static,
{
    let members = balance.endpoints();
    members
        .iter()
        .map(|member| member.endpoint().status())
        .collect()
}

fn is_ejected(status: &Status) -> bool {
    matches!(status, Status::Ejected { .. })
}

const FAIL: Behaviour = Behaviour::Fail(Duration::ZERO);
const ANSWER: Behaviour = Behaviour::Answer(Duration::ZERO);

mod ejection {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_eject_at_once_for_thirty_seconds() {
        let servers = servers(&[FAIL, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        calls(&mut balance, 8).await;
        assert_eq!(servers[0].calls(), 4);
        assert_eq!(statuses(&balance)[0], Status::Available);
        let start = Instant::now();
        calls(&mut balance, 2).await;
        let until = start + Duration::from_secs(30);
        assert_eq!(statuses(&balance)[0], Status::Ejected { until });
        let ejection = balance.endpoints()[0].endpoint().ejection().unwrap();
        assert_eq!(
            (ejection.until, &*ejection.reason),
            (until, "5 failures in a row")
        );
        calls(&mut balance, 10).await;
        advance(Duration::from_millis(29_999)).await;
        calls(&mut balance, 10).await;
        assert_eq!(servers[0].calls(), 5, "still out");
        // Half-open: one probe fails, and it is out for twice as long.
        advance(ms(1)).await;
        settle().await;
        assert_eq!(statuses(&balance)[0], Status::Available);
        calls(&mut balance, 10).await;
        assert_eq!(servers[0].calls(), 6, "one probe");
        let until = Instant::now() + Duration::from_secs(60);
        assert_eq!(statuses(&balance)[0], Status::Ejected { until });
        // The next one succeeds, and it is back.
        servers[0].behave(ANSWER);
        advance(Duration::from_secs(60)).await;
        settle().await;
        calls(&mut balance, 20).await;
        assert!(servers[0].calls() >= 6 + 9, "{}", servers[0].calls());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_in_between_starts_the_count_anew() {
        let servers = servers(&[FAIL, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        for _ in 0..10 {
            servers[0].behave(FAIL);
            calls(&mut balance, 8).await;
            servers[0].behave(ANSWER);
            calls(&mut balance, 2).await;
        }
        assert_eq!(statuses(&balance), [Status::Available; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_poll_ready_is_a_failure() {
        let servers = servers(&[ANSWER, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        servers[0].fail_readiness(true);
        calls(&mut balance, 20).await;
        assert!(is_ejected(&statuses(&balance)[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_says_nothing_unless_it_took_too_long() {
        let run = async |layer: OutlierLayer, patience| {
            let servers = servers(&[Behaviour::Hang, ANSWER]);
            let mut balance = round_robin(&servers, layer);
            for _ in 0..20 {
                let _ = timeout(patience, call(&mut balance)).await;
            }
            settle().await;
            is_ejected(&statuses(&balance)[0])
        };
        assert!(!run(OutlierLayer::default(), ms(1_000)).await);
        let layer = || OutlierLayer::default().cancelled_after(ms(100));
        assert!(!run(layer(), ms(99)).await);
        assert!(run(layer(), ms(100)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn of_eleven_with_two_failing_one_is_ejected() {
        let mut behaviours = [ANSWER; 11];
        behaviours[3..5].fill(FAIL);
        let servers = servers(&behaviours);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        calls(&mut balance, 11 * 20).await;
        assert_eq!(
            statuses(&balance)
                .iter()
                .filter(|status| is_ejected(status))
                .count(),
            1
        );
        // Nor by the other detectors, at the end of the interval.
        calls(&mut balance, 11 * 100).await;
        advance(Duration::from_secs(10)).await;
        settle().await;
        assert_eq!(
            statuses(&balance)
                .iter()
                .filter(|status| is_ejected(status))
                .count(),
            1
        );
    }

    /// Who was ejected and then found unhealthy is probed by nobody: it takes no other's place for ever.
    #[tokio::test(start_paused = true)]
    async fn one_that_is_out_for_other_reasons_takes_nobodys_place() {
        let servers = servers(&[FAIL, ANSWER, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        calls(&mut balance, 15).await;
        assert!(is_ejected(&statuses(&balance)[0]));
        balance.endpoints()[0].endpoint().mark_unhealthy();
        advance(Duration::from_secs(31)).await;
        settle().await;
        servers[1].behave(FAIL);
        calls(&mut balance, 20).await;
        assert!(is_ejected(&statuses(&balance)[1]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_service_starts_anew() {
        let servers = servers(&[FAIL, ANSWER]);
        let (changes, rx) = tokio::sync::mpsc::unbounded_channel();
        let insert = |server: usize| {
            let change = Change::Insert(server, servers[server].client());
            changes.send(Ok::<_, BoxError>(change)).unwrap();
        };
        let heartbeats = Heartbeats::new(Duration::from_secs(1_000));
        let checks = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
            if *endpoint.address() == 0 {
                Err("sick")
            } else {
                Ok(())
            }
        });
        let discover = from_discover(tokio_stream::wrappers::UnboundedReceiverStream::new(rx));
        let discover = checks.unhealthy_after(1).layer(heartbeats.layer(discover));
        let discover = OutlierLayer::default().layer(discover);
        let mut balance: Balance<_, Watched, (), usize> =
            Balance::new(discover, RoundRobin::seeded(1));
        insert(0);
        insert(1);
        settle().await;
        assert_eq!(statuses(&balance)[0], Status::Unhealthy);
        balance.endpoints()[0].endpoint().mark_healthy();
        settle().await;
        calls(&mut balance, 10).await;
        assert!(is_ejected(&statuses(&balance)[0]));
        // The same key again, with another service.
        insert(0);
        tokio::task::yield_now().await;
        let members = balance.endpoints();
        let all: Vec<_> = members
            .iter()
            .map(|member| member.endpoint().ejection())
            .collect();
        assert_eq!(all, [None, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_available_one_is_never_ejected() {
        for n in [1, 2, 5] {
            let servers = servers(&vec![FAIL; n]);
            let mut balance = round_robin(&servers, OutlierLayer::default().max_ejected(1.0));
            calls(&mut balance, n * 50).await;
            let ejected = statuses(&balance)
                .iter()
                .filter(|status| is_ejected(status))
                .count();
            assert_eq!(ejected, n - 1, "of {n}");
        }
        // Those who are unhealthy or draining are not available.
        let servers = servers(&[FAIL, ANSWER, ANSWER]);
        let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(OutlierLayer::default())
            .layer(fixed([(0, 1), (1, 1), (2, 0)]))
            .service(factory(&servers));
        settle().await;
        balance.endpoints()[1].endpoint().mark_unhealthy();
        settle().await;
        calls(&mut balance, 20).await;
        assert_eq!(servers[0].calls(), 20);
        assert_eq!(statuses(&balance)[0], Status::Available);
    }

    /// Requests of an interval, in one burst or evenly: what counts is what they showed.
    #[tokio::test(start_paused = true)]
    async fn bursts_and_spread_traffic_get_the_same_verdict() {
        let run = async |failing_of_ten: usize, spread: bool| {
            let servers = servers(&[ANSWER; 6]);
            let layer = OutlierLayer::default().consecutive_failures(None);
            let mut balance = round_robin(&servers, layer);
            settle().await;
            for i in 0..100 {
                let fails = i % 10 < failing_of_ten;
                servers[0].behave(if fails { FAIL } else { ANSWER });
                calls(&mut balance, 6).await;
                if spread {
                    advance(ms(99)).await;
                }
            }
            advance(Duration::from_secs(if spread { 1 } else { 10 })).await;
            settle().await;
            is_ejected(&statuses(&balance)[0])
        };
        for (failing, verdict) in [(0, false), (3, true), (9, true)] {
            assert_eq!(
                run(failing, false).await,
                verdict,
                "{failing} of 10, in a burst"
            );
            assert_eq!(run(failing, true).await, verdict, "{failing} of 10, spread");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_detector_can_be_off() {
        let servers = servers(&[FAIL, ANSWER, ANSWER, ANSWER, ANSWER]);
        let layer = OutlierLayer::default()
            .consecutive_failures(None)
            .success_rate(None)
            .failure_percentage(None);
        let mut balance = round_robin(&servers, layer.clone());
        calls(&mut balance, 1_000).await;
        advance(Duration::from_secs(10)).await;
        settle().await;
        assert_eq!(statuses(&balance), [Status::Available; 5]);
        let mut balance = round_robin(
            &servers,
            layer.failure_percentage(FailurePercentage::default()),
        );
        calls(&mut balance, 1_000).await;
        advance(Duration::from_secs(10)).await;
        settle().await;
        assert!(is_ejected(&statuses(&balance)[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_is_ejected_where_that_is_asked_for() {
        for asked_for in [false, true] {
            let mut behaviours = [Behaviour::Answer(ms(1)); 5];
            behaviours[2] = Behaviour::Answer(ms(4));
            let servers = servers(&behaviours);
            let slow = asked_for.then(SlowLatency::default);
            let mut balance = round_robin(&servers, OutlierLayer::default().slow_latency(slow));
            calls(&mut balance, 5 * 200).await;
            advance(Duration::from_secs(10)).await;
            settle().await;
            assert_eq!(is_ejected(&statuses(&balance)[2]), asked_for);
            assert_eq!(
                statuses(&balance)
                    .iter()
                    .filter(|status| is_ejected(status))
                    .count(),
                usize::from(asked_for)
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_works_with_hashing_and_comes_home() {
        let servers = servers(&[ANSWER; 4]);
        let mut balance: Balance<_, Outlier<Client, usize>, u64, usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RingHash::by_key(hash::hashed(
                |key: &u64| Some(*key),
            ))))
            .layer(OutlierLayer::default())
            .layer(fixed(0..4))
            .service(factory(&servers));
        let key = 7;
        let owner = balance.ready().await.unwrap().call(key).await.unwrap();
        servers[owner].behave(FAIL);
        for _ in 0..5 {
            assert!(balance.ready().await.unwrap().call(key).await.is_err());
        }
        settle().await;
        let next = balance.ready().await.unwrap().call(key).await.unwrap();
        assert_ne!(next, owner);
        servers[owner].behave(ANSWER);
        advance(Duration::from_secs(30)).await;
        settle().await;
        assert_eq!(
            balance.ready().await.unwrap().call(key).await.unwrap(),
            owner
        );
    }

    #[tokio::test(start_paused = true)]
    async fn in_towers_own_balance_too() {
        let servers = servers(&[FAIL, ANSWER]);
        let discover = OutlierLayer::default().layer(
            each(PendingRequestsLayer::default()).layer(fixed(0..2).layer(factory(&servers))),
        );
        let mut balance = tower::balance::p2c::Balance::new(Box::pin(discover));
        for _ in 0..40 {
            let _ = call(&mut balance).await;
        }
        assert_eq!(servers[0].calls(), 5, "it is not ready while it is ejected");
    }
}

mod probes {
    use tokio_test::{assert_pending, assert_ready_ok, task};

    use super::*;

    /// A service whose first ejection has just ended, and its server.
    async fn on_trial(layer: OutlierLayer) -> (Watched, Server, impl Sized) {
        let servers = servers(&[FAIL, ANSWER]);
        let discover = layer.layer(fixed(0..2).layer(factory(&servers)));
        let mut discover = Box::pin(discover);
        let mut services: Vec<Watched> = Vec::new();
        while services.len() < 2 {
            match std::future::poll_fn(|cx| Discover::poll_discover(discover.as_mut(), cx)).await {
                Some(Ok(Change::Insert(_, service))) => services.push(service),
                _ => panic!("two are inserted"),
            }
        }
        let mut service = services.swap_remove(0);
        for _ in 0..5 {
            let failed = ServiceExt::<()>::ready(&mut service)
                .await
                .unwrap()
                .call(())
                .await;
            assert!(failed.is_err());
        }
        advance(Duration::from_secs(30)).await;
        (service, servers[0].clone(), (discover, services))
    }

    fn ready<S: Service<()>>(service: &mut S) -> std::task::Poll<Result<(), S::Error>> {
        task::spawn(std::future::poll_fn(|cx| service.poll_ready(cx))).poll()
    }

    /// Somebody who waits for a service that is not ready.
    fn waiting<S: Service<()>>(
        service: &mut S,
    ) -> task::Spawn<impl Future<Output = Result<(), S::Error>>> {
        let mut waits = task::spawn(std::future::poll_fn(|cx| service.poll_ready(cx)));
        assert!(waits.poll().is_pending());
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_goes_through_and_its_success_readmits() {
        let (mut first, server, _fleet) = on_trial(OutlierLayer::default()).await;
        server.behave(Behaviour::Answer(ms(10)));
        let mut second = first.clone();
        assert_ready_ok!(ready(&mut first));
        let mut waits = waiting(&mut second);
        let probe = first.call(());
        assert_pending!(waits.poll());
        probe.await.unwrap();
        assert!(waits.is_woken());
        assert_ready_ok!(waits.poll());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_dropped_gives_its_slot_back() {
        let (first, server, _fleet) = on_trial(OutlierLayer::default()).await;
        server.behave(Behaviour::Hang);
        let mut second = first.clone();
        // 1. Reserved and never routed.
        let mut reserved = first.clone();
        assert_ready_ok!(ready(&mut reserved));
        assert_pending!(ready(&mut second));
        drop(reserved);
        // 2. Called and given up, at once and halfway.
        let mut called = first.clone();
        assert_ready_ok!(ready(&mut called));
        drop(called.call(()));
        assert_ready_ok!(ready(&mut called));
        let mut answer = task::spawn(called.call(()));
        assert_pending!(answer.poll());
        assert_pending!(ready(&mut second));
        drop(answer);
        assert_ready_ok!(ready(&mut second));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_probe_goes_on_when_the_endpoint_is_no_longer_watched() {
        for is_sent in [false, true] {
            let (mut first, server, fleet) = on_trial(OutlierLayer::default()).await;
            server.behave(Behaviour::Answer(ms(10)));
            let mut second = first.clone();
            assert_ready_ok!(ready(&mut first));
            let mut waits = waiting(&mut second);
            let probe = if is_sent {
                let probe = first.call(());
                drop(fleet);
                probe
            } else {
                drop(fleet);
                first.call(())
            };
            assert!(waits.is_woken());
            assert_ready_ok!(waits.poll());
            probe.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_requests_from_before_decide_nothing() {
        let servers = servers(&[Behaviour::Fail(ms(100)), ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        settle().await;
        // Ten are under way when the first five fail.
        let mut late = Vec::new();
        for i in 0..20 {
            servers[0].behave(match i / 10 {
                0 => Behaviour::Fail(ms(100)),
                _ => Behaviour::Fail(Duration::from_secs(40)),
            });
            late.push(tokio::spawn(start(&mut balance).await));
        }
        tokio::time::sleep(ms(100)).await;
        settle().await;
        assert!(is_ejected(&statuses(&balance)[0]));
        // Half-open at 30.1 s; the old requests fail at 40 s, while no probe is sent.
        tokio::time::sleep(Duration::from_secs(41)).await;
        settle().await;
        assert_eq!(statuses(&balance)[0], Status::Available);
        servers[0].behave(ANSWER);
        calls(&mut balance, 10).await;
        assert_eq!(statuses(&balance)[0], Status::Available);
    }

    #[tokio::test(start_paused = true)]
    async fn several_probes_must_all_succeed() {
        let (mut service, server, _fleet) = on_trial(OutlierLayer::default().probes(3)).await;
        server.behave(ANSWER);
        let mut others: Vec<_> = (0..3).map(|_| service.clone()).collect();
        assert_ready_ok!(ready(&mut others[0]));
        assert_ready_ok!(ready(&mut others[1]));
        assert_ready_ok!(ready(&mut others[2]));
        assert_pending!(ready(&mut service));
        for other in &mut others {
            assert_pending!(ready(&mut service));
            other.call(()).await.unwrap();
        }
        assert_ready_ok!(ready(&mut service));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_never_ends_fails_in_the_end() {
        let servers = servers(&[FAIL, ANSWER]);
        let mut balance = round_robin(
            &servers,
            OutlierLayer::default().max_ejection(Duration::from_secs(60)),
        );
        calls(&mut balance, 10).await;
        servers[0].behave(Behaviour::Hang);
        advance(Duration::from_secs(30)).await;
        settle().await;
        // Round robin, so one of two is the probe, which hangs; all others pass over it.
        let (first, second) = (start(&mut balance).await, start(&mut balance).await);
        let mut hung = task::spawn(async { tokio::join!(first, second) });
        assert_pending!(hung.poll());
        calls(&mut balance, 10).await;
        assert_eq!(statuses(&balance)[0], Status::Available, "half-open");
        for _ in 0..7 {
            advance(Duration::from_secs(10)).await;
            settle().await;
        }
        assert!(is_ejected(&statuses(&balance)[0]));
        servers[0].behave(ANSWER);
        advance(Duration::from_secs(60)).await;
        settle().await;
        let before = servers[0].calls();
        calls(&mut balance, 10).await;
        assert!(servers[0].calls() >= before + 4, "it is back");
    }
}

/// TABLES P11: one of ten servers fails a hundred times faster than the others serve, at load .9.
#[tokio::test(start_paused = true)]
async fn a_black_hole_draws_next_to_nothing() {
    async fn run<T>(tracker: T, outliers: bool) -> f64
    where
        T: Layer<SimService> + Clone + Send + 'static,
        T::Service: Load<Metric: Cost>
            + Service<(), Response = (), Error = BoxError, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let seed = 1;
        println!("seed {seed}");
        let rng = Arc::new(Mutex::new(SmallRng::seed_from_u64(seed)));
        let exponential = move |mean: f64| -mean * (1.0 - rng.lock().unwrap().random::<f64>()).ln();
        let counts: Arc<Vec<AtomicUsize>> =
            Arc::new((0..10).map(|_| AtomicUsize::new(0)).collect());
        let (rng, counter) = (exponential.clone(), counts.clone());
        let factory = move |endpoint: &Endpoint<usize>| -> SimService {
            let server = *endpoint.address();
            let (queue, rng, counter) = (Arc::new(Semaphore::new(1)), rng.clone(), counter.clone());
            tower::util::BoxCloneSyncService::new(service_fn(move |()| {
                let (queue, rng, counter) = (queue.clone(), rng.clone(), counter.clone());
                async move {
                    counter[server].fetch_add(1, Relaxed);
                    let _turn = queue.acquire().await;
                    let mean = if server == 0 { 0.0001 } else { 0.01 };
                    tokio::time::sleep(Duration::from_secs_f64(rng(mean))).await;
                    if server == 0 {
                        Err(BoxError::from("fast"))
                    } else {
                        Ok(())
                    }
                }
            }))
        };
        let layer = match outliers {
            true => OutlierLayer::default(),
            false => OutlierLayer::default()
                .consecutive_failures(None)
                .success_rate(None)
                .failure_percentage(None),
        };
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(p2c(1)))
            .layer(layer)
            .layer(each(tracker))
            .layer(fixed(0..10))
            .service(factory);
        settle().await;
        let mut at = Instant::now();
        for _ in 0..30_000 {
            // Nine tenths of what ten servers can do.
            at += Duration::from_secs_f64(exponential(1.0 / 900.0));
            sleep_until(at).await;
            tokio::spawn(balance.clone().oneshot(()));
        }
        counts[0].load(Relaxed) as f64 / 30_000.0
    }
    type SimService = tower::util::BoxCloneSyncService<(), (), BoxError>;
    let pending = PendingRequestsLayer::default;
    let without = run(pending(), false).await;
    println!("p2c over requests in flight, outliers not ejected: {without:.4}, reference .18");
    assert!(without > 0.12);
    for (what, share) in [
        ("requests in flight", run(pending(), true).await),
        ("peak ewma", run(PeakEwmaLayer::default(), true).await),
    ] {
        println!("p2c over {what}: {share:.4} to the black hole");
        assert!(share <= 0.02);
    }
}

mod checks {
    use std::future::Ready;

    use super::*;

    /// What a check of each server says, and how often it was asked.
    #[derive(Clone)]
    struct Doctor(Arc<Mutex<HashMap<usize, (bool, usize)>>>);

    trait Check: Fn(Endpoint<usize>, Client) -> Ready<Result<(), &'static str>> + Clone {}
    impl<F: Fn(Endpoint<usize>, Client) -> Ready<Result<(), &'static str>> + Clone> Check for F {}

    impl Doctor {
        fn new(n: usize) -> Self {
            Self(Arc::new(Mutex::new(
                (0..n).map(|server| (server, (true, 0))).collect(),
            )))
        }

        fn say(&self, server: usize, well: bool) {
            self.0.lock().unwrap().get_mut(&server).unwrap().0 = well;
        }

        fn asked(&self, server: usize) -> usize {
            self.0.lock().unwrap()[&server].1
        }

        fn check(&self, server: usize) -> Result<(), &'static str> {
            let mut all = self.0.lock().unwrap();
            let (well, asked) = all.get_mut(&server).unwrap();
            *asked += 1;
            well.then_some(()).ok_or("sick")
        }

        fn layer(&self) -> HealthCheckLayer<impl Check + use<>> {
            let doctor = self.clone();
            HealthCheckLayer::new(move |endpoint: Endpoint<usize>, _: Client| {
                std::future::ready(doctor.check(*endpoint.address()))
            })
            .jitter(Duration::ZERO)
        }
    }

    /// A balancer over so many servers that all answer, checked by a layer.
    macro_rules! checked {
        ($n:expr, $layer:expr) => {
            Balance::<_, _, (), usize>::new(
                $layer.layer(fixed(0..$n).layer(factory(&servers(&[ANSWER; $n])))),
                RoundRobin::seeded(1),
            )
        };
    }

    async fn pass(secs: u64) {
        for _ in 0..secs {
            advance(Duration::from_secs(1)).await;
            settle().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn three_failures_make_unhealthy_and_two_successes_healthy() {
        let doctor = Doctor::new(2);
        let balance = checked!(2, doctor.layer());
        settle().await;
        assert_eq!(doctor.asked(0), 1, "at once");
        doctor.say(0, false);
        pass(29).await;
        assert_eq!(
            (doctor.asked(0), statuses(&balance)[0]),
            (3, Status::Available)
        );
        pass(1).await;
        assert_eq!(
            (doctor.asked(0), statuses(&balance)[0]),
            (4, Status::Unhealthy)
        );
        assert_eq!(statuses(&balance)[1], Status::Available);
        doctor.say(0, true);
        pass(10).await;
        assert_eq!(
            statuses(&balance)[0],
            Status::Unhealthy,
            "one success is not enough"
        );
        doctor.say(0, false);
        pass(10).await;
        doctor.say(0, true);
        pass(10).await;
        assert_eq!(statuses(&balance)[0], Status::Unhealthy, "not two in a row");
        pass(10).await;
        assert_eq!(statuses(&balance)[0], Status::Available);
    }

    #[tokio::test(start_paused = true)]
    async fn who_must_be_checked_first_takes_nothing_until_the_first_success() {
        let doctor = Doctor::new(2);
        doctor.say(0, false);
        let layer = doctor.layer().until_first_check(UntilFirstCheck::Unhealthy);
        let balance = checked!(2, layer);
        settle().await;
        assert_eq!(statuses(&balance), [Status::Unhealthy, Status::Available]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_edges_are_looked_at_sooner_and_the_idle_later() {
        let doctor = Doctor::new(3);
        let layer = doctor
            .layer()
            .edge_interval(Duration::from_secs(1))
            .idle_interval(Duration::from_secs(60));
        let mut balance = checked!(3, layer);
        settle().await;
        doctor.say(0, false);
        for _ in 0..12 {
            // Traffic for all but the third.
            balance.endpoints()[2].endpoint().mark_unhealthy();
            settle().await;
            calls(&mut balance, 4).await;
            pass(1).await;
        }
        // No traffic was seen at the very first check: the next one of all is at 60 s.
        assert_eq!([0, 1, 2].map(|i| doctor.asked(i)), [1, 1, 1]);
        for _ in 0..50 {
            calls(&mut balance, 4).await;
            pass(1).await;
        }
        assert_eq!([1, 2].map(|i| doctor.asked(i)), [2, 2]);
        assert_eq!(
            (doctor.asked(0), statuses(&balance)[0]),
            (4, Status::Unhealthy),
            "at 60, 61 and 62 s"
        );
        for _ in 0..20 {
            calls(&mut balance, 4).await;
            pass(1).await;
        }
        assert_eq!([1, 2].map(|i| doctor.asked(i)), [4, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_takes_too_long_or_panics_has_failed() {
        let layer = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
            match endpoint.address() {
                0 => std::future::pending().await,
                1 => panic!("a check that panics, as it should"),
                _ => Ok::<_, String>(()),
            }
        });
        let balance = checked!(3, layer.unhealthy_after(1).jitter(Duration::ZERO));
        settle().await;
        assert_eq!(
            statuses(&balance),
            [Status::Available, Status::Unhealthy, Status::Available]
        );
        pass(1).await;
        assert_eq!(
            statuses(&balance),
            [Status::Unhealthy, Status::Unhealthy, Status::Available]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_panics_before_it_starts_has_failed_too_and_no_interval_is_too_long() {
        let layer = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| {
            assert_ne!(*endpoint.address(), 0, "a check that panics, as it should");
            std::future::ready(Ok::<_, String>(()))
        });
        let layer = layer
            .unhealthy_after(1)
            .interval(Duration::MAX)
            .jitter(Duration::MAX);
        let balance = checked!(2, layer);
        settle().await;
        assert_eq!(statuses(&balance), [Status::Unhealthy, Status::Available]);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_go_through_the_service_side_by_side_up_to_a_cap_and_stop_with_the_balancer() {
        let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let at_once = running.clone();
        let layer = HealthCheckLayer::new(move |_: Endpoint<usize>, service: Client| {
            let running = at_once.clone();
            async move {
                running
                    .1
                    .fetch_max(running.0.fetch_add(1, Relaxed) + 1, Relaxed);
                tokio::time::sleep(ms(500)).await;
                running.0.fetch_sub(1, Relaxed);
                service.oneshot(()).await.map(drop)
            }
        });
        let servers = servers(&[ANSWER; 10]);
        let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(layer.concurrency(4).jitter(Duration::ZERO))
            .layer(fixed(0..10))
            .service(factory(&servers));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let calls = || servers.iter().map(Server::calls).sum::<usize>();
        assert_eq!((running.1.load(Relaxed), calls()), (4, 10));
        drop(balance);
        pass(60).await;
        assert_eq!(calls(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_and_outliers_object_separately_and_a_check_may_end_an_ejection() {
        for ends_ejection in [false, true] {
            let doctor = Doctor::new(2);
            let servers = servers(&[FAIL, ANSWER]);
            let mut layer = doctor.layer();
            if ends_ejection {
                layer = layer.ends_ejection();
            }
            let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
                .layer(BalanceLayer::new(RoundRobin::seeded(1)))
                .layer(OutlierLayer::default())
                .layer(layer)
                .layer(fixed(0..2))
                .service(factory(&servers));
            settle().await;
            pass(5).await;
            calls(&mut balance, 12).await;
            assert!(is_ejected(&statuses(&balance)[0]));
            pass(6).await;
            // The check at 10 s was a success.
            assert_eq!(is_ejected(&statuses(&balance)[0]), !ends_ejection);
            if ends_ejection {
                servers[0].behave(ANSWER);
                calls(&mut balance, 12).await;
                assert!(servers[0].calls() > 8, "probed at once, and back");
            } else {
                doctor.say(0, false);
                pass(30).await;
                assert_eq!(
                    statuses(&balance)[0],
                    Status::Unhealthy,
                    "its ejection is over"
                );
            }
        }
    }
}

mod heartbeats {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_falls_silent_is_unhealthy_until_the_next_beat() {
        let servers = servers(&[ANSWER; 2]);
        let heartbeats = Heartbeats::new(Duration::from_secs(10));
        let (targets, rx) = watch::channel(vec![0, 1]);
        let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(heartbeats.clone())
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        settle().await;
        let pass = async |duration: Duration| {
            advance(duration).await;
            settle().await;
        };
        pass(ms(6_000)).await;
        assert!(heartbeats.beat(&1));
        assert!(!heartbeats.beat(&7), "nobody known");
        pass(ms(3_999)).await;
        assert_eq!(statuses(&balance), [Status::Available; 2]);
        pass(ms(1)).await;
        assert_eq!(statuses(&balance), [Status::Unhealthy, Status::Available]);
        pass(ms(6_000)).await;
        assert_eq!(statuses(&balance), [Status::Unhealthy; 2]);
        assert!(heartbeats.beat(&0));
        settle().await;
        assert_eq!(statuses(&balance), [Status::Available, Status::Unhealthy]);
        // It has to go on beating.
        pass(ms(10_000)).await;
        assert_eq!(statuses(&balance), [Status::Unhealthy; 2]);
        // A check that failed is another matter.
        balance.endpoints()[0].endpoint().mark_unhealthy();
        heartbeats.beat(&0);
        settle().await;
        assert_eq!(statuses(&balance)[0], Status::Unhealthy);
        balance.endpoints()[0].endpoint().mark_healthy();
        assert_eq!(statuses(&balance)[0], Status::Available);
        // Who comes again starts anew.
        targets.send_replace(vec![0]);
        settle().await;
        assert!(!heartbeats.beat(&1));
        targets.send_replace(vec![0, 1]);
        settle().await;
        assert_eq!(statuses(&balance)[1], Status::Available);
    }
}

mod slow_start {
    use super::*;

    async fn shares<P>(
        policy: P,
        balance_of: impl AsyncFnOnce(
            &Balance<P, PendingRequests<Client>, (), usize>,
            &watch::Sender<Vec<usize>>,
        ),
    ) -> Vec<f64>
    where
        P: Policy<usize, PendingRequests<Client>, ()> + Clone,
    {
        let servers = servers(&[ANSWER; 4]);
        let (targets, rx) = watch::channel(vec![0, 1, 2]);
        let mut balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy).slow_start(SlowStart::new(Duration::from_secs(60))))
            .layer(each(PendingRequestsLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        settle().await;
        balance_of(&balance, &targets).await;
        let before: Vec<_> = servers.iter().map(Server::calls).collect();
        calls(&mut balance, 35_000).await;
        let calls = servers
            .iter()
            .zip(before)
            .map(|(server, before)| server.calls() - before);
        calls.map(|calls| calls as f64 / 35_000.0).collect()
    }

    #[track_caller]
    fn near(shares: &[f64], weights: [f64; 4]) {
        let sum: f64 = weights.iter().sum();
        for (share, weight) in shares.iter().zip(weights) {
            assert!(
                (share - weight / sum).abs() < 0.01,
                "{shares:?}, not {weights:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_gets_a_growing_share() {
        macro_rules! check {
            ($policy:expr) => {
                for (secs, factor) in [(0, 0.1), (12, 0.2), (30, 0.5), (60, 1.0)] {
                    let joins = async |_: &_, targets: &watch::Sender<_>| {
                        targets.send_replace(vec![0, 1, 2, 3]);
                        settle().await;
                        for _ in 0..secs {
                            advance(Duration::from_secs(1)).await;
                            settle().await;
                        }
                    };
                    near(&shares($policy, joins).await, [1.0, 1.0, 1.0, factor]);
                }
            };
        }
        check!(WeightedRoundRobin::seeded(1));
        check!(Random::seeded(1));
        check!(P2c::seeded(1));
        check!(LeastLoaded::seeded(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_warms_up_and_a_set_that_is_all_new_does_not() {
        let returns = async |balance: &Balance<_, _, _, _>, _: &_| {
            let endpoint = balance.endpoints()[1].endpoint().clone();
            endpoint.mark_unhealthy();
            settle().await;
            advance(Duration::from_secs(5)).await;
            endpoint.mark_healthy();
            settle().await;
        };
        near(
            &shares(WeightedRoundRobin::seeded(1), returns).await,
            [1.0, 0.1, 1.0, 0.0],
        );
        let nothing = async |_: &_, _: &_| {};
        near(
            &shares(WeightedRoundRobin::seeded(1), nothing).await,
            [1.0, 1.0, 1.0, 0.0],
        );
    }

    /// Those of a new set do not warm up, in whatever order their first checks succeed.
    #[tokio::test(start_paused = true)]
    async fn a_set_that_is_checked_first_starts_warm() {
        let servers = servers(&[ANSWER; 4]);
        let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(Random::seeded(1)).slow_start(SlowStart::default()))
            .layer(
                HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
                    tokio::time::sleep(ms(10 * *endpoint.address() as u64)).await;
                    Ok::<_, String>(())
                })
                .until_first_check(UntilFirstCheck::Unhealthy),
            )
            .layer(fixed(0..4))
            .service(factory(&servers));
        tokio::time::sleep(ms(100)).await;
        settle().await;
        assert!(
            balance
                .endpoints()
                .iter()
                .all(|member| member.share() == member.weight())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_panic_everybody_has_a_full_share() {
        let servers = servers(&[ANSWER; 4]);
        let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
            .layer(
                BalanceLayer::new(Random::seeded(1))
                    .slow_start(SlowStart::default())
                    .panic_threshold(0.5),
            )
            .layer(fixed(0..4))
            .service(factory(&servers));
        settle().await;
        let members = balance.endpoints();
        members
            .iter()
            .for_each(|member| member.endpoint().mark_unhealthy());
        settle().await;
        members[0].endpoint().mark_healthy();
        settle().await;
        assert!(
            balance
                .endpoints()
                .iter()
                .all(|member| member.share() == member.weight())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hashing_is_not_affected() {
        let servers = servers(&[ANSWER; 4]);
        let (targets, rx) = watch::channel(vec![0, 1, 2]);
        let policy = RingHash::by_key(hash::hashed(|key: &u64| Some(*key)));
        let balance: Balance<_, Client, u64, usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy).slow_start(SlowStart::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        settle().await;
        targets.send_replace(vec![0, 1, 2, 3]);
        settle().await;
        assert!(
            balance
                .endpoints()
                .iter()
                .any(|member| member.share() != member.weight())
        );
        let points = balance.with_table(|_, ring| {
            let mut points = [0; 4];
            ring.get_ref()
                .points()
                .for_each(|(_, host)| points[host] += 1);
            points
        });
        assert_eq!(points, [256; 4]);
    }
}

/// Whatever happens, in whatever order, statuses follow the rules.
mod model {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Behave(usize, Behaviour),
        Check(usize, bool),
        Beat(usize),
        Send(usize),
        Pass(u64),
        Toggle(usize),
    }

    const N: usize = 4;
    const TTL: Duration = Duration::from_secs(100);

    fn step() -> impl Strategy<Value = Step> {
        let server = 0..N;
        let behaviour = prop_oneof![Just(ANSWER), Just(FAIL), Just(Behaviour::Hang)];
        prop_oneof![
            2 => (server.clone(), behaviour).prop_map(|(server, behaviour)| Step::Behave(server, behaviour)),
            2 => (server.clone(), any::<bool>()).prop_map(|(server, well)| Step::Check(server, well)),
            3 => server.clone().prop_map(Step::Beat),
            4 => (1_usize..60).prop_map(Step::Send),
            3 => (1_u64..40_000).prop_map(Step::Pass),
            1 => server.prop_map(Step::Toggle),
        ]
    }

    /// The rule of checks, written down a second time: 3 failures, 2 successes, the first success at once.
    #[derive(Clone, Copy, Default)]
    struct Patient {
        sick: bool,
        checked: bool,
        against: u32,
    }

    impl Patient {
        fn take(&mut self, well: bool) {
            let enough = match (self.sick, self.checked) {
                (false, _) => 3,
                (true, false) => 1,
                (true, true) => 2,
            };
            self.checked = true;
            self.against = if well == self.sick {
                self.against + 1
            } else {
                0
            };
            if self.against == enough {
                (self.sick, self.against) = (!self.sick, 0);
            }
        }
    }

    async fn run(steps: &[Step], max_ejected: f64) {
        let servers = servers(&[ANSWER; N]);
        let patients = Arc::new(Mutex::new([Patient::default(); N]));
        let wells = Arc::new(Mutex::new([true; N]));
        let (model, says) = (patients.clone(), wells.clone());
        let checks = HealthCheckLayer::new(move |endpoint: Endpoint<usize>, _: Client| {
            let well = says.lock().unwrap()[*endpoint.address()];
            model.lock().unwrap()[*endpoint.address()].take(well);
            std::future::ready(if well { Ok(()) } else { Err("sick") })
        });
        let heartbeats = Heartbeats::new(TTL);
        let (targets, rx) = watch::channel((0..N).collect::<Vec<_>>());
        let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(Random::seeded(1)))
            .layer(
                OutlierLayer::default()
                    .max_ejected(max_ejected)
                    .cancelled_after(ms(20))
                    .seeded(1),
            )
            .layer(heartbeats.clone())
            .layer(checks.seeded(1))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        settle().await;
        let mut last_beat = [Instant::now(); N];
        let mut ejected_before = 0;
        for step in steps {
            match *step {
                Step::Behave(server, behaviour) => servers[server].behave(behaviour),
                Step::Check(server, well) => wells.lock().unwrap()[server] = well,
                Step::Beat(server) => {
                    if heartbeats.beat(&server) {
                        last_beat[server] = Instant::now();
                    }
                }
                Step::Send(n) => {
                    for _ in 0..n {
                        let _ = timeout(ms(30), call(&mut balance)).await;
                    }
                }
                Step::Pass(millis) => tokio::time::sleep(ms(millis)).await,
                Step::Toggle(server) => {
                    targets.send_modify(|targets| {
                        match targets.iter().position(|&target| target == server) {
                            Some(at) => drop(targets.remove(at)),
                            None => {
                                patients.lock().unwrap()[server] = Patient::default();
                                last_beat[server] = Instant::now();
                                targets.push(server);
                            }
                        }
                    });
                }
            }
            settle().await;
            let members = balance.endpoints();
            let patients = *patients.lock().unwrap();
            for member in &members {
                let (server, status) = (*member.endpoint().address(), member.endpoint().status());
                let silent = last_beat[server].elapsed() >= TTL;
                assert_eq!(
                    status == Status::Unhealthy,
                    patients[server].sick || silent,
                    "{server} after {step:?}"
                );
            }
            let is_out = |member: &&Member<_, _>| member.endpoint().ejection().is_some();
            let ejected = members.iter().filter(is_out).count();
            let most = ((members.len() as f64 * max_ejected) as usize).max(1);
            let most = most.min(members.len().saturating_sub(1));
            let by_verdict = !matches!(step, Step::Toggle(_)) && ejected > ejected_before;
            assert!(
                !by_verdict || ejected <= most,
                "{ejected} of {} after {step:?}",
                members.len()
            );
            ejected_before = ejected;
        }
        // All is well again: everybody is back, and is used.
        servers.iter().for_each(|server| server.behave(ANSWER));
        *wells.lock().unwrap() = [true; N];
        targets.send_replace((0..N).collect());
        settle().await;
        for _ in 0..800 {
            (0..N).for_each(|server| assert!(heartbeats.beat(&server)));
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = timeout(ms(30), call(&mut balance)).await;
        }
        settle().await;
        assert_eq!(statuses(&balance), [Status::Available; N]);
        let before: Vec<_> = servers.iter().map(Server::calls).collect();
        for _ in 0..200 {
            call(&mut balance).await.unwrap();
        }
        assert!(
            servers
                .iter()
                .zip(before)
                .all(|(server, before)| server.calls() > before)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn statuses_follow_the_rules(
            steps in prop::collection::vec(step(), 1..80),
            max_ejected in prop_oneof![Just(0.1), Just(0.5), Just(1.0)],
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(run(&steps, max_ejected));
        }
    }
}

/// Over real sockets.
#[cfg(feature = "net")]
#[tokio::test]
async fn feature_net_checks_that_a_port_is_open() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::new(listener.local_addr().unwrap());
    health::tcp_connect(endpoint.clone(), ()).await.unwrap();
    drop(listener);
    assert!(health::tcp_connect(endpoint, ()).await.is_err());
}
