//! Tests of the policies that compare loads.

use std::{cell::Cell, rc::Rc};

use tower::load::Load;

use super::*;
use crate::{clock::PickClock, endpoint::Endpoint, member::Member, metric::Cost, random::Rng};

/// A load that counts the loads that have advanced the clock.
#[derive(Clone)]
struct Told {
    count: Rc<Cell<usize>>,
    compared: usize,
}

impl Load for Told {
    type Metric = Self;

    fn load(&self) -> Self {
        self.clone()
    }
}

impl PartialEq for Told {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PartialOrd for Told {
    fn partial_cmp(&self, _: &Self) -> Option<std::cmp::Ordering> {
        panic!("it is asked for its cost at the clock's time");
    }
}

impl Cost for Told {
    const TIMED: bool = true;

    fn cost(&self) -> f64 {
        panic!("it is asked for its cost at the clock's time");
    }

    fn cost_at(&self, _: f64, _: &PickClock) -> f64 {
        assert_eq!(self.count.get(), self.compared);
        0.0
    }

    fn advance_clock(&self, _: &PickClock) {
        self.count.set(self.count.get() + 1);
    }
}

/// Otherwise the first load would be compared at an older time than the last.
#[test]
fn all_loads_tell_the_clock_before_one_of_them_is_asked() {
    fn check<P: Policy<usize, Told, ()>>(policy: P, weights: [u32; 4], compared: usize) {
        let count = Rc::new(Cell::new(0));
        let members: Vec<_> = (0..4)
            .map(|address| Member {
                endpoint: Endpoint::new(address),
                service: Told {
                    count: count.clone(),
                    compared,
                },
                id: address as u64,
                weight: weights[address],
                share: weights[address],
                available: true,
                drains: false,
                unknown: false,
                candidate: true,
            })
            .collect();
        let table = policy.table(Candidates::new(&members), None);
        let mut rng = Rng::new(1, 0);
        for passed in [None, Some(&Mask::default())] {
            count.set(0);
            let candidates = Candidates::without(&members, passed);
            let choice = policy.pick(&table, candidates, &mut PickContext::new(None, &mut rng));
            assert!(matches!(choice, Choice::Member(_)));
            assert_eq!(count.get(), compared);
        }
    }
    for weights in [[1; 4], [1, 2, 3, 4]] {
        check(P2c::seeded(1), weights, 2);
        check(P2c::seeded(1).choices(3), weights, 3);
        check(LeastLoaded::seeded(1), weights, 4);
    }
}
