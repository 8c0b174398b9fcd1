//! What the benches share: an always-ready service, and balancers over it.

#![allow(dead_code)] // no bench uses all of it

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use tower::{
    Layer, Service,
    discover::{Discover, ServiceList},
};
use tower_lb::{
    Balance, Endpoint, P2c, PendingRequests, PendingRequestsLayer, Policy, each, from_discover,
    health::{Outlier, OutlierLayer},
};

/// Answers at once, so that only the balancer's own cost remains.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Echo;

impl Service<u64> for Echo {
    type Response = u64;
    type Error = Infallible;
    type Future = Ready<Result<u64, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u64) -> Self::Future {
        ready(Ok(request))
    }
}

/// Builds a balancer over `n` endpoints whose services are wrapped by `layer`.
pub(crate) fn balance<P, L>(n: usize, layer: L, policy: P) -> Balance<P, L::Service, u64, usize>
where
    L: Layer<Echo, Service: Clone + Send + Sync + 'static> + Clone,
    P: Policy<usize, L::Service, u64>,
{
    let discover = each(layer).layer(from_discover(ServiceList::new::<u64>(vec![Echo; n])));
    driven(n, discover, policy)
}

/// Builds a balancer over `n` endpoints and polls its driver until all are members.
pub(crate) fn driven<D, P, S>(n: usize, discover: D, policy: P) -> Balance<P, S, u64, usize>
where
    D: Discover<Key = Endpoint<usize>, Service = S, Error: Into<tower::BoxError>>,
    P: Policy<usize, S, u64>,
    S: Clone + Send + Sync + 'static,
{
    let (balance, mut driver) = Balance::pair(discover, policy);
    let mut cx = Context::from_waker(Waker::noop());
    while balance.members().len() < n {
        let _ = Pin::new(&mut driver).poll(&mut cx);
    }
    // Outlier detection stops when its driver is dropped. The members would remain.
    std::mem::forget(driver);
    balance
}

/// Builds a balancer over `n` endpoints with outlier detection. Needs a runtime with timers.
pub(crate) fn watched(
    n: usize,
    outliers: OutlierLayer,
) -> Balance<P2c, Outlier<PendingRequests<Echo>, usize>, u64, usize> {
    let discover = from_discover(ServiceList::new::<u64>(vec![Echo; n]));
    let discover = each(PendingRequestsLayer::default()).layer(discover);
    driven(n, outliers.layer(discover), P2c::seeded(1))
}

/// Runs one request, from `poll_ready` to the answer, without a runtime.
#[inline]
pub(crate) fn request<S>(service: &mut S) -> u64
where
    S: Service<u64, Response = u64, Error: std::fmt::Debug>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let future = std::pin::pin!(service.call(7));
    match future.poll(&mut cx) {
        Poll::Ready(Ok(answer)) => answer,
        other => panic!("{other:?}"),
    }
}

/// The cost of requests to two services, measured in turns so that both meet the same speed of a
/// shared machine.
pub(crate) struct InTurns {
    /// Median of many turns, in ns per request.
    pub(crate) less: f64,
    pub(crate) more: f64,
    pub(crate) difference: f64,
    pub(crate) ratio: f64,
}

// Real time: nothing is simulated here.
#[allow(clippy::disallowed_methods)]
pub(crate) fn in_turns(
    less: &mut impl Service<u64, Response = u64, Error: std::fmt::Debug>,
    more: &mut impl Service<u64, Response = u64, Error: std::fmt::Debug>,
) -> InTurns {
    const REQUESTS: u32 = 2000;
    let a_request = |nanos: u128| nanos as f64 / f64::from(REQUESTS);
    let is_test = std::env::args().any(|argument| argument == "--test");
    let turns: Vec<(f64, f64)> = (0..if is_test { 1 } else { 2001 })
        .map(|_| {
            let start = Instant::now();
            for _ in 0..REQUESTS {
                request(black_box(&mut *less));
            }
            let between = Instant::now();
            for _ in 0..REQUESTS {
                request(black_box(&mut *more));
            }
            let (less, more) = (between - start, between.elapsed());
            (a_request(less.as_nanos()), a_request(more.as_nanos()))
        })
        .collect();
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = turns.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    InTurns {
        less: median(|(less, _)| *less),
        more: median(|(_, more)| *more),
        difference: median(|(less, more)| more - less),
        ratio: median(|(less, more)| more / less),
    }
}

/// Returns by how many ns a request to `more` takes longer than one to `less`.
pub(crate) fn difference(
    less: &mut impl Service<u64, Response = u64, Error: std::fmt::Debug>,
    more: &mut impl Service<u64, Response = u64, Error: std::fmt::Debug>,
) -> f64 {
    in_turns(less, more).difference
}
