//! Eight tasks on two workers do everything at once that handles and endpoints allow, while the set
//! changes all the time: for two seconds a stack, or `STRESS_SECONDS`.

use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{sync::watch, task::yield_now, time::Instant};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer,
    util::BoxCloneSyncService,
};
use tower_lb::{
    AdaptiveThrottleLayer, BalanceLayer, DeadlineLayer, Endpoint, FailoverLayer, HealthCheckLayer,
    HedgeLayer, Idempotent, LeastLoaded, LimitLayer, OutlierLayer, P2c, PeakEwmaLayer,
    PendingRequestsLayer, RingHash, RoundRobin, WatchLayer, Watcher, each, hash,
};

/// Requests know when they began, so that one which was sent before its endpoint left is no fault.
#[derive(Clone, Copy, Debug)]
struct Request {
    began: u64,
    key: u64,
}

/// What all servers share.
struct World {
    /// Counts departures that are visible.
    clock: AtomicU64,
    /// When each address left; 0 while it is here.
    left_at: [AtomicU64; ADDRESSES],
    failing: [AtomicBool; ADDRESSES],
    calls: AtomicUsize,
    calls_to_removed: AtomicUsize,
}

#[derive(Clone)]
struct Client {
    world: Arc<World>,
    address: usize,
}

impl Service<Request> for Client {
    type Response = usize;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<usize, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.world.failing[self.address].load(SeqCst) {
            true if self.address.is_multiple_of(2) => Poll::Ready(Err("not ready".into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, Request { began, key }: Request) -> Self::Future {
        let Self { world, address } = self.clone();
        world.calls.fetch_add(1, SeqCst);
        let left_at = world.left_at[address].load(SeqCst);
        if left_at != 0 && left_at <= began {
            world.calls_to_removed.fetch_add(1, SeqCst);
        }
        Box::pin(async move {
            for _ in 0..key % 7 {
                yield_now().await;
            }
            match key % 50 {
                0 => std::future::pending().await,
                1 => tokio::time::sleep(Duration::from_millis(3)).await,
                _ => {}
            }
            match world.failing[address].load(SeqCst) {
                true => Err("it fails".into()),
                false => Ok(address),
            }
        })
    }
}

type Stack = (
    BoxCloneSyncService<Request, usize, BoxError>,
    Watcher<usize>,
);

async fn stress(
    name: &str,
    stack: impl FnOnce(watch::Receiver<Vec<(usize, u32)>>, Arc<World>) -> Stack,
) {
    let seconds = std::env::var("STRESS_SECONDS").ok();
    let seconds = seconds.map_or(2, |seconds| seconds.parse().expect("a number"));
    let world = Arc::new(World {
        clock: AtomicU64::new(0),
        left_at: [const { AtomicU64::new(0) }; ADDRESSES],
        failing: [const { AtomicBool::new(false) }; ADDRESSES],
        calls: AtomicUsize::new(0),
        calls_to_removed: AtomicUsize::new(0),
    });
    let here: Vec<_> = (0..ADDRESSES / 2).map(|address| (address, 1)).collect();
    let (targets, rx) = watch::channel(here);
    let (service, watcher) = stack(rx, world.clone());
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for seed in 0..8 {
        let (service, watcher, world) = (service.clone(), watcher.clone(), world.clone());
        tasks.push(tokio::spawn(async move {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let mut kept = service.clone();
            while Instant::now() < until {
                for _ in 0..100 {
                    act(&service, &mut kept, &watcher, &world, rng).await;
                }
            }
        }));
    }
    let (mut rng, mut warm) = (SmallRng::seed_from_u64(99), 0);
    let start = Instant::now();
    while Instant::now() < until {
        churn(&targets, &watcher, &world, &mut rng).await;
        if warm == 0 && start.elapsed() > Duration::from_secs(seconds) / 2 {
            warm = resident_bytes();
        }
    }
    for task in tasks {
        task.await.expect("no task panics");
    }
    let members = watcher.members();
    let in_flight: usize = members.iter().filter_map(|member| member.in_flight()).sum();
    let (calls, grown) = (
        world.calls.load(SeqCst),
        resident_bytes().saturating_sub(warm),
    );
    println!(
        "{name}: {calls} calls, {} departures, {} KiB grown",
        world.clock.load(SeqCst),
        grown >> 10
    );
    assert_eq!(world.calls_to_removed.load(SeqCst), 0, "{name}");
    assert_eq!(in_flight, 0, "{name}: in flight at the end");
    assert!(calls > 1000, "{name}: {calls} calls");
    assert!(grown < 8 << 20, "{name}: {grown} bytes grown");
}

/// One of the things that callers and operators do.
async fn act(
    service: &BoxCloneSyncService<Request, usize, BoxError>,
    kept: &mut BoxCloneSyncService<Request, usize, BoxError>,
    watcher: &Watcher<usize>,
    world: &World,
    rng: &mut SmallRng,
) {
    let request = |rng: &mut SmallRng| Request {
        began: world.clock.load(SeqCst),
        key: rng.random(),
    };
    match rng.random_range(0..100) {
        // A reservation that is dropped, or a wait that is.
        0..10 => {
            let mut fresh = service.clone();
            poll_some(fresh.ready(), rng).await;
        }
        // A reservation that outlives changes of the set.
        10..20 => {
            if poll_some(kept.ready(), rng).await {
                yield_now().await;
                let request = request(rng);
                poll_some(kept.call(request), rng).await;
            }
        }
        20..96 => {
            let request = request(rng);
            let answer = service.clone().oneshot(request);
            poll_some(answer, rng).await;
        }
        // An operator.
        _ => {
            let members = watcher.members();
            if members.is_empty() {
                return;
            }
            let endpoint = members[rng.random_range(0..members.len())].endpoint();
            match rng.random_range(0..5) {
                0 => endpoint.eject(Instant::now() + Duration::from_millis(5)),
                1 => endpoint.mark_unhealthy(),
                2 => endpoint.readmit(),
                _ => endpoint.mark_healthy(),
            }
        }
    }
}

/// Polls a future for a random while, then drops it. Returns whether it was done.
async fn poll_some<T, E: fmt::Debug>(
    future: impl Future<Output = Result<T, E>>,
    rng: &mut SmallRng,
) -> bool {
    let mut future = pin!(future);
    for _ in 0..rng.random_range(0..40) {
        let polled = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(result) = polled {
            return result.is_ok();
        }
        yield_now().await;
    }
    false
}

/// Changes the set, and notes the endpoints that left once all can see it.
async fn churn(
    targets: &watch::Sender<Vec<(usize, u32)>>,
    watcher: &Watcher<usize>,
    world: &World,
    rng: &mut SmallRng,
) {
    let address = rng.random_range(0..ADDRESSES);
    world.failing[rng.random_range(0..ADDRESSES)].store(rng.random_bool(0.2), SeqCst);
    let mut list = targets.borrow().clone();
    let before = list.len();
    list.retain(|(other, _)| *other != address);
    let joins = list.len() == before;
    if joins {
        world.left_at[address].store(0, SeqCst);
        list.push((address, rng.random_range(0..4)));
    }
    targets.send_replace(list);
    let is_here = || {
        let members = watcher.members();
        members.iter().any(|m| *m.endpoint().address() == address)
    };
    // A list that the driver has not taken in yet would otherwise look like one without it.
    while is_here() != joins {
        yield_now().await;
    }
    if !joins {
        let now = world.clock.fetch_add(1, SeqCst) + 1;
        world.left_at[address].store(now, SeqCst);
    }
    yield_now().await;
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

#[test]
fn everything_at_once() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build();
    // One after the other, because each measures the memory of the process.
    runtime.unwrap().block_on(async {
        stress("p2c, pending requests", |rx, world| {
            let balance = ServiceBuilder::new()
                .layer(BalanceLayer::new(P2c::default()))
                .layer(each(PendingRequestsLayer::default()))
                .layer(each(ConcurrencyLimitLayer::new(2)))
                .layer(WatchLayer::new(rx))
                .service(factory(world));
            let watcher = balance.watcher();
            (BoxCloneSyncService::new(balance), watcher)
        })
        .await;
        stress("round robin, outlier detection, peak ewma", |rx, world| {
            let balance = ServiceBuilder::new()
                .layer(BalanceLayer::new(RoundRobin::default()))
                .layer(OutlierLayer::default().base_ejection(Duration::from_millis(5)))
                .layer(each(PeakEwmaLayer::default()))
                .layer(each(ConcurrencyLimitLayer::new(2)))
                .layer(WatchLayer::new(rx))
                .service(factory(world));
            let watcher = balance.watcher();
            (BoxCloneSyncService::new(balance), watcher)
        })
        .await;
        stress("bounded ring", |rx, world| {
            let key = hash::owned(|request: &Request| Some(request.key.to_le_bytes()));
            let policy = RingHash::by_key(key).bounded(1.25).unwrap();
            let balance = ServiceBuilder::new()
                .layer(BalanceLayer::new(policy))
                .layer(each(PendingRequestsLayer::default().with_total()))
                .layer(each(ConcurrencyLimitLayer::new(2)))
                .layer(WatchLayer::new(rx))
                .service(factory(world));
            let watcher = balance.watcher();
            (BoxCloneSyncService::new(balance), watcher)
        })
        .await;
        stress("every layer", |rx, world| {
            let check = |endpoint: Endpoint<usize>, _: _| async move {
                match endpoint.address() % 7 {
                    0 => Err("sick"),
                    _ => Ok(()),
                }
            };
            let balance = ServiceBuilder::new()
                .layer(BalanceLayer::new(LeastLoaded::default()))
                .layer(OutlierLayer::default().base_ejection(Duration::from_millis(5)))
                .layer(each(PeakEwmaLayer::default()))
                .layer(HealthCheckLayer::new(check).interval(Duration::from_millis(20)))
                .layer(each(ConcurrencyLimitLayer::new(2)))
                .layer(WatchLayer::new(rx))
                .service(factory(world));
            let watcher = balance.watcher();
            let stack = ServiceBuilder::new()
                .layer(DeadlineLayer::new(Duration::from_millis(20)))
                .layer(AdaptiveThrottleLayer::default())
                .layer(LimitLayer::new(50))
                .layer(FailoverLayer::new(Idempotent::all()))
                .layer(HedgeLayer::after(
                    Duration::from_millis(2),
                    Idempotent::all(),
                ))
                .service(balance);
            (BoxCloneSyncService::new(stack), watcher)
        })
        .await;
    });
}

fn factory(world: Arc<World>) -> impl Fn(&Endpoint<usize>) -> Client + Clone {
    move |endpoint| Client {
        world: world.clone(),
        address: *endpoint.address(),
    }
}

const ADDRESSES: usize = 40;
