//! Measures what a request pays for retries that it does not need, and what a budget costs.

mod support;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use support::{balance, difference, request};
use tower::{Layer, retry::budget::TpsBudget};
use tower_lb::{Budget, ConnectErrors, FailoverLayer, Idempotent, P2c, PendingRequestsLayer};

fn requests(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let mut group = c.benchmark_group("retry");
    group.measurement_time(Duration::from_secs(3));
    let without = balance(10, PendingRequestsLayer::default(), P2c::default());
    let mut plain = without.clone();
    group.bench_function("none", |b| b.iter(|| request(black_box(&mut plain))));
    let mut connect = FailoverLayer::new(ConnectErrors::default()).layer(without.clone());
    group.bench_function("failover, connect errors", |b| {
        b.iter(|| request(black_box(&mut connect)))
    });
    let mut idempotent = FailoverLayer::new(Idempotent::all()).layer(without.clone());
    group.bench_function("failover, idempotent requests", |b| {
        b.iter(|| request(black_box(&mut idempotent)))
    });
    group.finish();
    // A shared machine's speed drifts. Measurements in turns meet the same speed; separate ones do
    // not.
    println!(
        "failover, in turns with none: {:.1} ns more by connect errors, {:.1} by idempotent requests\n",
        difference(&mut plain, &mut connect),
        difference(&mut plain, &mut idempotent),
    );
}

fn pair(budget: &impl tower::retry::budget::Budget) {
    budget.deposit();
    black_box(budget.withdraw());
}

fn budgets(c: &mut Criterion) {
    let mut group = c.benchmark_group("budget");
    let ours = Budget::new();
    let tower = TpsBudget::new(Duration::from_secs(10), 10, 0.2);
    group.bench_function("deposit", |b| b.iter(|| ours.deposit()));
    group.bench_function("pair, 1 thread", |b| b.iter(|| pair(&ours)));
    group.bench_function("pair, 1 thread/tower", |b| b.iter(|| pair(&tower)));
    group.bench_function("pair, 2 threads", |b| {
        b.iter_custom(|n| two_threads(n, || pair(&ours)))
    });
    group.bench_function("pair, 2 threads/tower", |b| {
        b.iter_custom(|n| two_threads(n, || pair(&tower)))
    });
    group.finish();
}

/// Returns the time in which each of two threads does `work` `n` times.
// Real time: nothing is simulated here.
#[allow(clippy::disallowed_methods)]
fn two_threads(n: u64, work: impl Fn() + Sync) -> Duration {
    let barrier = std::sync::Barrier::new(2);
    let run = || {
        barrier.wait();
        let start = Instant::now();
        (0..n).for_each(|_| work());
        start.elapsed()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(run);
        let here = run();
        other.join().map_or(here, |there| here.max(there))
    })
}

criterion_group!(benches, requests, budgets);
criterion_main!(benches);
