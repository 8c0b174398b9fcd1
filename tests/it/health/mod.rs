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
        EjectionGrowth, FailureRate, HealthCheckLayer, Heartbeats, Outlier, OutlierLayer,
        SlowLatency, UntilFirstCheck,
    },
    *,
};

use crate::support::*;

type Watched = Outlier<Client, usize>;

/// Round robin over servers under outlier detection, so that each one gets every n-th request.
fn round_robin(servers: &[Server], layer: OutlierLayer) -> Balance<RoundRobin, Watched, (), usize> {
    ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(layer)
        .layer(fixed(0..servers.len()))
        .service(factory(servers))
}

/// Ejections as long as Envoy's: 30, 60, 90 s.
fn envoy() -> OutlierLayer {
    OutlierLayer::default()
        .base_ejection(Duration::from_secs(30))
        .ejection_growth(EjectionGrowth::Linear)
}

async fn call<S: Service<(), Error = BoxError>>(service: &mut S) -> Result<S::Response, BoxError> {
    service.ready().await?.call(()).await
}

/// Sends `n` requests one after the other and ignores their outcomes.
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
    let members = balance.members();
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

mod ejection;

mod probes;

/// One of ten servers fails a hundred times faster than the others answer, at a load of .9.
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
                .failure_rate(None),
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
            // The load is nine tenths of what ten servers can serve.
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

mod checks;

mod heartbeats;

mod slow_start;

/// Statuses follow the rules for any sequence of events.
mod model;

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
