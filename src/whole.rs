//! Tests of private facts that only a whole stack shows.

use std::time::Duration;

use tower::{BoxError, Layer, Service, ServiceExt, service_fn};

use crate::{
    balance::Balance,
    clock::READINGS,
    discover::{each, fixed},
    endpoint::Endpoint,
    load::PeakEwmaLayer,
    policy::{LeastLoaded, P2c, Policy},
};

/// This holds however long ago the thread sent the previous request.
#[tokio::test(start_paused = true)]
async fn a_request_reads_the_clock_twice() {
    async fn check<P>(policy: P)
    where
        P: Policy<usize, crate::load::PeakEwma<Echo>, ()>,
    {
        let factory = |_: &Endpoint<usize>| service_fn(echo as fn(()) -> _);
        let discover = each(PeakEwmaLayer::default()).layer(fixed(0..10).layer(factory));
        let mut balance = Balance::new(discover, policy);
        balance.ready().await.unwrap().call(()).await.unwrap();
        for pause in [0, 1, 1000, 100_000] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let before = READINGS.get();
            for _ in 0..10 {
                balance.ready().await.unwrap().call(()).await.unwrap();
            }
            assert_eq!(READINGS.get() - before, 20, "after {pause} ms");
        }
    }
    type Echo = tower::util::ServiceFn<fn(()) -> std::future::Ready<Result<(), BoxError>>>;
    fn echo((): ()) -> std::future::Ready<Result<(), BoxError>> {
        std::future::ready(Ok(()))
    }
    check(P2c::default()).await;
    check(P2c::default().choices(3)).await;
    check(LeastLoaded::default()).await;
}
