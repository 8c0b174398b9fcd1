//! Tests that counters are reused, that references from earlier endpoints then have no effect, and
//! what a sweep costs.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{OutlierLayer, census::LOOKS, detector::Reason};
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
    assert!(counters.len() < 1000, "{}", counters.len());
}

/// When all endpoints fail, a sweep looks at each a few times, not at all for each.
#[tokio::test(start_paused = true)]
async fn a_sweep_looks_at_each_endpoint_a_few_times() {
    for n in [50_usize, 500] {
        let set = Arc::new(OutlierLayer::default().max_ejected(1.0).endpoint_set());
        let now = Instant::now();
        let counters: Vec<_> = (0..n)
            .map(|number| set.insert(&Endpoint::new(number), now))
            .collect();
        for reference in &counters {
            let state = reference.state::<usize>().unwrap();
            // Enough for the next sweep, but no verdict now.
            for _ in 0..9 {
                state.counters().counters().fail();
            }
        }
        LOOKS.set(0);
        set.sweep(now);
        let looks = LOOKS.get() as usize;
        assert!(looks <= 5 * n, "{looks} looks at {n} endpoints");
        let states = counters.iter().map(|c| c.state::<usize>().unwrap());
        let ejected = states.filter(|state| !state.is_closed()).count();
        assert_eq!(ejected, n - 1, "never the last one");
        // Joining looks at nobody.
        LOOKS.set(0);
        set.insert(&Endpoint::new(n), now);
        assert_eq!(LOOKS.get(), 0);
    }
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
