//! Measures the throughput of 64 tasks on two workers through one balancer, compared with tower's
//! behind a `Buffer`; and of a stack with every layer on two threads, compared with one.

mod support;

use std::{fmt::Debug, hint::black_box, sync::Barrier, thread, time::Duration};

use support::{Echo, balance, driven, request};
use tokio::time::Instant;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, balance::p2c, buffer::Buffer,
    discover::ServiceList, load,
};
use tower_lb::{
    AdaptiveThrottleLayer, DeadlineLayer, FailoverLayer, Idempotent, LimitLayer, OutlierLayer, P2c,
    PeakEwmaLayer, PendingRequestsLayer, each, from_discover,
};

/// How the tasks share the balancer.
#[derive(Clone, Copy, Debug)]
enum Handle {
    Kept,
    FreshForEachRequest,
}

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return println!("contention: nothing to test");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    for n in [10, 1000] {
        // Measured in turns, so that a drift of the machine's speed affects all of them.
        let (mut ours, mut fresh, mut towers) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let balance = balance(n, PendingRequestsLayer::default(), P2c::default());
            ours.push(rate(&runtime, balance.clone(), Handle::Kept));
            fresh.push(rate(&runtime, balance, Handle::FreshForEachRequest));
            let completion = load::CompleteOnResponse::default();
            let list = vec![Echo; n]
                .into_iter()
                .map(move |echo| load::PendingRequests::new(echo, completion));
            let tower = p2c::Balance::<_, u64>::new(ServiceList::new::<u64>(list));
            towers.push(rate(&runtime, Buffer::new(tower, 1024), Handle::Kept));
        }
        let [ours, fresh, towers] = [ours, fresh, towers].map(median);
        println!(
            "N = {n}: {:.1} M requests/s; tower behind Buffer {:.2}, so {:.1} times; a fresh clone for each {:.1}, so {:.2} times the cost",
            ours / 1e6,
            towers / 1e6,
            ours / towers,
            fresh / 1e6,
            ours / fresh,
        );
    }
    for n in [3, 100] {
        let (kept, fresh) = two_threads(n);
        println!(
            "every layer, N = {n}: two threads do {kept:.2} times the requests of one; with a clone of one shared handle for each request {fresh:.2} times"
        );
    }
}

/// Returns how many times as many requests two threads send through every layer as one thread,
/// with handles of their own, and with clones of one handle.
fn two_threads(n: usize) -> (f64, f64) {
    let endpoints = from_discover(ServiceList::new::<u64>(vec![Echo; n]));
    let endpoints = each(PeakEwmaLayer::default()).layer(endpoints);
    let endpoints = OutlierLayer::default().layer(endpoints);
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(1)))
        .layer(AdaptiveThrottleLayer::default())
        .layer(LimitLayer::new(100))
        .layer(FailoverLayer::new(Idempotent::all()))
        .service(driven(n, endpoints, P2c::default()));
    let runtime = tokio::runtime::Handle::current();
    // One thread and two in turns, because cores are near one another at one time, and far apart at
    // another.
    let ratio = |handle| {
        let rate = |threads| {
            let barrier = Barrier::new(threads);
            let send = || {
                let _guard = runtime.enter();
                let mut kept = service.clone();
                barrier.wait();
                let start = Instant::now();
                for _ in 0..TURN {
                    match handle {
                        Handle::Kept => request(black_box(&mut kept)),
                        Handle::FreshForEachRequest => request(&mut black_box(&service).clone()),
                    };
                }
                f64::from(TURN) / start.elapsed().as_secs_f64()
            };
            thread::scope(|scope| {
                let sending: Vec<_> = (0..threads).map(|_| scope.spawn(send)).collect();
                let rates = sending.into_iter().map(|thread| thread.join());
                rates.map(|rate| rate.expect("no panic")).sum::<f64>()
            })
        };
        median((0..TURNS).map(|_| 1.0 / rate(1) * rate(2)).collect())
    };
    (ratio(Handle::Kept), ratio(Handle::FreshForEachRequest))
}

/// Returns the requests per second of 64 tasks.
fn rate<S>(runtime: &tokio::runtime::Runtime, service: S, handle: Handle) -> f64
where
    S: Service<u64, Response = u64, Error: Debug, Future: Send> + Clone + Send + 'static,
{
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let mut service = service.clone();
            runtime.spawn(async move {
                let start = Instant::now();
                let mut requests = 0_u64;
                while start.elapsed() < TIME {
                    for _ in 0..BATCH {
                        let answer = match handle {
                            Handle::Kept => service.ready().await.expect("ready").call(7).await,
                            Handle::FreshForEachRequest => service.clone().oneshot(7).await,
                        };
                        black_box(answer.expect("an answer"));
                    }
                    requests += BATCH;
                    tokio::task::yield_now().await;
                }
                requests
            })
        })
        .collect();
    let start = Instant::now();
    let total: u64 = tasks
        .into_iter()
        .map(|task| runtime.block_on(task).expect("a task"))
        .sum();
    total as f64 / start.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

const TURN: u32 = 50_000;
const TURNS: usize = 41;
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(400);
const BATCH: u64 = 50;
