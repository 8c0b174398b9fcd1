use super::{Budget, TokenThrottle};

/// What limits the retries of all requests together.
#[derive(Clone, Debug)]
pub(super) enum Allowance {
    Budget(Budget),
    Throttle(TokenThrottle),
}

impl Allowance {
    pub(super) fn batch(&self) -> u32 {
        match self {
            Self::Budget(budget) => budget.batch(),
            Self::Throttle(_) => u32::MAX,
        }
    }

    #[inline]
    pub(super) fn first_tries(&self, tries: u32) {
        match self {
            Self::Budget(budget) => budget.deposit_many(tries),
            Self::Throttle(_) => {}
        }
    }

    #[inline]
    pub(super) fn succeeded(&self) {
        match self {
            Self::Budget(_) => {}
            Self::Throttle(throttle) => throttle.succeeded(),
        }
    }

    /// Counts a failure that is not tried again for another reason.
    pub(super) fn failed(&self) {
        match self {
            Self::Budget(_) => {}
            Self::Throttle(throttle) => drop(throttle.failed()),
        }
    }

    /// Counts a failure, and returns whether a retry is paid for.
    pub(super) fn withdraw(&self) -> bool {
        match self {
            Self::Budget(budget) => budget.withdraw(),
            Self::Throttle(throttle) => throttle.failed(),
        }
    }

    /// Returns whether a request may be sent a second time that has not failed, and pays for it.
    pub(super) fn hedge(&self) -> bool {
        match self {
            Self::Budget(budget) => budget.withdraw(),
            Self::Throttle(throttle) => throttle.allows(),
        }
    }

    /// Gives back what was paid for a hedge that was not sent.
    pub(super) fn give_back(&self) {
        match self {
            Self::Budget(budget) => budget.give_back(),
            Self::Throttle(_) => {}
        }
    }
}
