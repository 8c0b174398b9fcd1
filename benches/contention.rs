//! Measures the throughput of 64 tasks on two workers through one balancer, compared with tower's
//! behind a `Buffer`.

mod support;

use std::{fmt::Debug, hint::black_box, time::Duration};

use support::{Echo, balance};
use tokio::time::Instant;
use tower::{Service, ServiceExt, balance::p2c, buffer::Buffer, discover::ServiceList, load};
use tower_lb::{P2c, PendingRequestsLayer};

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

const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(400);
const BATCH: u64 = 50;
