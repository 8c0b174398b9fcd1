//! Measures what a healthy request pays for outlier detection.

mod support;

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use support::{difference, request, watched};
use tower_lb::health::{OutlierLayer, SlowLatency};

fn requests(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let consecutive = OutlierLayer::default()
        .success_rate(None)
        .failure_rate(None);
    let default = OutlierLayer::default();
    let all = OutlierLayer::default().slow_latency(SlowLatency::default());
    let mut group = c.benchmark_group("health");
    group.measurement_time(Duration::from_secs(3));
    let mut without = support::balance(
        10,
        tower_lb::PendingRequestsLayer::default(),
        tower_lb::P2c::default(),
    );
    group.bench_function("none", |b| b.iter(|| request(black_box(&mut without))));
    let mut in_turns = String::new();
    for (name, layer) in [
        ("consecutive failures", consecutive),
        ("the default detectors", default),
        ("all detectors", all),
    ] {
        let mut balance = watched(10, layer);
        group.bench_function(name, |b| b.iter(|| request(black_box(&mut balance))));
        let more = difference(&mut without, &mut balance);
        in_turns.push_str(&format!("; {more:.1} ns more by {name}"));
    }
    group.finish();
    // A shared machine's speed drifts. Measurements in turns meet the same speed; separate ones do
    // not.
    println!("in turns with none{in_turns}\n");
}

criterion_group!(benches, requests);
criterion_main!(benches);
