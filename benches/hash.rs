//! What does consistent hashing cost: a lookup, a table, the change of one host; beside other crates in the same run?

mod support;

use std::{hint::black_box, time::Duration};

use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use support::{balance, request};
use tower_lb::{
    PendingRequestsLayer,
    hash::{HashPolicy, HashTable, Hashed, Maglev, Rendezvous, RingHash, Scheme, hashed},
};

const SIZES: [usize; 5] = [3, 10, 100, 1_000, 10_000];

type ByNumber<C> = HashPolicy<C, Hashed<fn(&u64) -> Option<u64>>>;

fn by_number<C: Scheme>() -> ByNumber<C> {
    HashPolicy::by_key(hashed((|request: &u64| Some(*request)) as fn(&u64) -> _))
}

fn names(n: usize) -> Vec<String> {
    (0..n)
        .map(|i| format!("10.0.{}.{}:80", i / 256, i % 256))
        .collect()
}

fn list(names: &[String]) -> impl Iterator<Item = (&str, u32)> {
    names.iter().map(|name| (&**name, 1))
}

/// A stream of hashes, a nanosecond each.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 27)
    }
}

fn lookup<T: tower_lb::hash::Lookup>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    table: &HashTable<T>,
) {
    let mut keys = Keys(1);
    group.bench_function(name, |b| {
        b.iter(|| table.owner_of_hash(black_box(keys.next())));
    });
}

fn lookups(c: &mut Criterion) {
    for n in SIZES {
        let names = names(n);
        let mut group = c.benchmark_group(format!("lookup/{n}"));
        group
            .measurement_time(Duration::from_secs(1))
            .warm_up_time(Duration::from_millis(300));
        // 1. What anybody would write first: a sorted array of 100 points a host, and a binary search.
        let ring = RingHash::by_key(hashed(|key: &u64| Some(*key)))
            .points(100)
            .expect("valid");
        let ring = ring.table_for(list(&names));
        let plain: Vec<(u64, usize)> = ring.get_ref().points().collect();
        let mut keys = Keys(1);
        group.bench_function("sorted array, 100 points", |b| {
            b.iter(|| {
                let hash = black_box(keys.next());
                let at = plain.partition_point(|&(point, _)| point < hash);
                plain.get(at).or(plain.first()).map(|&(_, host)| host)
            });
        });
        // 2. Ours.
        lookup(&mut group, "ring, 100 points", &ring);
        lookup(
            &mut group,
            "ring, 256 points",
            &by_number::<tower_lb::hash::RingScheme>().table_for(list(&names)),
        );
        lookup(
            &mut group,
            "maglev",
            &by_number::<tower_lb::hash::MaglevScheme>().table_for(list(&names)),
        );
        if n <= 1_000 {
            lookup(
                &mut group,
                "rendezvous",
                &by_number::<tower_lb::hash::RendezvousScheme>().table_for(list(&names)),
            );
            let weighted = names.iter().zip(1..).map(|(name, i)| (&**name, 1 + i % 3));
            lookup(
                &mut group,
                "rendezvous, weighted",
                &by_number::<tower_lb::hash::RendezvousScheme>().table_for(weighted),
            );
        }
        // 3. Other crates: `hashring` has one point for each node that is added, and hashes the key by SipHash.
        let mut other = hashring::HashRing::new();
        other.batch_add(
            names
                .iter()
                .flat_map(|name| (0..100).map(move |i| (name.clone(), i)))
                .collect(),
        );
        let mut keys = Keys(1);
        group.bench_function("crate hashring, 100 points", |b| {
            b.iter(|| other.get(&black_box(keys.next())).is_some());
        });
        if n <= 1_000 {
            let other = maglev::Maglev::with_capacity(names.clone(), 65_537);
            let mut keys = Keys(1);
            group.bench_function("crate maglev", |b| {
                b.iter(|| maglev::ConsistentHasher::get(&other, &black_box(keys.next())).is_some());
            });
        }
        group.finish();
    }
}

/// The time to build, to take in one host in place of another, and the size.
fn builds(c: &mut Criterion) {
    fn scheme<C: Scheme>(c: &mut Criterion, what: &str, policy: &HashPolicy<C, impl Sized>) {
        for n in SIZES {
            let before = names(n);
            let mut after = before.clone();
            after[n / 2] = "10.1.2.3:80".into();
            let mut group = c.benchmark_group(format!("table/{n}"));
            group
                .measurement_time(Duration::from_secs(1))
                .warm_up_time(Duration::from_millis(300))
                .sample_size(10);
            group.bench_function(format!("{what}, build"), |b| {
                b.iter(|| policy.table_for(list(black_box(&before))));
            });
            let table = policy.table_for(list(&before));
            group.bench_function(format!("{what}, replace one"), |b| {
                b.iter(|| policy.table_from(list(black_box(&after)), &table));
            });
            group.finish();
            let mut made = None;
            let info = allocation_counter::measure(|| made = Some(policy.table_for(list(&before))));
            println!(
                "table/{n}/{what}: {} bytes a host\n",
                info.bytes_current / n as i64
            );
        }
    }
    scheme(
        c,
        "ring of 100 points",
        &by_number::<tower_lb::hash::RingScheme>()
            .points(100)
            .expect("valid"),
    );
    scheme(
        c,
        "ring of 256 points",
        &by_number::<tower_lb::hash::RingScheme>(),
    );
    scheme(c, "maglev", &by_number::<tower_lb::hash::MaglevScheme>());
    scheme(
        c,
        "rendezvous",
        &by_number::<tower_lb::hash::RendezvousScheme>(),
    );
    let mut group = c.benchmark_group("table/1000");
    group.sample_size(10);
    let names = names(1_000);
    group.bench_function("maglev of weights 1 to 3, build", |b| {
        let weighted = || names.iter().zip(0..).map(|(name, i)| (&**name, 1 + i % 3));
        b.iter(|| by_number::<tower_lb::hash::MaglevScheme>().table_for(weighted()));
    });
    group.bench_function("crate maglev, build", |b| {
        b.iter(|| maglev::Maglev::with_capacity(black_box(&names).clone(), 65_537));
    });
    group.bench_function("crate hashring of 100 points, build", |b| {
        b.iter(|| {
            let mut ring = hashring::HashRing::new();
            ring.batch_add(
                names
                    .iter()
                    .flat_map(|name| (0..100).map(move |i| (name, i)))
                    .collect(),
            );
            ring
        });
    });
    group.finish();
}

/// Through the balancer: `poll_ready`, `call` and the answer of an always-ready service.
fn requests(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    for n in [10, 1_000] {
        let mut group = c.benchmark_group(format!("request/{n}"));
        group
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(500));
        let tracked = PendingRequestsLayer::default;
        let mut p2c = balance(n, tracked(), tower_lb::P2c::default());
        group.bench_function("p2c", |b| b.iter(|| request(black_box(&mut p2c))));
        let key = || tower_lb::hash::owned(|request: &u64| Some(request.to_le_bytes()));
        let mut ring = balance(n, tracked(), RingHash::by_key(key()));
        group.bench_function("ring", |b| b.iter(|| request(black_box(&mut ring))));
        let mut maglev = balance(n, tracked(), Maglev::by_key(key()));
        group.bench_function("maglev", |b| b.iter(|| request(black_box(&mut maglev))));
        let mut rendezvous = balance(n, tracked(), Rendezvous::by_key(key()));
        group.bench_function("rendezvous", |b| {
            b.iter(|| request(black_box(&mut rendezvous)))
        });
        let bounded = RingHash::by_key(key()).bounded(1.25).expect("valid");
        let mut bounded = balance(n, tracked().with_total(), bounded);
        group.bench_function("ring, bounded", |b| {
            b.iter(|| request(black_box(&mut bounded)))
        });
        group.finish();
    }
}

criterion_group!(benches, lookups, builds, requests);
criterion_main!(benches);
