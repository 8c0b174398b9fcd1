//! Measures what a request pays for a changing set: latencies while all of 10 000 endpoints are
//! replaced repeatedly, compared with a quiet run and with tower. Also measures the cost of
//! applying one changed member.
//!
//! Quiet and busy turns alternate, because the machine's speed drifts. Cores share caches and
//! memory, so there is a third kind of turn: it replaces another balancer's endpoints. That is the
//! same kind of work, but no request measured here can pay for it.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Waker},
    thread,
    time::Duration,
};

use hdrhistogram::Histogram;
use support::{Echo, request};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, Service, balance::p2c, discover::Change, load};
use tower_lb::{Balance, Endpoint, P2c, PendingRequests, PendingRequestsLayer, WatchLayer, each};

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return println!("churn: nothing to test");
    }
    ours();
    towers();
}

type Balancer = Balance<P2c, PendingRequests<Echo>, u64, usize>;

/// A balancer and the means to replace its endpoints.
struct Churned<F> {
    balance: Balancer,
    targets: watch::Sender<Vec<usize>>,
    drive: F,
    rounds: usize,
}

fn all(round: usize) -> Vec<usize> {
    (round * N..(round + 1) * N).collect()
}

fn churned() -> Churned<impl FnMut()> {
    let (targets, rx) = watch::channel(all(0));
    let discover = WatchLayer::new(rx).layer(|_: &Endpoint<usize>| Echo);
    let discover = each(PendingRequestsLayer::default()).layer(discover);
    let (balance, mut driver) = Balance::pair(discover, P2c::default());
    let mut drive = move || {
        let _ = Pin::new(&mut driver).poll(&mut Context::from_waker(Waker::noop()));
    };
    while balance.members().len() < N {
        drive();
    }
    Churned {
        balance,
        targets,
        drive,
        rounds: 0,
    }
}

impl<F: FnMut()> Churned<F> {
    fn replace_all(&mut self) {
        self.rounds += 1;
        self.targets.send_replace(all(self.rounds));
        // Each list takes several turns of the driver.
        (0..2 * N / 1024 + 4).for_each(|_| (self.drive)());
    }

    /// Replaces one member after another. Returns the mean time for each, from the list to the
    /// snapshot.
    fn replace_one_by_one(&mut self) -> Duration {
        let mut list = all(self.rounds);
        let start = Instant::now();
        for i in 0..ONE_BY_ONE {
            list[i] = usize::MAX - i;
            self.targets.send_replace(list.clone());
            (self.drive)();
        }
        start.elapsed() / ONE_BY_ONE as u32
    }
}

fn ours() {
    // Built one after the other, so that neither has the better place in memory.
    let mut own = churned();
    let mut other = churned();
    let mut balance = own.balance.clone();
    let mut latencies = [(); 3].map(|()| histogram());
    let turn = Arc::new(Barrier::new(2));
    let is_over = Arc::new(AtomicBool::new(false));
    let (turns, over) = (turn.clone(), is_over.clone());
    // The drivers run on the other core.
    let churn = thread::spawn(move || {
        for number in 0..3 * TURNS {
            turns.wait();
            while !over.load(Relaxed) {
                match number % 3 {
                    0 => thread::park_timeout(Duration::from_millis(1)),
                    1 => own.replace_all(),
                    _ => other.replace_all(),
                }
            }
            turns.wait();
            over.store(false, Relaxed);
        }
        (own.rounds, own.replace_one_by_one())
    });
    for number in 0..3 * TURNS {
        turn.wait();
        sample(&mut balance, A_TURN, &mut latencies[number % 3], || ());
        is_over.store(true, Relaxed);
        turn.wait();
    }
    let (rounds, one) = churn.join().expect("the churning thread");
    let [quiet, busy, others] = &latencies;
    print("quiet", quiet);
    print("all replaced again and again", busy);
    print("another balancer's replaced again and again", others);
    let p999 = |latencies: &Histogram<u64>| latencies.value_at_quantile(0.999) as f64;
    let a_second = rounds as f64 / (A_TURN * TURNS as u32).as_secs_f64();
    println!(
        "    p99.9 {:.2} times the quiet one, {:.2} times the one beside another balancer's; \
         all of {N} replaced {a_second:.0} times a second; one changed member of {N} takes {one:.0?}",
        p999(busy) / p999(quiet),
        p999(busy) / p999(others),
    );
}

/// tower applies changes in `poll_ready`, on the request's path.
fn towers() {
    let (changes, rx) = mpsc::unbounded_channel::<Result<_, std::convert::Infallible>>();
    let service = || load::PendingRequests::new(Echo, load::CompleteOnResponse::default());
    (0..N).for_each(|i| drop(changes.send(Ok(Change::Insert(i, service())))));
    let mut balance = p2c::Balance::<_, u64>::new(UnboundedReceiverStream::new(rx));
    request(&mut balance);
    let mut requests = 0;
    let mut first = 0;
    let mut latencies = histogram();
    sample(&mut balance, TURNS as u32 * A_TURN, &mut latencies, || {
        requests += 1;
        // About as often as tower-lb's endpoints are replaced.
        if requests % 100_000 == 0 {
            (first..first + N).for_each(|i| drop(changes.send(Ok(Change::Remove(i)))));
            first += N;
            (first..first + N).for_each(|i| drop(changes.send(Ok(Change::Insert(i, service())))));
        }
    });
    print("tower, all replaced every 100 000 requests", &latencies);
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds")
}

/// Records the latencies of requests in ns for this time. Calls `before` untimed ahead of each.
fn sample<S>(
    service: &mut S,
    time: Duration,
    latencies: &mut Histogram<u64>,
    mut before: impl FnMut(),
) where
    S: Service<u64, Response = u64, Error: std::fmt::Debug>,
{
    let start = Instant::now();
    while start.elapsed() < time {
        before();
        let sent = Instant::now();
        request(service);
        latencies.saturating_record(sent.elapsed().as_nanos() as u64);
    }
}

fn print(what: &str, latencies: &Histogram<u64>) {
    let at = |quantile| latencies.value_at_quantile(quantile);
    println!(
        "{what}: p50 {} ns, p99 {} ns, p99.9 {} ns, max {:.1} ms",
        at(0.5),
        at(0.99),
        at(0.999),
        latencies.max() as f64 / 1e6,
    );
}

const N: usize = 10_000;
const ONE_BY_ONE: usize = 200;
const TURNS: usize = 12;
const A_TURN: Duration = Duration::from_millis(250);
