//! Tests that counters are reused, that references from earlier endpoints then have no effect, and
//! what a sweep costs.

use std::{collections::HashSet, sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    OutlierLayer,
    counters::CountersRef,
    detector::Reason,
    endpoint_state::{Admitted, Judge, LOOKS},
};
use crate::{
    afterwards::Afterwards,
    endpoint::{Endpoint, Status, Target},
};

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
    }
}

/// A verdict between sweeps looks at its own endpoint alone, and so does an endpoint that joins.
#[tokio::test(start_paused = true)]
async fn a_verdict_looks_at_one_endpoint() {
    for n in [50_usize, 500] {
        let set = Arc::new(OutlierLayer::default().max_ejected(1.0).endpoint_set());
        let now = Instant::now();
        let endpoints: Vec<_> = (0..n).map(Endpoint::new).collect();
        let counters: Vec<_> = endpoints.iter().map(|e| set.insert(e, now)).collect();
        LOOKS.set(0);
        let states = counters.iter().map(|c| c.state::<usize>().unwrap());
        let ejected = states.filter(|state| {
            (0..5).for_each(|_| state.fail());
            !state.is_closed()
        });
        assert_eq!(ejected.count(), n - 1, "never the last one");
        let looks = LOOKS.get() as usize;
        assert!(looks <= n, "{looks} looks at {n} endpoints");
        // Those that come back go on as they were.
        LOOKS.set(0);
        for endpoint in &endpoints[..n / 2] {
            set.remove(endpoint, now);
            let counters = set.insert(endpoint, now);
            assert!(!counters.state::<usize>().unwrap().is_closed());
        }
        let looks = LOOKS.get() as usize;
        assert!(looks <= n, "{looks} looks at {n} endpoints");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Join,
    Leave,
    Fail,
    Probe(Option<bool>),
    Unhealthy,
    Healthy,
    Unknown,
    Weight(u32),
    EjectedElsewhere,
    Readmitted,
    Sweep,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Join),
        Just(Step::Leave),
        Just(Step::Fail),
        Just(Step::Fail),
        any::<Option<bool>>().prop_map(Step::Probe),
        Just(Step::Unhealthy),
        Just(Step::Healthy),
        Just(Step::Unknown),
        (0_u32..2).prop_map(Step::Weight),
        Just(Step::EjectedElsewhere),
        Just(Step::Readmitted),
        Just(Step::Sweep),
        (0_u64..20_000).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens, the census is what a count of all endpoints finds.
    #[test]
    fn the_census_is_kept_up(steps in prop::collection::vec((step(), 0_usize..6), 1..100)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let set = Arc::new(OutlierLayer::default().max_ejected(0.5).endpoint_set());
            let endpoints: Vec<_> = (0..6_usize).map(Endpoint::new).collect();
            let mut counters = endpoints.iter().map(|_| None).collect::<Vec<_>>();
            let mut replaced = Vec::new();
            for (step, which) in steps {
                let (endpoint, now) = (&endpoints[which], Instant::now());
                let state = || counters[which].and_then(CountersRef::state::<usize>);
                match step {
                    Step::Join => {
                        // The service of this one ends its probes after it was replaced.
                        replaced.extend(state());
                        counters[which] = Some(set.insert(endpoint, now));
                    }
                    Step::Leave => set.remove(endpoint, now),
                    Step::Fail => {
                        let states = state().into_iter().chain(replaced.pop());
                        states.for_each(|state| (0..5).for_each(|_| state.fail()));
                    }
                    Step::Probe(outcome) => {
                        if let Some(Admitted::Probe(probe)) = state().and_then(|s| s.admit()) {
                            state().unwrap().end_sent_probe(probe.send(), outcome);
                        }
                    }
                    Step::Unhealthy => endpoint.mark_unhealthy(),
                    Step::Healthy => endpoint.mark_healthy(),
                    Step::Unknown => endpoint.mark_unknown(),
                    Step::Weight(weight) => {
                        endpoint.set_attributes(&Target::new(which).weight(weight));
                    }
                    Step::EjectedElsewhere => endpoint.eject(now + Duration::from_secs(1)),
                    Step::Readmitted => endpoint.readmit(),
                    Step::Sweep => set.sweep(now),
                    Step::Wait(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
                }
                let [kept, counted] = set.kept_and_counted(Instant::now());
                assert_eq!(kept, counted, "after {step:?} of {which}");
            }
        });
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

/// Between a probe's failure and the ejection, another probe of its round may fail as well.
#[tokio::test(start_paused = true)]
async fn of_probes_that_fail_at_once_the_first_counts() {
    let set = Arc::new(OutlierLayer::default().max_ejected(1.0).endpoint_set());
    let endpoint = Endpoint::new(0);
    let counters = [&endpoint, &Endpoint::new(1)].map(|e| set.insert(e, Instant::now()));
    let state = counters[0].state::<usize>().unwrap();
    (0..5).for_each(|_| state.fail());
    tokio::time::advance(Duration::from_secs(60)).await;
    let Some(Admitted::Probe(probe)) = state.admit() else {
        panic!("a probe is due");
    };
    let round = probe.send();
    set.eject_again(&state, round, Instant::now());
    let ejected = endpoint.status();
    assert!(matches!(ejected, Status::Ejected { .. }), "{ejected:?}");
    set.eject_again(&state, round, Instant::now());
    assert_eq!(endpoint.status(), ejected);
}
