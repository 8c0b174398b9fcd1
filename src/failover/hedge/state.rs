use std::time::Duration;

use super::delay::{Began, Delay};
use crate::{budget::Allowance, failover::Retry};

/// The state that the handles of one hedging service and its requests share.
pub(super) struct HedgeState<S, P, Copier> {
    /// Cloned for each second try.
    pub(super) service: S,
    pub(super) policy: P,
    pub(super) copy: Copier,
    pub(super) delay: Delay,
    pub(super) longest_pushback: Duration,
    pub(super) allowance: Allowance,
}

impl<S, P, Copier> HedgeState<S, P, Copier> {
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
