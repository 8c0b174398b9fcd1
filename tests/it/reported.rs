//! What servers report of themselves: weights and loads.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::Semaphore,
    time::{Instant, advance, sleep, sleep_until},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, load::Load, service_fn, util::BoxCloneSyncService,
};
use tower_lb::{
    load::{Report, Reported, ReportedLayer, ReportedWeightsLayer},
    *,
};

use crate::support::*;

/// Three servers that say what is in the list; returns how many of 300 requests each gets, at each of these times.
async fn shares<P>(policy: P, reports: [Option<Report>; 3], at: &[u64]) -> Vec<[usize; 3]>
where
    P: Policy<usize, load::ReportedWeights<PendingRequests<Answers>, usize, Read>, ()> + Clone,
{
    let reports = Arc::new(Mutex::new(reports));
    let told = reports.clone();
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(policy))
        .layer(ReportedWeightsLayer::new(read as Read))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed([0, 1, 2]))
        .service(move |endpoint: &Endpoint<usize>| {
            let (name, told) = (*endpoint.address(), told.clone());
            Answers::new(service_fn(move |()| {
                let report = told.lock().unwrap()[name];
                std::future::ready(Ok::<_, Infallible>((name, report)))
            }))
        });
    let start = Instant::now();
    // Answers of each, from which their clocks run; and then nothing but what is counted.
    settle().await;
    for _ in 0..30 {
        client.ready().await.unwrap().call(()).await.unwrap();
    }
    *reports.lock().unwrap() = [None; 3];
    let mut seen = Vec::new();
    for &millis in at {
        sleep_until(start + ms(millis)).await;
        settle().await;
        let mut counts = [0; 3];
        for _ in 0..300 {
            let (name, _) = client.ready().await.unwrap().call(()).await.unwrap();
            counts[name] += 1;
        }
        seen.push(counts);
    }
    seen
}

type Answer = (usize, Option<Report>);
type Answers = BoxCloneSyncService<(), Answer, Infallible>;
type Read = fn(&Answer) -> Option<Report>;

fn read(answer: &Answer) -> Option<Report> {
    answer.1
}

#[tokio::test(start_paused = true)]
async fn weighted_round_robin_follows_reports_by_grpcs_clocks() {
    // 200, 100 and 300 requests a second at full load.
    let reports = [
        Some(Report::new(0.5, 100.0)),
        Some(Report::new(1.0, 100.0)),
        Some(Report::new(0.5, 300.0).eps(150.0)),
    ];
    let times = [0, 9_999, 10_000, 100_000, 179_999, 181_000];
    let seen = shares(WeightedRoundRobin::seeded(1), reports, &times).await;
    let equal = [100, 100, 100];
    let close = |counts: [usize; 3], expected: [usize; 3]| {
        let mut pairs = counts.iter().zip(expected);
        assert!(
            pairs.all(|(&a, b)| a.abs_diff(b) <= 2),
            "{counts:?}, not {expected:?}"
        );
    };
    close(seen[0], equal);
    close(seen[1], equal);
    // 300 / (.5 + .5) = 300.
    for counts in &seen[2..5] {
        close(*counts, [100, 50, 150]);
    }
    close(seen[5], equal);
}

#[tokio::test(start_paused = true)]
async fn who_reports_nothing_has_the_mean_and_one_alone_changes_nothing() {
    let reports = [
        Some(Report::new(0.5, 100.0)),
        Some(Report::new(0.5, 300.0)),
        None,
    ];
    let seen = shares(WeightedRoundRobin::seeded(1), reports, &[20_000]).await;
    // 200, 600, and 400 for the third.
    for (count, expected) in seen[0].iter().zip([50, 150, 100]) {
        assert!(count.abs_diff(expected) <= 2, "{seen:?}");
    }
    let alone = [Some(Report::new(0.5, 100.0)), None, None];
    let seen = shares(WeightedRoundRobin::seeded(1), alone, &[20_000]).await;
    assert_eq!(seen[0], [100, 100, 100]);
}

#[tokio::test(start_paused = true)]
async fn p2c_draws_by_reports() {
    let reports = [
        Some(Report::new(0.1, 100.0)),
        Some(Report::new(0.5, 100.0)),
        Some(Report::new(0.5, 100.0)),
    ];
    let seen = shares(P2c::seeded(1), reports, &[9_000, 20_000]).await;
    assert!(
        seen[0].iter().all(|count| (70..130).contains(count)),
        "{seen:?}"
    );
    // Five times the weight; but a pair is of two different ones, and with nothing in flight half of all ties are lost.
    assert!(seen[1][0] > 150, "{seen:?}");
    assert!(seen[1][1].abs_diff(seen[1][2]) < 40, "{seen:?}");
}

/// Answers at once with the number that it was called with, as its report.
fn echo(layer: &ReportedLayer<ReadNumber>) -> Reported<PendingRequests<Echo>, ReadNumber> {
    let echo: Echo =
        BoxCloneSyncService::new(service_fn(
            |load: f64| async move { Ok::<_, Infallible>(load) },
        ));
    layer.layer(PendingRequests::new(echo))
}

type Echo = BoxCloneSyncService<f64, f64, Infallible>;
type ReadNumber = fn(&f64) -> Option<f64>;

fn some(load: &f64) -> Option<f64> {
    Some(*load)
}

fn layer() -> ReportedLayer<ReadNumber> {
    ReportedLayer::new(some as ReadNumber).decay(Duration::from_secs(1))
}

#[track_caller]
fn assert_cost(service: &impl Load<Metric: Cost>, expected: f64) {
    let cost = service.load().cost();
    assert!((cost - expected).abs() < 1e-6, "{cost}, not {expected}");
}

#[tokio::test(start_paused = true)]
async fn a_report_fades_to_the_mean_of_all() {
    let layer = layer();
    let (mut busy, mut idle, silent) = (echo(&layer), echo(&layer), echo(&layer));
    assert_cost(&silent, 0.0);
    busy.ready().await.unwrap().call(33.0).await.unwrap();
    // The first is the mean; the next counts 1/32.
    assert_cost(&silent, 33.0);
    idle.ready().await.unwrap().call(1.0).await.unwrap();
    assert_cost(&busy, 33.0);
    assert_cost(&idle, 1.0);
    assert_cost(&silent, 32.0);
    advance(Duration::from_secs(1)).await;
    assert_cost(&busy, 32.0 + (-1.0_f64).exp());
    assert_cost(&idle, 32.0 - 31.0 * (-1.0_f64).exp());
    advance(Duration::from_secs(60)).await;
    assert_cost(&busy, 32.0);
    assert_cost(&idle, 32.0);
    assert!(idle.load() <= busy.load());
    // Requests in flight count beside it.
    let answer = idle.ready().await.unwrap().call(0.0);
    assert_cost(&idle, 33.0);
    assert_eq!(idle.in_flight(), 1);
    drop(answer);
    assert_cost(&idle, 32.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_number_of_requests_is_no_report() {
    let layer = layer();
    let mut service = echo(&layer);
    for load in [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY, f64::MAX] {
        service.ready().await.unwrap().call(load).await.unwrap();
        assert_cost(&service, 0.0);
    }
    // Zero is a report like any other: one of 32 after many of it is not the mean.
    for load in [0.0, 0.0, 32.0] {
        service.ready().await.unwrap().call(load).await.unwrap();
    }
    assert_cost(&service, 32.0);
    assert_cost(&echo(&layer), 1.0);
}

/// A request's mean time in the system: 100 servers that serve one request at a time, in 1 s on average, and report with each
/// response how many they have left; 100 clients, at 90 % of what the servers can do.
async fn time_in_system<P, T>(policy: impl Fn(u64) -> P, tracker: impl Fn() -> T) -> f64
where
    P: Policy<usize, T::Service, ()> + Clone,
    T: Layer<ToServer, Service: Load<Metric: Cost>> + Clone + Send + 'static,
    T::Service: Service<(), Response = f64, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    const REQUESTS: u32 = 100_000;
    let seed = 1;
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let draws = Arc::new(AtomicU64::new(0));
    let servers: Arc<Vec<_>> = Arc::new(
        (0..100)
            .map(|_| (Semaphore::new(1), AtomicUsize::new(0)))
            .collect(),
    );
    let clients: Vec<_> = (0..100)
        .map(|client| {
            let (servers, draws) = (servers.clone(), draws.clone());
            let factory = move |endpoint: &Endpoint<usize>| {
                let (server, servers, draws) =
                    (*endpoint.address(), servers.clone(), draws.clone());
                ToServer::new(service_fn(move |()| {
                    let (servers, draws) = (servers.clone(), draws.clone());
                    async move {
                        let (turns, in_hand) = &servers[server];
                        in_hand.fetch_add(1, Relaxed);
                        let turn = turns.acquire().await;
                        let mut rng = SmallRng::seed_from_u64(draws.fetch_add(1, Relaxed));
                        sleep(exponential(&mut rng, 1.0)).await;
                        drop(turn);
                        Ok((in_hand.fetch_sub(1, Relaxed) - 1) as f64)
                    }
                }))
            };
            ServiceBuilder::new()
                .layer(BalanceLayer::new(policy(client)))
                .layer(each(tracker()))
                .layer(fixed(0..100))
                .service(factory)
        })
        .collect();
    settle().await;
    let nanos = Arc::new(AtomicU64::new(0));
    let mut at = Instant::now();
    for n in 0..REQUESTS {
        at += exponential(&mut rng, 1.0 / 90.0);
        sleep_until(at).await;
        let request = clients[rng.random_range(0..100)].clone().oneshot(());
        let nanos = nanos.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            request.await.unwrap();
            // Once queues are as long as they get.
            if n >= REQUESTS / 4 {
                nanos.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
            }
        });
    }
    sleep(Duration::from_secs(300)).await;
    nanos.load(Relaxed) as f64 / 1e9 / f64::from(REQUESTS - REQUESTS / 4)
}

type ToServer = BoxCloneSyncService<(), f64, Infallible>;

fn exponential(rng: &mut impl Rng, mean: f64) -> Duration {
    Duration::from_secs_f64(-mean * (1.0 - rng.random::<f64>()).ln())
}

#[tokio::test(start_paused = true)]
async fn reports_that_age_beat_local_counts_and_those_that_do_not_age_lose() {
    let local = PendingRequestsLayer::default;
    let reports = |decay: u64| {
        move || {
            ServiceBuilder::new()
                .layer(
                    ReportedLayer::new(|load: &f64| Some(*load)).decay(Duration::from_secs(decay)),
                )
                .layer(PendingRequestsLayer::default())
        }
    };
    let (aged, unaged) = (reports(5), reports(1_000_000_000));
    let p2c = P2c::seeded;
    let by_counts = time_in_system(p2c, local).await;
    let by_aged = time_in_system(p2c, aged).await;
    let by_unaged = time_in_system(p2c, unaged).await;
    println!(
        "p2c: {by_counts:.2} by own requests, {by_aged:.2} by reports, {by_unaged:.2} by reports that do not age"
    );
    let least_by_counts = time_in_system(LeastLoaded::seeded, local).await;
    let least_by_aged = time_in_system(LeastLoaded::seeded, aged).await;
    println!("least loaded: {least_by_counts:.2} by own requests, {least_by_aged:.2} by reports");
    assert!(by_aged < 0.93 * by_counts);
    assert!(by_unaged > by_counts);
    assert!(least_by_aged < 0.5 * least_by_counts);
}

#[tokio::test(start_paused = true)]
async fn one_report_does_not_draw_all_requests() {
    for extreme in [
        Report::new(1e-6, 100.0),
        Report::new(1.0, 1e-6),
        Report::new(0.5, 1e14),
    ] {
        let usual = Some(Report::new(0.5, 50.0));
        let reports = [Some(extreme), usual, usual];
        let seen = shares(WeightedRoundRobin::seeded(1), reports, &[20_000]).await;
        // Between a hundredth of the mean and ten times it.
        assert!(
            seen[0].iter().all(|&count| count > 0 && count < 290),
            "{extreme:?}: {seen:?}"
        );
    }
}
