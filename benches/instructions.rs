//! Counts the instructions of a request under callgrind. Unlike time, the count is deterministic.
//!
//! `instructions CASE N REQUESTS` runs a single case. The difference between runs with two numbers
//! of requests is the cost of the additional requests.

mod support;

use std::time::Duration;

use support::{Echo, balance, request, watched};
use tower::{balance::p2c, discover::ServiceList, load};
use tower_lb::{LeastLoaded, P2c, PeakEwmaLayer, PendingRequestsLayer, health::OutlierLayer};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (case, n, requests) = (next(), next(), next());
    let (Ok(n), Ok(requests)) = (n.parse(), requests.parse()) else {
        println!("usage: instructions CASE N REQUESTS");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let _guard = runtime.enter();
    let consecutive_and_rates = OutlierLayer::default();
    let consecutive = OutlierLayer::default()
        .success_rate(None)
        .failure_rate(None);
    let completion = load::CompleteOnResponse::default();
    let services = vec![Echo; n].into_iter();
    match case.as_str() {
        "pending" => run(
            balance(n, PendingRequestsLayer::default(), P2c::seeded(1)),
            requests,
        ),
        "ewma" => run(
            balance(n, PeakEwmaLayer::default(), P2c::seeded(1)),
            requests,
        ),
        "least" => run(
            balance(n, PendingRequestsLayer::default(), LeastLoaded::seeded(1)),
            requests,
        ),
        "outlier" => run(watched(n, consecutive), requests),
        "outliers" => run(watched(n, consecutive_and_rates), requests),
        "tower-pending" => {
            let list = services.map(|s| load::PendingRequests::new(s, completion));
            run(
                p2c::Balance::<_, u64>::new(ServiceList::new::<u64>(list)),
                requests,
            );
        }
        "tower-ewma" => {
            let rtt = Duration::from_millis(30);
            let list = services.map(|s| load::PeakEwma::new(s, rtt, 1e10, completion));
            run(
                p2c::Balance::<_, u64>::new(ServiceList::new::<u64>(list)),
                requests,
            );
        }
        _ => println!("no such case: {case}"),
    }
}

#[inline(never)] // so that one case does not change another
fn run<S>(mut service: S, requests: usize)
where
    S: tower::Service<u64, Response = u64, Error: std::fmt::Debug>,
{
    for _ in 0..requests {
        std::hint::black_box(request(&mut service));
    }
}
