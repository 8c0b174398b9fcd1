use tokio::time::Instant;

use super::{endpoint_state::EndpointState, rule::EjectionRule};
use crate::endpoint::{Address, Status};

/// How many endpoints there are that count, and in what state. Kept up while they are judged.
#[derive(Debug, Default)]
pub(super) struct Census {
    candidates: usize,
    ejected: usize,
    available: usize,
}

impl Census {
    /// Returns what one endpoint adds to each count.
    fn of<A: Address>(state: &EndpointState<A>, now: Instant) -> [usize; 3] {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        let is_candidate = state.is_candidate();
        let is_available = || state.is_closed() && state.endpoint.status() == Status::Available;
        [
            usize::from(is_candidate),
            usize::from(is_candidate && state.is_out(now)),
            usize::from(is_candidate && is_available()),
        ]
    }

    pub(super) fn enter<A: Address>(&mut self, state: &EndpointState<A>, now: Instant) {
        let [candidate, ejected, available] = Self::of(state, now);
        self.candidates += candidate;
        self.ejected += ejected;
        self.available += available;
    }

    /// Takes an endpoint out, before its state changes.
    pub(super) fn leave<A: Address>(&mut self, state: &EndpointState<A>, now: Instant) {
        let [candidate, ejected, available] = Self::of(state, now);
        // Saturating: a check may have changed its status meanwhile.
        self.candidates = self.candidates.saturating_sub(candidate);
        self.ejected = self.ejected.saturating_sub(ejected);
        self.available = self.available.saturating_sub(available);
    }

    /// Returns the rule that forbids an ejection, if there is one. **O(1)**.
    ///
    /// An endpoint whose ejection has ended but that no request has probed yet does not count
    /// towards the cap. It may be unhealthy as well, or no request's key may lead to it, and then
    /// no probe ever comes.
    pub(super) fn objection<A: Address>(
        &self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        now: Instant,
    ) -> Option<&'static str> {
        let [candidate, ejected, available] = Self::of(state, now);
        let others = self.candidates.saturating_sub(candidate);
        if self.ejected.saturating_sub(ejected) >= rule.most_ejected(others + 1) {
            return Some("as many others are ejected as may be");
        }
        (self.available.saturating_sub(available) == 0).then_some("no other is available")
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked at an endpoint.
    pub(super) static LOOKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}
