//! Weights that servers report of themselves.

use std::sync::{Arc, Mutex};

use tokio::time::{Instant, sleep_until};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    load::{Report, ReportedLayer},
    *,
};

use crate::support::*;

/// Three servers that say what is in the list; returns how many of 300 requests each gets, at each of these times.
async fn shares<P>(policy: P, reports: [Option<Report>; 3], at: &[u64]) -> Vec<[usize; 3]>
where
    P: Policy<usize, load::Reported<PendingRequests<Answers>, usize, Read>, ()> + Clone,
{
    let reports = Arc::new(Mutex::new(reports));
    let told = reports.clone();
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(policy))
        .layer(ReportedLayer::new(read as Read))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed([0, 1, 2]))
        .service(move |endpoint: &Endpoint<usize>| {
            let (name, told) = (*endpoint.address(), told.clone());
            Answers::new(service_fn(move |()| {
                let report = told.lock().unwrap()[name];
                std::future::ready(Ok::<_, std::convert::Infallible>((name, report)))
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
type Answers = tower::util::BoxCloneSyncService<(), Answer, std::convert::Infallible>;
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
