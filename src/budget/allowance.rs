use super::{Budget, TokenThrottle};

/// Limits the retries of all requests together: a [`Budget`] or a [`TokenThrottle`].
///
/// Layers take either by [`Into`]: `.budget(Budget::new())`, `.budget(TokenThrottle::new(10,
/// 0.1))`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Allowance {
    /// Retries for a share of the requests, plus a minimum per second.
    Budget(Budget),
    /// Retries as long as most requests succeed.
    Throttle(TokenThrottle),
}

impl From<Budget> for Allowance {
    fn from(budget: Budget) -> Self {
        Self::Budget(budget)
    }
}

impl From<TokenThrottle> for Allowance {
    fn from(throttle: TokenThrottle) -> Self {
        Self::Throttle(throttle)
    }
}

impl Allowance {
    /// Counts a first try.
    #[inline]
    pub(crate) fn first_try(&self) {
        match self {
            Self::Budget(budget) => budget.deposit(),
            Self::Throttle(_) => {}
        }
    }

    #[inline]
    pub(crate) fn succeeded(&self) {
        match self {
            Self::Budget(_) => {}
            Self::Throttle(throttle) => throttle.succeeded(),
        }
    }

    /// Counts a failure for which no retry is asked of this allowance.
    pub(crate) fn failed(&self) {
        match self {
            Self::Budget(_) => {}
            Self::Throttle(throttle) => drop(throttle.failed()),
        }
    }

    /// Counts a failure, and pays for a retry. Returns whether it is allowed.
    pub(crate) fn withdraw(&self) -> bool {
        match self {
            Self::Budget(budget) => budget.withdraw(),
            Self::Throttle(throttle) => throttle.failed(),
        }
    }

    /// Pays for a hedge. Returns whether it is allowed.
    pub(crate) fn hedge(&self) -> bool {
        match self {
            Self::Budget(budget) => budget.hedge(),
            Self::Throttle(throttle) => throttle.allows(),
        }
    }

    /// Returns the payment for a hedge that was not sent.
    pub(crate) fn give_hedge_back(&self) {
        match self {
            Self::Budget(budget) => budget.give_hedge_back(),
            Self::Throttle(_) => {}
        }
    }

    /// Pays for a try after a failure that is counted already. Returns whether it is allowed.
    pub(crate) fn second_try(&self) -> bool {
        match self {
            Self::Budget(budget) => budget.withdraw(),
            Self::Throttle(throttle) => throttle.allows(),
        }
    }

    /// Returns the payment for a try that was not sent.
    pub(crate) fn give_back(&self) {
        match self {
            Self::Budget(budget) => budget.give_back(),
            Self::Throttle(_) => {}
        }
    }
}
