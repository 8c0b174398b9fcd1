//! Checks every interleaving of handles and driver. `.ci/run` shows how to run these tests.
//!
//! Another thread may come between any two operations on the snapshot, its version and the driver's
//! waker. Operations on reference counts and tokio's notification are single steps here.

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
    arrivals::Arrivals,
    shared::{Availability, Config, InPanic, Shared, Snapshot, WhenEmpty},
};
use crate::{
    discover::fixed, endpoint::Endpoint, error::NoEndpoints, interleavings::model, policy::Random,
};

/// A service whose reference count tells whether it is alive.
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
            // Ready or not. If a service is reserved, it is dropped with the handle.
            let _ = other.poll_ready(&mut Context::from_waker(Waker::noop()));
        });
        let idle = thread::spawn(move || drop(balance));
        // If nothing woke the driver, this would be a deadlock, which loom reports.
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
                    availability: Availability::Empty(NoEndpoints::new()),
                    arrivals: Arrivals::default(),
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
        // Reservations from earlier snapshots are no longer current.
        assert!(shared.is_current(2) && !shared.is_current(0) && !shared.is_current(1));
    });
}
