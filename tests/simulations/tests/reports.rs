//! How much load reports of servers help when there are many clients.
//!
//! Run with `--nocapture` to see the figures.
#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, load::Load, service_fn, util::BoxCloneSyncService,
};
use tower_lb::{report::ReportedLayer, *};

/// Returns a request's mean time in the system. Each of 100 servers serves one request at a time,
/// in 1 s on average, and reports with each response how many requests it has left. 100 clients
/// send at 90 % of the servers' capacity.
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
    for _ in 0..20 {
        yield_now().await;
    }
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
            // Measures only once the queues have reached their full length.
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
