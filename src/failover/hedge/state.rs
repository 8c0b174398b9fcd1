use std::time::Duration;

use super::{
    delay::{Began, Delay},
    slow::SlowAnswers,
};
use crate::{
    budget::{Allowance, Budget},
    failover::Retry,
};

/// The state that the handles of one hedging service and its requests share.
pub(super) struct HedgeState<S, P, Copier> {
    /// Cloned for each second try.
    pub(super) service: S,
    pub(super) policy: P,
    pub(super) copy: Copier,
    pub(super) delay: Delay,
    pub(super) longest_pushback: Duration,
    pub(super) allowance: Allowance,
    /// What hedges may have of it.
    pub(super) share: Budget,
    /// The share of requests that are to be hedged.
    pub(super) wanted: f64,
    pub(super) slow: SlowAnswers,
}

impl<S, P, Copier> HedgeState<S, P, Copier> {
    /// Pays for a hedge; returns whether it is allowed.
    pub(super) fn pay_for_hedge(&self) -> bool {
        // The own share first: it is given back if the budget is spent.
        let is_paid = self.share.withdraw();
        if is_paid && !self.allowance.hedge() {
            self.share.give_back();
            return false;
        }
        is_paid
    }

    /// Counts the answer of a try.
    pub(super) fn count(&self, retry: Retry, is_answer: bool, began: Began) {
        match retry {
            Retry::No if is_answer => {
                self.delay.end(began);
                self.allowance.succeeded();
            }
            Retry::No => {}
            Retry::Forbidden | Retry::Yes | Retry::Elsewhere(_) | Retry::After(_) => {
                self.allowance.failed();
            }
        }
    }
}
