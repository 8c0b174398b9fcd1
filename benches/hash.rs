//! Measures the cost of consistent hashing: a lookup, a table and the change of one endpoint.
//! Compares with other crates in the same run.

mod support;

use std::{hint::black_box, time::Duration};

use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use support::{balance, request};
use tower_lb::{
    Maglev, PendingRequestsLayer, Rendezvous, RingHash,
    hash::{
        HashPolicy, hashed,
        keys::Hashed,
        table::{HashScheme, HashTable},
    },
};

const SIZES: [usize; 5] = [3, 10, 100, 1_000, 10_000];

type ByNumber<C> = HashPolicy<C, Hashed<fn(&u64) -> Option<u64>>>;

fn by_number<C: HashScheme>() -> ByNumber<C> {
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

/// A stream of hashes, at a cost of about one nanosecond each.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 27)
    }
}

fn lookup<T: tower_lb::hash::table::Lookup>(
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
        // 1. The simplest ring: a sorted array of 100 points per endpoint, and a binary search.
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
        // 2. tower-lb.
        lookup(&mut group, "ring, 100 points", &ring);
        lookup(
            &mut group,
            "ring, 256 points",
            &by_number::<tower_lb::hash::table::RingScheme>().table_for(list(&names)),
        );
        lookup(
            &mut group,
            "maglev",
            &by_number::<tower_lb::hash::table::MaglevScheme>().table_for(list(&names)),
        );
        if n <= 1_000 {
            lookup(
                &mut group,
                "rendezvous",
                &by_number::<tower_lb::hash::table::RendezvousScheme>().table_for(list(&names)),
            );
            let weighted = names.iter().zip(1..).map(|(name, i)| (&**name, 1 + i % 3));
            lookup(
                &mut group,
                "rendezvous, weighted",
                &by_number::<tower_lb::hash::table::RendezvousScheme>().table_for(weighted),
            );
        }
        // 3. Other crates. `hashring` adds one point per node, hence 100 nodes per endpoint, and
        //    hashes the key by SipHash.
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

/// Measures the time to build a table, the time to replace one endpoint, and the size.
fn builds(c: &mut Criterion) {
    fn scheme<C: HashScheme>(c: &mut Criterion, what: &str, policy: &HashPolicy<C, impl Sized>) {
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
        &by_number::<tower_lb::hash::table::RingScheme>()
            .points(100)
            .expect("valid"),
    );
    scheme(
        c,
        "ring of 256 points",
        &by_number::<tower_lb::hash::table::RingScheme>(),
    );
    scheme(
        c,
        "maglev",
        &by_number::<tower_lb::hash::table::MaglevScheme>(),
    );
    scheme(
        c,
        "rendezvous",
        &by_number::<tower_lb::hash::table::RendezvousScheme>(),
    );
    let mut group = c.benchmark_group("table/1000");
    group.sample_size(10);
    let names = names(1_000);
    group.bench_function("maglev of weights 1 to 3, build", |b| {
        let weighted = || names.iter().zip(0..).map(|(name, i)| (&**name, 1 + i % 3));
        b.iter(|| by_number::<tower_lb::hash::table::MaglevScheme>().table_for(weighted()));
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

/// Measures whole requests: `poll_ready`, `call` and the answer of an always-ready service.
fn requests(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
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
