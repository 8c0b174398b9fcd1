//! Which member takes this request?
//!
//! A [`Policy`] answers for one request at a time, from the members of one snapshot. What it needs to
//! know of all of them (weights, order) goes into its [`Table`](Policy::Table), built off the request
//! path whenever the set changes; what it needs for one request is in the [`PickContext`].
//!
//! # Which one when
//!
//! | policy | looks at | cost of a pick | take it |
//! |---|---|---|---|
//! | [`P2c`] | two members' loads | O(1) | for large sets, and wherever many clients share the servers |
//! | [`LeastLoaded`] | every member's load | O(n) | for up to some hundred members that one client has to itself |
//! | [`RoundRobin`] | nothing | O(1) | for equal servers and equal requests, where loads say nothing |
//! | [`WeightedRoundRobin`] | weights | O(1) | for servers of known, different sizes |
//! | [`Random`] | weights | O(1) | where many clients that know nothing of each other must not march in step |
//!
//! To send equal keys to the same server, take a [hash policy](crate::hash).
//!
//! One client, ten servers, exponential service times, load .9: the mean time in the system is
//! 10.2 service times with random picks, 5.6 with round robin, 3.0 with p2c and 1.9 with least loaded.
//! In one that is seen by a hundred clients, each of which counts only its own requests in flight, p2c's
//! 2.7 (of a hundred servers) becomes 7.3: the counts of one client among many know little, and then
//! weights that the servers report, or fewer and larger clients, help more than any policy.
//!
//! # One of your own
//!
//! ```
//! use tower_lb::{Candidates, Choice, Member, PickContext, Policy};
//!
//! /// Always the first one that may be picked: active and standby.
//! #[derive(Debug)]
//! struct First;
//!
//! impl<A, S, Req> Policy<A, S, Req> for First {
//!     type Table = ();
//!
//!     fn table(&self, _: &[Member<A, S>], _: Option<&()>) {}
//!
//!     fn pick(&self, (): &(), candidates: Candidates<'_, A, S>, _: &mut PickContext<'_, Req>) -> Choice {
//!         candidates.iter().next().map_or(Choice::None, |(position, _)| Choice::Member(position))
//!     }
//! }
//! ```

mod candidates;
mod least_loaded;
mod p2c;
mod random;
mod rng;
mod round_robin;
mod sampler;
mod stride;
mod weighted;

pub(crate) use self::{candidates::Passed, rng::Rng};
pub use self::{
    candidates::{Candidates, Member},
    least_loaded::{LeastLoaded, LeastLoadedTable},
    p2c::{P2c, P2cTable},
    random::{Random, RandomTable},
    rng::PickContext,
    round_robin::{RoundRobin, RoundRobinTable},
    weighted::{WeightedRoundRobin, WeightedRoundRobinTable},
};

/// Chooses one member for one request.
///
/// One policy serves all handles of a balancer at once; whatever it counts is shared. Its methods must
/// not block.
pub trait Policy<A, S, Req>: Send + Sync + 'static {
    /// What is built once for each snapshot: a ring, a schedule, an alias table; `()` if nothing.
    type Table: Send + Sync + 'static;

    /// Builds the table for `members`, of which those that [`is_candidate`](Member::is_candidate) may be picked.
    ///
    /// Runs on the driver's task, off the request path, with the table that it replaces.
    fn table(&self, members: &[Member<A, S>], previous: Option<&Self::Table>) -> Self::Table;

    /// Chooses among the `candidates`, members of the snapshot that `table` was built for.
    ///
    /// Called again, with fewer candidates, when the chosen one turns out not to be ready.
    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice;

    /// Returns the seed of the random streams of the balancer's handles. Default: none, unpredictable.
    fn seed(&self) -> Option<u64> {
        None
    }
}

/// Answers a pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The member at this position of the snapshot's members.
    Member(usize),
    /// Ask again with the request: it is known only in `call`.
    NeedsRequest,
    /// The request has no key to choose by; the call fails with [`MissingKey`](crate::error::MissingKey).
    MissingKey,
    /// None of the candidates suits; the call fails with [`NotChosen`](crate::error::NotChosen).
    None,
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use tower::load::Load;

    use super::*;
    use crate::{
        endpoint::Endpoint,
        metric::{Cost, PickClock},
    };

    /// A load that counts how many have told a clock.
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

        fn cost_at(&self, _: &PickClock) -> f64 {
            assert_eq!(self.count.get(), self.compared);
            0.0
        }

        fn tell(&self, _: &PickClock) {
            self.count.set(self.count.get() + 1);
        }
    }

    /// Otherwise the first of them would be looked at by an older time than the last.
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
                    candidate: true,
                })
                .collect();
            let table = policy.table(&members, None);
            let mut rng = Rng::new(1, 0);
            for passed in [None, Some(&Passed::default())] {
                count.set(0);
                let candidates = Candidates::new(&members, passed);
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
}
