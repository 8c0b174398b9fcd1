//! What servers report of themselves: weights and loads.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, advance, sleep_until};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, load::Load, service_fn, util::BoxCloneSyncService,
};
use tower_lb::{
    report::{LoadReport, Reported, ReportedLayer, ReportedWeightsLayer},
    *,
};

use crate::support::*;

/// Returns how many of 300 requests each of three servers gets at each of the times `at`, in ms.
/// The servers first report `reports`, and then nothing.
async fn shares<P>(policy: P, reports: [Option<LoadReport>; 3], at: &[u64]) -> Vec<[usize; 3]>
where
    P: Policy<usize, report::ReportedWeights<PendingRequests<Answers>, usize, Read>, ()> + Clone,
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
    // The first answers start the weights' clocks. After them no server reports any more.
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

type Answer = (usize, Option<LoadReport>);
type Answers = BoxCloneSyncService<(), Answer, Infallible>;
type Read = fn(&Answer) -> Option<LoadReport>;

fn read(answer: &Answer) -> Option<LoadReport> {
    answer.1
}

#[tokio::test(start_paused = true)]
async fn weighted_round_robin_follows_reports_by_grpcs_clocks() {
    // 200, 100 and 300 requests a second at full load.
    let reports = [
        Some(LoadReport::new(0.5, 100.0)),
        Some(LoadReport::new(1.0, 100.0)),
        Some(LoadReport::new(0.5, 300.0).eps(150.0)),
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
        Some(LoadReport::new(0.5, 100.0)),
        Some(LoadReport::new(0.5, 300.0)),
        None,
    ];
    let seen = shares(WeightedRoundRobin::seeded(1), reports, &[20_000]).await;
    // 200, 600, and 400 for the third.
    for (count, expected) in seen[0].iter().zip([50, 150, 100]) {
        assert!(count.abs_diff(expected) <= 2, "{seen:?}");
    }
    let alone = [Some(LoadReport::new(0.5, 100.0)), None, None];
    let seen = shares(WeightedRoundRobin::seeded(1), alone, &[20_000]).await;
    assert_eq!(seen[0], [100, 100, 100]);
}

#[tokio::test(start_paused = true)]
async fn p2c_draws_by_reports() {
    let reports = [
        Some(LoadReport::new(0.1, 100.0)),
        Some(LoadReport::new(0.5, 100.0)),
        Some(LoadReport::new(0.5, 100.0)),
    ];
    let seen = shares(P2c::seeded(1), reports, &[9_000, 20_000]).await;
    assert!(
        seen[0].iter().all(|count| (70..130).contains(count)),
        "{seen:?}"
    );
    // The first has five times the weight of the others. But p2c draws two different members, and
    // with nothing in flight half of all ties are lost.
    assert!(seen[1][0] > 150, "{seen:?}");
    assert!(seen[1][1].abs_diff(seen[1][2]) < 40, "{seen:?}");
}

/// Answers at once with the number that it was called with, as its load report.
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
    // The first report is the mean; the next one counts 1/32.
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
    // Requests in flight are added to the reported load.
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
    // Zero is a report like any other: after zeros, a report of 8 does not become the mean.
    for load in [0.0, 0.0, 8.0] {
        service.ready().await.unwrap().call(load).await.unwrap();
    }
    assert_cost(&service, 8.0);
    assert_cost(&echo(&layer), 0.25);
}

/// Before, one server that reports a million tripled the p99 of p2c.
#[tokio::test(start_paused = true)]
async fn one_report_of_nonsense_counts_as_ten_times_the_median() {
    for starts_with_it in [true, false] {
        let layer = layer();
        let mut services: Vec<_> = (0..10).map(|_| echo(&layer)).collect();
        if !starts_with_it {
            services.rotate_left(1);
        }
        let liar = if starts_with_it { 0 } else { 9 };
        for _ in 0..20 {
            for (i, service) in services.iter_mut().enumerate() {
                let load = if i == liar { 1e6 } else { 3.0 };
                service.ready().await.unwrap().call(load).await.unwrap();
            }
        }
        let costs: Vec<_> = services
            .iter()
            .map(|service| service.load().cost())
            .collect();
        assert!((20.0..40.0).contains(&costs[liar]), "{costs:?}");
        // They report their own load. One that has not reported lately has the mean.
        assert!((2.0..4.0).contains(&costs[(liar + 1) % 10]), "{costs:?}");
        assert!(echo(&layer).load().cost() < 8.0);
    }
}

/// Before, four of the ten got nothing for good.
#[tokio::test(start_paused = true)]
async fn reports_of_like_servers_starve_nobody() {
    async fn check<P>(policy: P, first: f64)
    where
        P: Policy<usize, Reported<PendingRequests<Echo>, ReadNumber>, f64> + Clone,
    {
        let calls: Vec<_> = (0..10).map(|_| Arc::new(AtomicU32::new(0))).collect();
        let of = calls.clone();
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(each(
                ServiceBuilder::new()
                    .layer(layer())
                    .layer(PendingRequestsLayer::default()),
            ))
            .layer(fixed(0..10))
            .service(move |endpoint: &Endpoint<usize>| {
                let calls = of[*endpoint.address()].clone();
                let answer = move |load: f64| {
                    calls.fetch_add(1, Relaxed);
                    async move { Ok::<_, Infallible>(load) }
                };
                BoxCloneSyncService::new(service_fn(answer)) as Echo
            });
        client.ready().await.unwrap().call(first).await.unwrap();
        // A report of 100 is forgotten after some seconds.
        for sent in 0..20_000 {
            if sent == 10_000 {
                calls.iter().for_each(|calls| calls.store(0, Relaxed));
            }
            client.ready().await.unwrap().call(0.0).await.unwrap();
            advance(Duration::from_millis(1)).await;
        }
        let calls: Vec<_> = calls.iter().map(|calls| calls.load(Relaxed)).collect();
        let even = calls.iter().all(|calls| (900..1100).contains(calls));
        assert!(even, "{calls:?} after a report of {first}");
    }
    for first in [0.0, 1.0, 100.0] {
        check(LeastLoaded::seeded(1), first).await;
        check(P2c::seeded(1), first).await;
    }
}
