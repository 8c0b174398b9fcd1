//! Which policy and tracker to try first: latencies of `P2c` and `LeastLoaded` over `PeakEwma` and
//! `PendingRequests`, for few servers and many, one client and many.
//!
//! Run with `--nocapture` to see the figures.
#![allow(clippy::unwrap_used)]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, yield_now},
    time::{Instant, sleep, sleep_until},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, load::Load, service_fn, util::BoxCloneSyncService,
};
use tower_lb::*;

/// A set of servers that each serve one request at a time, in 1 s on average.
#[derive(Clone, Copy, Debug)]
struct Scene {
    servers: usize,
    clients: u64,
    load: f64,
    /// The first server takes so many times as long.
    slowness: f64,
    /// The first server fails all requests, in a hundredth of the time.
    fails: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    p50: f64,
    p99: f64,
    p999: f64,
    errors: f64,
}

type ToServer = BoxCloneSyncService<(), (), io::Error>;

async fn run<P, T>(scene: Scene, policy: impl Fn(u64) -> P, tracker: impl Fn() -> T) -> Seen
where
    P: Policy<usize, T::Service, ()> + Clone,
    T: Layer<ToServer, Service: Load<Metric: Cost>> + Clone + Send + 'static,
    T::Service:
        Service<(), Response = (), Error = io::Error, Future: Send> + Clone + Send + Sync + 'static,
{
    const REQUESTS: usize = 60_000;
    let draws = Arc::new(AtomicU64::new(0));
    let turns: Arc<Vec<_>> = Arc::new((0..scene.servers).map(|_| Semaphore::new(1)).collect());
    let clients: Vec<_> = (0..scene.clients)
        .map(|client| {
            let (turns, draws) = (turns.clone(), draws.clone());
            let factory = move |endpoint: &Endpoint<usize>| {
                let (server, turns, draws) = (*endpoint.address(), turns.clone(), draws.clone());
                ToServer::new(service_fn(move |()| {
                    let (turns, draws) = (turns.clone(), draws.clone());
                    async move {
                        let mut rng = SmallRng::seed_from_u64(draws.fetch_add(1, Relaxed));
                        let is_odd = server == 0;
                        if is_odd && scene.fails {
                            sleep(exponential(&mut rng, 0.01)).await;
                            return Err(io::ErrorKind::Other.into());
                        }
                        let _turn = turns[server].acquire().await;
                        let mean = if is_odd { scene.slowness } else { 1.0 };
                        sleep(exponential(&mut rng, mean)).await;
                        Ok(())
                    }
                }))
            };
            ServiceBuilder::new()
                .layer(BalanceLayer::new(policy(client)))
                .layer(each(tracker()))
                .layer(fixed(0..scene.servers))
                .service(factory)
        })
        .collect();
    for _ in 0..20 {
        yield_now().await;
    }
    let mut rng = SmallRng::seed_from_u64(1);
    let mut at = Instant::now();
    let mut answers = JoinSet::new();
    for _ in 0..REQUESTS {
        at += exponential(&mut rng, 1.0 / (scene.load * scene.servers as f64));
        sleep_until(at).await;
        let client = clients[rng.random_range(0..clients.len())].clone();
        answers.spawn(async move {
            let sent = Instant::now();
            client
                .oneshot(())
                .await
                .map(|()| sent.elapsed().as_secs_f64())
        });
    }
    let mut took = Vec::new();
    for answer in answers.join_all().await {
        took.extend(answer);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[(took.len() as f64 * share) as usize];
    Seen {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        errors: 1.0 - took.len() as f64 / REQUESTS as f64,
    }
}

fn exponential(rng: &mut impl Rng, mean: f64) -> Duration {
    Duration::from_secs_f64(-mean * (1.0 - rng.random::<f64>()).ln())
}

/// All four stacks, in the order of the table.
async fn compare(what: &str, scene: Scene) -> [Seen; 4] {
    // Requests take a second, so what the trackers know in seconds lasts for as many requests.
    let ewma = || {
        PeakEwmaLayer::default()
            .default_rtt(Duration::from_secs(3))
            .decay(Duration::from_secs(1000))
            .failure_penalty(Duration::from_secs(500))
    };
    let pending = PendingRequestsLayer::default;
    let seen = [
        run(scene, P2c::seeded, pending).await,
        run(scene, P2c::seeded, ewma).await,
        run(scene, LeastLoaded::seeded, pending).await,
        run(scene, LeastLoaded::seeded, ewma).await,
    ];
    println!("{what}");
    let names = ["p2c, pending", "p2c, ewma", "least, pending", "least, ewma"];
    for (name, seen) in names.iter().zip(&seen) {
        let Seen {
            p50,
            p99,
            p999,
            errors,
        } = seen;
        println!("  {name:14} {p50:6.2} {p99:6.2} {p999:6.2}, errors {errors:.3}");
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn what_to_try_first() {
    let scene = Scene {
        servers: 5,
        clients: 1,
        load: 0.5,
        slowness: 1.0,
        fails: false,
    };
    let alone = compare("5 servers, 1 client, load .5", scene).await;
    assert!(alone[3].p50 <= alone[1].p50);
    let slow = Scene {
        slowness: 10.0,
        ..scene
    };
    let slow = compare("the same, one server ten times slower", slow).await;
    assert!(slow[3].p99 <= slow[1].p99 && slow[3].p99 <= slow[2].p99);
    let fails = Scene {
        servers: 10,
        fails: true,
        ..scene
    };
    let fails = compare("10 servers, one fails at once", fails).await;
    // Round robin sends it a tenth.
    assert!(fails[0].errors > 0.12 && fails[2].errors > 0.12);
    assert!(fails[1].errors < 0.05 && fails[3].errors < 0.05);
    for (servers, clients) in [(100, 1), (100, 10), (100, 100)] {
        let scene = Scene {
            servers,
            clients,
            load: 0.7,
            ..scene
        };
        compare(
            &format!("{servers} servers, {clients} clients, load .7"),
            scene,
        )
        .await;
    }
}
