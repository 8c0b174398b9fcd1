//! Heap allocations of a balancer: none per request, few per endpoint.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use tower::{Layer, Service, balance::p2c, discover::ServiceList, load, load::CompleteOnResponse};
use tower_lb::*;

#[derive(Clone, Debug)]
struct Echo;

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

fn balance<P, S>(
    n: usize,
    layer: impl Layer<Echo, Service = S> + Clone,
    policy: P,
) -> (Balance<P, S, u64, usize>, impl Sized)
where
    S: Clone + Send + Sync + 'static,
    P: Policy<usize, S, u64>,
{
    let targets = (0..n).map(|i| (i, 1 + (i % 3 == 0 && n == 9) as u32));
    let discover = each(layer).layer(fixed(targets).layer(|_: &Endpoint<usize>| Echo));
    let (balance, mut driver) = Balance::pair(discover, policy);
    let mut cx = Context::from_waker(Waker::noop());
    while balance.members().len() < n {
        let _ = Pin::new(&mut driver).poll(&mut cx);
    }
    (balance, driver)
}

fn request<S: Service<u64, Error: std::fmt::Debug>>(service: &mut S) {
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(cx), Poll::Ready(Ok(()))));
    let future = pin!(service.call(1));
    assert!(future.poll(cx).is_ready());
}

/// Sends the first requests of a handle. Each layer may then allocate a count for its clones.
fn warm_up<S: Service<u64, Error: std::fmt::Debug>>(service: &mut S) {
    let first = measure(|| (0..32).for_each(|_| request(service)));
    assert!(first.count_total <= 2 * LAYERS, "{}", first.count_total);
}

/// The most layers here whose handles share something.
const LAYERS: u64 = 3;

/// Does the same with a handle that is cloned for each request.
fn warm_up_clones<S: Service<u64, Error: std::fmt::Debug> + Clone>(service: &S) {
    let first = measure(|| (0..32).for_each(|_| request(&mut service.clone())));
    assert!(first.count_total <= 2 * LAYERS, "{}", first.count_total);
}

#[test]
fn a_request_allocates_nothing() {
    fn check<P, S>(layer: impl Layer<Echo, Service = S> + Clone, policy: P)
    where
        S: Service<u64, Error: Into<tower::BoxError>> + Clone + Send + Sync + 'static,
        P: Policy<usize, S, u64> + Clone + std::fmt::Debug,
    {
        // Ten equal weights, nine unequal ones, and a single endpoint.
        for n in [10, 9, 1] {
            let (mut balance, _driver) = balance(n, layer.clone(), policy.clone());
            warm_up(&mut balance);
            let kept = measure(|| (0..1000).for_each(|_| request(&mut balance)));
            assert_eq!(kept.count_total, 0, "{policy:?} over {n}");
            warm_up_clones(&balance);
            let fresh = measure(|| (0..1000).for_each(|_| request(&mut balance.clone())));
            assert_eq!(
                fresh.count_total, 0,
                "{policy:?} over {n}, a clone for each request"
            );
        }
    }
    check(PendingRequestsLayer::default(), P2c::default());
    check(PeakEwmaLayer::default(), P2c::default());
    check(PendingRequestsLayer::default(), P2c::default().choices(4));
    check(PendingRequestsLayer::default(), LeastLoaded::default());
    check(PeakEwmaLayer::default(), LeastLoaded::default());
    check(PendingRequestsLayer::default(), Random::default());
    check(PendingRequestsLayer::default(), RoundRobin::default());
    check(
        PendingRequestsLayer::default(),
        WeightedRoundRobin::default(),
    );
    // The request is its own key.
    let key = || hash::owned(|request: &u64| Some(request.to_le_bytes()));
    check(PendingRequestsLayer::default(), RingHash::by_key(key()));
    check(PendingRequestsLayer::default(), Maglev::by_key(key()));
    check(PendingRequestsLayer::default(), Rendezvous::by_key(key()));
    let bounded = RingHash::by_key(key()).bounded(1.25);
    check(
        PendingRequestsLayer::default().with_total(),
        bounded.expect("1.25 is a bound"),
    );
}

#[test]
fn a_request_that_is_watched_allocates_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let _guard = runtime.enter();
    let outliers = OutlierLayer::default().slow_latency(health::SlowLatency::default());
    let services = fixed(0..10).layer(|_: &Endpoint<usize>| Echo);
    let discover = outliers.layer(each(PendingRequestsLayer::default()).layer(services));
    let (mut balance, mut driver) = Balance::<_, _, u64, _>::pair(discover, P2c::default());
    let mut cx = Context::from_waker(Waker::noop());
    while balance.members().len() < 10 {
        let _ = Pin::new(&mut driver).poll(&mut cx);
    }
    request(&mut balance);
    let info = measure(|| (0..1000).for_each(|_| request(&mut balance)));
    assert_eq!(info.count_total, 0);
}

#[test]
fn a_request_that_needs_no_second_try_allocates_nothing() {
    let (balance, _driver) = balance(10, PendingRequestsLayer::default(), P2c::default());
    let mut failover = FailoverLayer::new(Idempotent::all()).layer(balance.clone());
    warm_up(&mut failover);
    let kept = measure(|| (0..1000).for_each(|_| request(&mut failover)));
    assert_eq!(kept.count_total, 0);
    warm_up_clones(&failover);
    let fresh = measure(|| (0..1000).for_each(|_| request(&mut failover.clone())));
    assert_eq!(fresh.count_total, 0);
    let throttle = AdaptiveThrottleLayer::default().layer(LimitLayer::new(1).layer(balance));
    warm_up_clones(&throttle);
    let info = measure(|| (0..1000).for_each(|_| request(&mut throttle.clone())));
    assert_eq!(info.count_total, 0);
}

/// Futures are moved from layer to layer. So they carry no request and no handle that few need.
#[test]
fn the_future_of_a_request_is_small() {
    fn future<S: Service<Req>, Req>(_: &S) -> usize {
        size_of::<S::Future>()
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let _guard = runtime.enter();
    // An answer that is there at once. The request is as large as one of HTTP.
    type Large = [u64; 28];
    let echo = |_: &Endpoint<usize>| tower::service_fn(|_: Large| ready(Ok::<u64, Infallible>(1)));
    let discover = each(PeakEwmaLayer::default()).layer(fixed(0..3).layer(echo));
    let balance = BalanceLayer::new(P2c::default()).layer(OutlierLayer::default().layer(discover));
    let every = tower::ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(1)))
        .layer(AdaptiveThrottleLayer::default())
        .layer(LimitLayer::new(100))
        .layer(FailoverLayer::new(Idempotent::all()))
        .layer(HedgeLayer::after(
            Duration::from_millis(50),
            Idempotent::all(),
        ))
        .service(balance.clone());
    let sizes = [future::<_, Large>(&balance), future::<_, Large>(&every)];
    println!("the future of a balancer, and of every layer: {sizes:?} bytes");
    assert!(sizes[0] <= 80, "{sizes:?}");
    // One copy of the request, for another try.
    assert!(sizes[1] <= 400, "{sizes:?}");
}

#[test]
fn replicas_allocate_nothing() {
    let names: Vec<String> = (0..2_000).map(|i| i.to_string()).collect();
    let policy = RingHash::by(|key: &String| key.as_bytes());
    for n in [10, 2_000] {
        let table = policy.table_for(names.iter().take(n).map(|name| (&**name, 1)));
        let info = measure(|| assert_eq!(table.replicas(b"key", 10).count(), 10));
        assert_eq!(info.count_total, 0, "of {n}");
    }
}

#[test]
fn an_endpoint_takes_at_most_400_bytes() {
    const N: usize = 10_000;
    fn bytes<T>(what: &str, make: impl FnOnce() -> T) -> f64 {
        let mut made = None;
        let info = measure(|| made = Some(black_box(make())));
        drop(made);
        let bytes = info.bytes_current as f64 / N as f64;
        println!("{what}: {bytes:.0} bytes for each endpoint");
        bytes
    }
    let pending = bytes("pending requests", || {
        balance(N, PendingRequestsLayer::default(), P2c::default())
    });
    let ewma = bytes("peak ewma", || {
        balance(N, PeakEwmaLayer::default(), P2c::default())
    });
    let completion = CompleteOnResponse::default();
    fn tower<S: Service<u64, Error: Into<tower::BoxError>> + Load<Metric: std::fmt::Debug>>(
        services: impl Iterator<Item = S>,
    ) -> impl Sized {
        let mut balance = p2c::Balance::<_, u64>::new(ServiceList::new::<u64>(services));
        assert!(
            balance
                .poll_ready(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        );
        balance
    }
    bytes("pending requests, tower", || {
        tower((0..N).map(|_| load::PendingRequests::new(Echo, completion)))
    });
    bytes("peak ewma, tower", || {
        tower(
            (0..N).map(|_| load::PeakEwma::new(Echo, Duration::from_millis(30), 1e10, completion)),
        )
    });
    assert!(
        pending <= 400.0 && ewma <= 400.0,
        "{pending} and {ewma} bytes"
    );
}

/// What trackers count in is pooled, and the pools grow by slabs.
#[test]
fn pools_grow_by_slabs() {
    const N: usize = 20_000;
    let layer = PeakEwmaLayer::default();
    let mut services = Vec::with_capacity(N);
    let made = measure(|| services.extend((0..N).map(|_| layer.layer(Echo))));
    assert_eq!(services.len(), N);
    // 128 bytes each, and the table of the slabs.
    assert!(made.count_total <= 200, "{} allocations", made.count_total);
    assert!(
        made.bytes_total <= 140 * N as u64,
        "{} bytes",
        made.bytes_total
    );
}
