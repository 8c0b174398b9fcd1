//! Every interleaving of handles and driver; `.ci/run` says how to run them.
//!
//! Another thread may come between any two operations on the snapshot, its version and the driver's waker; reference
//! counts and tokio's notification are whole steps here.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use loom::{future::block_on, thread};
use tower::{Layer, Service};

use super::{
    Balance,
    shared::{Config, InPanic, Shared, Snapshot, Standing, WhenEmpty},
};
use crate::{
    discover::fixed, endpoint::Endpoint, error::NoEndpoints, interleavings::model, policy::Random,
};

/// Says by its count of references whether it is alive.
#[derive(Clone)]
struct Echo(#[allow(dead_code)] Arc<()>);

impl Service<()> for Echo {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

#[test]
fn loom_the_driver_ends_with_the_last_handle() {
    model(|| {
        let alive = Arc::new(());
        let echo = Echo(alive.clone());
        let discover = fixed(["a"]).layer(move |_: &Endpoint<&str>| echo.clone());
        let (balance, driver) = Balance::<_, _, (), _>::pair(discover, Random::seeded(1));
        let mut other = balance.clone();
        let using = thread::spawn(move || {
            // Ready or not yet, and perhaps with a service reserved, which goes with the handle.
            let _ = other.poll_ready(&mut Context::from_waker(Waker::noop()));
        });
        let idle = thread::spawn(move || drop(balance));
        // A driver that nobody wakes is a deadlock, which loom finds.
        block_on(driver);
        using.join().unwrap();
        idle.join().unwrap();
        assert_eq!(Arc::strong_count(&alive), 1, "a service is alive");
    });
}

#[test]
fn loom_who_sees_a_version_finds_its_snapshot() {
    model(|| {
        let config = Config {
            when_empty: WhenEmpty::Fail,
            in_panic: InPanic::Fail,
            panic_threshold: 0.0,
            slow_start: None,
        };
        let shared = Arc::new(Shared::<&str, (), (), ()>::new((), (), config));
        let publisher = shared.clone();
        let thread = thread::spawn(move || {
            for version in 1..=2 {
                publisher.publish(Snapshot {
                    version,
                    members: Box::default(),
                    table: (),
                    standing: Standing::Empty(NoEndpoints::new()),
                });
            }
        });
        for version in 0..=2 {
            if shared.is_current(version) {
                let newest = shared.snapshot().version;
                assert!(newest >= version, "{newest} is before {version}");
            }
        }
        thread.join().unwrap();
        // What was reserved from one before does not hold any more.
        assert!(shared.is_current(2) && !shared.is_current(0) && !shared.is_current(1));
    });
}
