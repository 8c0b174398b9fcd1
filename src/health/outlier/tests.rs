//! Tests that counters are reused, and that references from earlier endpoints then have no effect.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{OutlierLayer, detector::Reason};
use crate::{afterwards::Afterwards, endpoint::Endpoint};

#[test]
fn counters_are_taken_again() {
    let set = Arc::new(OutlierLayer::default().endpoint_set());
    let mut counters = HashSet::new();
    for number in 0..10_000 {
        let endpoint = Endpoint::new(number);
        let reference = set.insert(&endpoint, Instant::now());
        counters.insert(std::ptr::from_ref(reference.counters()));
        set.remove(&endpoint, Instant::now());
    }
    // Other tests run at the same time and take counters, too.
    assert!(counters.len() < 100, "{}", counters.len());
}

#[test]
fn an_endpoint_that_has_gone_is_not_heard() {
    let set = Arc::new(OutlierLayer::default().endpoint_set::<&str>());
    let (a, b) = (Endpoint::new("a"), Endpoint::new("b"));
    let gone = set.insert(&a, Instant::now());
    set.remove(&a, Instant::now());
    // Reuses the counters of `a`, unless another test has taken them.
    let here = set.insert(&b, Instant::now());
    assert!(
        gone.is_closed(),
        "a request to an endpoint that is not watched does not wait"
    );
    assert!(gone.state::<&str>().is_none());
    let state = here.state::<&str>().unwrap();
    assert!(here.state::<String>().is_none(), "another type of address");

    gone.succeed(0);
    assert_eq!(state.take_tally().successes, 0);
    here.succeed(0);
    assert_eq!(state.take_tally().successes, 1);

    state.eject(
        &Reason::Probe,
        |_| Duration::ZERO,
        Instant::now(),
        &mut Afterwards::default(),
    );
    assert!(!here.is_closed());
    assert!(gone.is_closed());
    drop((set, state));
    assert!(here.is_closed() && here.state::<&str>().is_none());
}
