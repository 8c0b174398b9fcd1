//! Nobody starves: endpoints that join, restart or weigh little get what is due to them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_lb::*;

use crate::support::*;

/// Before, nothing for 5 s and 7 % of its share in the first minute.
#[tokio::test(start_paused = true)]
async fn a_newcomer_soon_has_its_share_of_peak_ewma() {
    for (known, joins) in [
        (vec![1, 1, 1, 1], 1),
        (vec![1, 5, 30, 1, 5, 30, 1, 5, 30, 5], 5),
    ] {
        let n = known.len();
        let behaviours = known.iter().chain([&joins]);
        let behaviours: Vec<_> = behaviours.map(|&m| Behaviour::Answer(ms(m))).collect();
        let servers = servers(&behaviours);
        let (targets, rx) = watch::channel((0..n).collect::<Vec<_>>());
        let client = ServiceBuilder::new()
            .layer(BalanceLayer::new(p2c(1)))
            .layer(each(PeakEwmaLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        send(client.clone(), &servers, 1000, 10, None).await;
        targets.send_replace((0..=n).collect());
        send(client.clone(), &servers, 1000, 1, None).await;
        let mut seconds = Vec::new();
        for _ in 0..30 {
            seconds.push(send(client.clone(), &servers, 1000, 1, None).await.0);
        }
        for window in seconds.windows(10) {
            let calls = |server| window.iter().map(|calls| calls[server]).sum::<usize>() as f64;
            let peers: Vec<_> = (0..n).filter(|&peer| known[peer] == joins).collect();
            let fair = peers.iter().map(|&peer| calls(peer)).sum::<f64>() / peers.len() as f64;
            let got = calls(n) / fair;
            println!("{got}");
            assert!((0.9..1.1).contains(&got), "{got} of its share, {window:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_hangs_gets_one_request() {
    let mut behaviours = vec![Behaviour::Answer(ms(1)); 5];
    behaviours[4] = Behaviour::Hang;
    let servers = servers(&behaviours);
    let (targets, rx) = watch::channel((0..4).collect::<Vec<_>>());
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(1)))
        .layer(each(PeakEwmaLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    send(client.clone(), &servers, 1000, 5, None).await;
    targets.send_replace((0..5).collect());
    send(client, &servers, 1000, 30, None).await;
    assert_eq!(servers[4].calls(), 1);
}

/// A server that works on one request at a time, and refuses connections while it restarts.
#[derive(Clone)]
struct Worker {
    calls: Arc<AtomicUsize>,
    free: Arc<Semaphore>,
    down_until: Arc<std::sync::Mutex<Instant>>,
}

impl Worker {
    fn new() -> Self {
        Self {
            calls: Arc::default(),
            free: Arc::new(Semaphore::new(1)),
            down_until: Arc::new(std::sync::Mutex::new(Instant::now())),
        }
    }

    async fn work(self, time: Duration) -> Result<(), std::io::Error> {
        self.calls.fetch_add(1, Relaxed);
        if Instant::now() < *self.down_until.lock().unwrap() {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let _permit = self.free.acquire().await.unwrap();
        sleep(time).await;
        Ok(())
    }
}

/// How a run at a load of .5 went.
struct Run {
    /// In ms.
    p99: u128,
    errors: usize,
    /// Calls for each request.
    load: f64,
}

/// The stack under test, over workers `0..5`.
type Stack = fn(Vec<Worker>) -> BoxCloneSyncService<Duration, (), BoxError>;

/// A balancer over the workers, with a tracker.
macro_rules! balance {
    ($workers:expr, $tracker:expr) => {{
        let workers: Vec<Worker> = $workers;
        ServiceBuilder::new()
            .layer(BalanceLayer::new(p2c(1)))
            .layer(OutlierLayer::default().seeded(1))
            .layer(each($tracker))
            .layer(fixed(0..5))
            .service(move |endpoint: &Endpoint<usize>| {
                let worker = workers[*endpoint.address()].clone();
                service_fn(move |time| worker.clone().work(time))
            })
    }};
}

fn failover(workers: Vec<Worker>) -> BoxCloneSyncService<Duration, (), BoxError> {
    let layer = FailoverLayer::new(ConnectErrors::default()).seeded(1);
    BoxCloneSyncService::new(layer.layer(balance!(workers, PeakEwmaLayer::default())))
}

fn hedged(workers: Vec<Worker>) -> BoxCloneSyncService<Duration, (), BoxError> {
    let budget = Budget::new();
    let stack = ServiceBuilder::new()
        .layer(HedgeLayer::after(ms(60), Idempotent::all()).budget(budget.drawing()))
        .layer(
            FailoverLayer::new(Idempotent::all())
                .budget(budget)
                .seeded(1),
        )
        .service(balance!(workers, PeakEwmaLayer::default()));
    BoxCloneSyncService::new(stack)
}

fn pending(workers: Vec<Worker>) -> BoxCloneSyncService<Duration, (), BoxError> {
    let layer = FailoverLayer::new(ConnectErrors::default()).seeded(1);
    BoxCloneSyncService::new(layer.layer(balance!(workers, PendingRequestsLayer::default())))
}

async fn run(stack: Stack, restarts: bool) -> Run {
    const SECONDS: u32 = 120;
    let workers: Vec<_> = (0..5).map(|_| Worker::new()).collect();
    let client = stack(workers.clone());
    let all = workers.clone();
    if restarts {
        tokio::spawn(async move {
            for worker in workers.iter().cycle() {
                sleep(ms(2500)).await;
                *worker.down_until.lock().unwrap() = Instant::now() + ms(300);
            }
        });
    }
    let mut random = 1_u64;
    let mut draw = || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        -((random >> 11) as f64 / (1_u64 << 53) as f64)
            .max(1e-9)
            .ln()
    };
    let start = Instant::now();
    let mut at = start;
    let mut answers = Vec::new();
    while at < start + Duration::from_secs(SECONDS.into()) {
        // 20 ms each, so 125 a second keep half of five busy.
        at += ms(8).mul_f64(draw());
        sleep_until(at).await;
        let (client, time) = (client.clone(), ms(20).mul_f64(draw()));
        answers.push(tokio::spawn(async move {
            let sent = Instant::now();
            client.oneshot(time).await.map(|()| sent.elapsed())
        }));
    }
    let mut took = Vec::new();
    let mut errors = 0;
    for answer in answers {
        match answer.await.unwrap() {
            Ok(time) => took.push(time.as_millis()),
            Err(_) => errors += 1,
        }
    }
    took.sort_unstable();
    let calls: usize = all.iter().map(|worker| worker.calls.load(Relaxed)).sum();
    Run {
        p99: took[took.len() * 99 / 100],
        errors,
        load: calls as f64 / (took.len() + errors) as f64,
    }
}

/// Before, the p99 was more than twice as high, and one of `PendingRequests` suffered from
/// ejections of 30 s.
#[tokio::test(start_paused = true)]
async fn restarts_in_turn_do_not_show() {
    for stack in [failover as Stack, pending] {
        let quiet = run(stack, false).await;
        let busy = run(stack, true).await;
        println!(
            "{} ms, with restarts {} ms, {} errors",
            quiet.p99, busy.p99, busy.errors
        );
        assert_eq!(busy.errors, 0);
        assert!(busy.p99 as f64 <= 1.2 * quiet.p99 as f64);
    }
}

/// Hedges and retries share a budget. Before, hedges spent it all, and requests failed.
#[tokio::test(start_paused = true)]
async fn hedges_leave_retries_what_they_need() {
    let Run { p99, errors, load } = run(hedged, true).await;
    println!("{p99} ms, {errors} errors, {load} calls a request");
    assert_eq!(errors, 0);
    assert!(load <= 1.15, "{load}");
}

/// Latencies of like servers differ by chance. Before, the weight counted twice, in the draw and in
/// the division: .02 to .004 for .20, and .001 to .011 for .048.
#[tokio::test(start_paused = true)]
async fn small_weights_get_their_due_of_peak_ewma_from_one_caller() {
    async fn check<P>(policy: P, weights: &[u32], slow_start: bool) -> f64
    where
        P: Policy<usize, PeakEwma<Client>, ()> + Clone,
    {
        let servers = servers(&vec![Behaviour::Answer(ms(10)); weights.len()]);
        let mut targets: Vec<(usize, u32)> = weights.iter().copied().enumerate().collect();
        let joins = slow_start.then(|| targets.pop()).flatten();
        let (list, rx) = watch::channel(targets);
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy).slow_start(SlowStart::default()))
            .layer(each(PeakEwmaLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        let mut jitter = (0..).map(|i: u64| ms(9 + i * 7 % 3));
        let mut run = async |requests: u32| {
            for _ in 0..requests {
                let time = jitter.next().unwrap();
                servers
                    .iter()
                    .for_each(|server| server.behave(Behaviour::Answer(time)));
                start(&mut client).await.await.unwrap();
            }
        };
        sleep(Duration::from_secs(90)).await;
        run(1000).await;
        if let Some(joins) = joins {
            list.send_modify(|targets| targets.push(joins));
            // The share is a tenth until the sixth second.
            sleep(ms(1)).await;
        }
        let last = weights.len() - 1;
        let before: Vec<_> = servers.iter().map(Server::calls).collect();
        run(if slow_start { 500 } else { 10_000 }).await;
        let calls = servers
            .iter()
            .zip(before)
            .map(|(server, before)| server.calls() - before);
        share(&calls.collect::<Vec<_>>(), last)
    }
    let cases: [(&[u32], bool, f64); 4] = [
        (&[4, 1], false, 0.2),
        (&[100, 100, 100, 100, 20], false, 0.048),
        (&[100, 100, 100, 100, 20, 20], false, 0.0455),
        (&[1, 1, 1, 1, 1], true, 0.0244),
    ];
    for (weights, slow_start, due) in cases {
        let p2c = check(p2c(1), weights, slow_start).await;
        let least = check(LeastLoaded::seeded(1), weights, slow_start).await;
        println!("{weights:?}: p2c {p2c}, least loaded {least}, due {due}");
        for share in [p2c, least] {
            let part = share / due;
            assert!(
                (0.65..1.5).contains(&part),
                "{share}, not {due}, of {weights:?}"
            );
        }
    }
}
