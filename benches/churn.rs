//! Does a request pay for a changing set? Latencies while all of 10 000 endpoints are replaced again and
//! again, beside a quiet run, and tower's; and the cost of taking in one changed member.

mod support;

use std::{
    pin::Pin,
    sync::{
        Arc,
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
use tower_lb::{Balance, Endpoint, P2c, PendingRequestsLayer, WatchLayer, each};

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return println!("churn: nothing to test");
    }
    ours();
    towers();
}

fn ours() {
    let all = |round: usize| (round * N..(round + 1) * N).collect::<Vec<_>>();
    let (targets, rx) = watch::channel(all(0));
    let discover = WatchLayer::new(rx).layer(|_: &Endpoint<usize>| Echo);
    let discover = each(PendingRequestsLayer::default()).layer(discover);
    let (balance, mut driver) = Balance::<_, _, u64, _>::pair(discover, P2c::default());
    let mut drive = move || {
        let _ = Pin::new(&mut driver).poll(&mut Context::from_waker(Waker::noop()));
    };
    while balance.endpoints().len() < N {
        drive();
    }
    print("quiet", &sample(balance.clone(), || ()));
    // The driver has the other core.
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let churn = thread::spawn(move || {
        let mut round = 0;
        while !stopped.load(Relaxed) {
            round += 1;
            targets.send_replace(all(round));
            // Each list takes several turns of the driver.
            (0..2 * N / 1024 + 4).for_each(|_| drive());
        }
        // One changed member of 10 000, from the list to the snapshot.
        let mut list = all(round);
        let start = Instant::now();
        for i in 0..ONE_BY_ONE {
            list[i] = usize::MAX - i;
            targets.send_replace(list.clone());
            drive();
        }
        (round, start.elapsed() / ONE_BY_ONE as u32)
    });
    print(
        "all replaced again and again",
        &sample(balance.clone(), || ()),
    );
    stop.store(true, Relaxed);
    let (rounds, one) = churn.join().expect("the churning thread");
    drop(balance);
    println!("    {rounds} times all of {N} replaced; one changed member of {N} takes {one:.0?}");
}

/// tower takes changes in when it is asked for readiness: on the request's path.
fn towers() {
    let (changes, rx) = mpsc::unbounded_channel::<Result<_, std::convert::Infallible>>();
    let service = || load::PendingRequests::new(Echo, load::CompleteOnResponse::default());
    (0..N).for_each(|i| drop(changes.send(Ok(Change::Insert(i, service())))));
    let mut balance = p2c::Balance::<_, u64>::new(UnboundedReceiverStream::new(rx));
    request(&mut balance);
    let mut requests = 0;
    let mut first = 0;
    let latencies = sample(balance, || {
        requests += 1;
        // As often as ours was replaced, give or take.
        if requests % 100_000 == 0 {
            (first..first + N).for_each(|i| drop(changes.send(Ok(Change::Remove(i)))));
            first += N;
            (first..first + N).for_each(|i| drop(changes.send(Ok(Change::Insert(i, service())))));
        }
    });
    print("tower, all replaced every 100 000 requests", &latencies);
}

/// Latencies in ns of three seconds of requests, with `before` each, which is not timed.
fn sample<S>(mut service: S, mut before: impl FnMut()) -> Histogram<u64>
where
    S: Service<u64, Response = u64, Error: std::fmt::Debug>,
{
    let mut latencies = Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        before();
        let sent = Instant::now();
        request(&mut service);
        latencies.saturating_record(sent.elapsed().as_nanos() as u64);
    }
    latencies
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
