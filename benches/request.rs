//! Measures what a request pays for being balanced, compared with tower's balancer in the same run.

mod support;

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use support::{Echo, balance, in_turns, request};
use tower::{balance::p2c, discover::ServiceList, load};
use tower_lb::{LeastLoaded, P2c, PeakEwmaLayer, PendingRequestsLayer};

fn requests(c: &mut Criterion) {
    let runtime: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    for n in [10, 100, 10_000] {
        let mut group = c.benchmark_group(format!("request/{n}"));
        group
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(500));
        let mut pending = balance(n, PendingRequestsLayer::default(), P2c::default());
        group.bench_function("p2c+pending", |b| {
            b.iter(|| request(black_box(&mut pending)))
        });
        group.bench_function("p2c+pending/fresh clone", |b| {
            b.iter(|| request(&mut black_box(&pending).clone()))
        });
        let completion = load::CompleteOnResponse::default();
        let list = (0..n).map(|_| load::PendingRequests::new(Echo, completion));
        let mut towers_pending = p2c::Balance::<_, u64>::new(ServiceList::new::<u64>(list));
        group.bench_function("p2c+pending/tower", |b| {
            b.iter(|| request(black_box(&mut towers_pending)))
        });
        let mut ewma = balance(n, PeakEwmaLayer::default(), P2c::default());
        group.bench_function("p2c+ewma", |b| b.iter(|| request(black_box(&mut ewma))));
        let rtt = Duration::from_millis(30);
        let list = (0..n).map(|_| load::PeakEwma::new(Echo, rtt, 1e10, completion));
        let mut towers_ewma = p2c::Balance::<_, u64>::new(ServiceList::new::<u64>(list));
        group.bench_function("p2c+ewma/tower", |b| {
            b.iter(|| request(black_box(&mut towers_ewma)))
        });
        if n <= 100 {
            let mut ours = balance(n, PendingRequestsLayer::default(), LeastLoaded::default());
            group.bench_function("least+pending", |b| {
                b.iter(|| request(black_box(&mut ours)))
            });
        }
        group.finish();
        // A shared machine's speed drifts. Measurements in turns meet the same speed; separate ones
        // do not.
        for (load, turns) in [
            ("pending", in_turns(&mut pending, &mut towers_pending)),
            ("ewma", in_turns(&mut ewma, &mut towers_ewma)),
        ] {
            println!(
                "in turns, p2c+{load} over {n}: {:.1} ns, tower's {:.1} ns, {:.2} times\n",
                turns.less, turns.more, turns.ratio
            );
        }
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
