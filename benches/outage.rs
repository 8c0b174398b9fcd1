//! Measures what grows with the number of endpoints when nothing works: verdicts and sweeps of
//! outlier detection while every endpoint fails, searches where no endpoint is ready, and many
//! callers that wait while a list is published.
//!
//! Each line gives 1000, 3000 and 10 000 endpoints. A cost in proportion to the number grows about
//! tenfold from the first figure to the last one; a cost with its square grows a hundredfold.

mod support;

use std::{
    future::{Ready, ready},
    hint::black_box,
    pin::{Pin, pin},
    sync::Barrier,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use support::Echo;
use tokio::runtime::Runtime;
use tower::{
    Layer, Service,
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer},
    load::CompleteOnResponse,
};
use tower_lb::{
    Balance, Endpoint, LeastLoaded, Maglev, OutlierLayer, P2c, PendingRequests,
    PendingRequestsLayer, Policy, Rendezvous, RingHash, RoundRobin, Target, each, fixed, hash,
    load::handle::SharedTotal,
};

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let sizes: &[usize] = if is_test {
        &[100]
    } else {
        &[1000, 3000, 10_000]
    };
    println!("one request, nobody ready:");
    let key = || hash::owned(|request: &u64| Some(request.to_le_bytes()));
    search("ring hash", sizes, || RingHash::by_key(key()));
    search("maglev", sizes, || Maglev::by_key(key()));
    search("rendezvous", sizes, || Rendezvous::by_key(key()));
    search("ring hash, bounded", sizes, || {
        RingHash::by_key(key()).bounded(1.25).expect("a bound")
    });
    search("rendezvous, bounded", sizes, || {
        Rendezvous::by_key(key()).bounded(1.25).expect("a bound")
    });
    search("p2c", sizes, P2c::default);
    search("least loaded", sizes, LeastLoaded::default);
    search("round robin", sizes, RoundRobin::default);
    println!("1000 callers wait while one weight changes:");
    publications("ring hash", sizes, || RingHash::by_key(key()));
    publications("ring hash, bounded", sizes, || {
        RingHash::by_key(key()).bounded(1.25).expect("a bound")
    });
    publications("p2c", sizes, P2c::default);
    publications("round robin", sizes, RoundRobin::default);
    println!("outlier detection, every endpoint fails:");
    outliers(sizes);
}

/// Prints how long the first poll takes of a request that no endpoint is ready for.
fn search<P>(name: &str, sizes: &[usize], policy: impl Fn() -> P)
where
    P: Policy<usize, Member, u64>,
{
    let times = sizes.iter().map(|&n| {
        let runtime = runtime();
        let _guard = runtime.enter();
        let (balance, _driver) = limited(n, policy());
        let times = (0..9).map(|key| time(|| wait(&mut balance.clone(), key)));
        micros(median(times))
    });
    println!("  {name}: {}", list(times));
}

/// Prints how much 1000 waiting callers hold, and how long they and the driver take for a change.
fn publications<P>(name: &str, sizes: &[usize], policy: impl Fn() -> P)
where
    P: Policy<usize, Member, u64>,
{
    const CALLERS: u64 = 1000;
    let figures = sizes.iter().map(|&n| {
        let runtime = runtime();
        let _guard = runtime.enter();
        let (balance, mut driver) = limited(n, policy());
        let mut callers = Vec::new();
        let held = allocation_counter::measure(|| {
            for key in 0..CALLERS {
                let mut handle = balance.clone();
                let mut future = (handle.poll_ready(&mut context()).is_ready())
                    .then(|| Box::pin(handle.call(key)));
                if let Some(future) = &mut future {
                    assert!(future.as_mut().poll(&mut context()).is_pending());
                }
                callers.push((handle, future));
            }
        });
        let endpoint = balance.members()[n / 2].endpoint().clone();
        let times = (0..9).map(|round| {
            endpoint.set_attributes(&Target::new(n / 2).weight(2 + round % 2));
            runtime.block_on(tokio::time::advance(Duration::from_secs(1)));
            drive(&mut driver);
            time(|| {
                for (handle, future) in &mut callers {
                    let is_ready = match future {
                        Some(future) => future.as_mut().poll(&mut context()).is_ready(),
                        None => handle.poll_ready(&mut context()).is_ready(),
                    };
                    assert!(!is_ready);
                }
            })
        });
        let time = micros(median(times));
        format!(
            "{time}, {:.1} MiB",
            held.bytes_current as f64 / f64::from(1 << 20)
        )
    });
    println!("  {name}: {}", list(figures));
}

/// Prints how long a sweep takes, and the slowest request that leads to a verdict meanwhile.
fn outliers(sizes: &[usize]) {
    let (mut sweeps, mut quiet, mut meanwhile) = (Vec::new(), Vec::new(), Vec::new());
    for &n in sizes {
        let runtime = runtime();
        let _guard = runtime.enter();
        let outliers = OutlierLayer::default().max_ejected(1.0);
        let services = fixed(0..n).layer(|_: &Endpoint<usize>| Failing);
        let (balance, mut driver) =
            Balance::<_, _, u64, _>::pair(outliers.layer(services), tower_lb::Random::default());
        while balance.members().len() < n {
            drive(&mut driver);
        }
        let mut services: Vec<_> = balance
            .members()
            .iter()
            .map(|m| m.service().clone())
            .collect();
        let fail = |services: &mut [_], times| {
            let took = services.iter_mut().map(|service| {
                (1..times).for_each(|_| call(service));
                time(|| call(service))
            });
            let mut took: Vec<_> = took.collect();
            took.sort();
            took
        };
        // A third is ejected by requests, a third by requests and a sweep at once, and a third by
        // the sweep alone.
        let (first, others) = services.split_at_mut(n / 3);
        let (second, third) = others.split_at_mut(n / 3);
        quiet.push(slowest(&fail(first, 5)));
        fail(second, 4);
        fail(third, 4);
        runtime.block_on(tokio::time::advance(Duration::from_secs(11)));
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _guard = runtime.enter();
                barrier.wait();
                meanwhile.push(slowest(&fail(second, 1)));
            });
            barrier.wait();
            sweeps.push(micros(time(|| drive(&mut driver))));
        });
    }
    println!("  a request with a verdict: {}", list(quiet));
    println!(
        "  a request with a verdict, during a sweep: {}",
        list(meanwhile)
    );
    println!("  the driver's turn with the sweep: {}", list(sweeps));
}

type Member = PendingRequests<ConcurrencyLimit<Echo>, CompleteOnResponse, SharedTotal>;

/// A balancer over endpoints that are never ready, and that callers queue for.
fn limited<P>(n: usize, policy: P) -> (Balance<P, Member, u64, usize>, Driver)
where
    P: Policy<usize, Member, u64>,
{
    let services = fixed(0..n).layer(|_: &Endpoint<usize>| Echo);
    let services = each(ConcurrencyLimitLayer::new(0)).layer(services);
    let services = each(PendingRequestsLayer::default().with_total()).layer(services);
    let (balance, driver) = Balance::pair(services, policy);
    let mut driver: Driver = Box::pin(driver);
    while balance.members().len() < n {
        drive(&mut driver);
    }
    (balance, driver)
}

type Driver = Pin<Box<dyn Future<Output = ()>>>;

fn drive(driver: &mut (impl Future + Unpin)) {
    for _ in 0..16 {
        let _ = Pin::new(&mut *driver).poll(&mut context());
    }
}

/// Polls a request that has to wait.
fn wait<P>(handle: &mut Balance<P, Member, u64, usize>, key: u64)
where
    P: Policy<usize, Member, u64>,
{
    if handle.poll_ready(&mut context()).is_ready() {
        assert!(
            pin!(handle.call(black_box(key)))
                .poll(&mut context())
                .is_pending()
        );
    }
}

/// Fails at once.
#[derive(Clone, Debug)]
struct Failing;

impl Service<u64> for Failing {
    type Response = u64;
    type Error = std::fmt::Error;
    type Future = Ready<Result<u64, std::fmt::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u64) -> Self::Future {
        ready(Err(std::fmt::Error))
    }
}

fn call(service: &mut impl Service<u64>) {
    let _ = pin!(service.call(1)).poll(&mut context());
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A runtime whose clock stands still between the steps.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

// Real time: only the balancer's own clock stands still.
#[allow(clippy::disallowed_methods)]
fn time(what: impl FnOnce()) -> Duration {
    let start = Instant::now();
    what();
    start.elapsed()
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort();
    times[times.len() / 2]
}

fn slowest(sorted: &[Duration]) -> String {
    let at = |share: f64| micros(sorted[((sorted.len() - 1) as f64 * share) as usize]);
    format!("p99 {}, slowest {}", at(0.99), at(1.0))
}

fn micros(time: Duration) -> String {
    format!("{:.1} us", time.as_secs_f64() * 1e6)
}

fn list(figures: impl IntoIterator<Item = String>) -> String {
    figures.into_iter().collect::<Vec<_>>().join(" | ")
}
