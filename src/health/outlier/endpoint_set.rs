use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    counters::CountersRef,
    detector::{Detectors, Reason},
    endpoint_state::{EndpointState, Judge},
    rule::EjectionRule,
    settings::EndpointSettings,
};
use crate::{
    afterwards::Afterwards,
    endpoint::{Address, Endpoint, EndpointMap, Status},
    random::random_part,
};

/// The endpoints that outlier detection watches and judges together.
pub(super) struct EndpointSet<A: Address> {
    rule: EjectionRule,
    detectors: Detectors,
    settings: EndpointSettings,
    states: Mutex<States<A>>,
}

struct States<A: Address> {
    map: EndpointMap<A, Arc<EndpointState<A>>>,
    rng: SmallRng,
}

impl<A: Address> EndpointSet<A> {
    pub(super) fn new(detectors: Detectors, settings: EndpointSettings, rng: SmallRng) -> Self {
        Self {
            rule: settings.rule,
            detectors,
            settings,
            states: Mutex::new(States {
                map: EndpointMap::default(),
                rng,
            }),
        }
    }

    /// Adds an endpoint; it replaces an earlier one of the same address.
    pub(super) fn insert(self: &Arc<Self>, endpoint: &Endpoint<A>) -> CountersRef {
        let judge: Weak<dyn Judge<A>> = Arc::<Self>::downgrade(self);
        // The service that this one replaces may have been ejected.
        endpoint.readmit();
        let state = EndpointState::new(endpoint.clone(), self.settings, judge);
        let counters = state.counters();
        let (_, replaced) = self.states().map.insert(endpoint.clone(), state);
        // Dropping the last reference wakes the callers that wait for the replaced endpoint. The
        // lock is released before.
        drop(replaced);
        counters
    }

    pub(super) fn remove(&self, endpoint: &Endpoint<A>) {
        let removed = self.states().map.remove(endpoint);
        drop(removed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states().map.is_empty()
    }

    /// Ends an interval and judges the endpoints by its counts.
    ///
    /// Cost: **O(n log n)** for `n` endpoints.
    pub(super) fn sweep(&self, now: Instant) {
        self.locked(|states, afterwards| self.judge_all(states, now, afterwards));
    }

    fn judge_all(&self, states: &mut States<A>, now: Instant, afterwards: &mut Afterwards) {
        let all: Vec<_> = states
            .map
            .iter()
            .map(|(_, _, state)| state.clone())
            .collect();
        let mut judged = Vec::with_capacity(all.len());
        let mut tallies = Vec::with_capacity(all.len());
        for state in &all {
            if state.end_interval(now, afterwards) {
                states.eject_again(&self.rule, state, now, afterwards);
            }
            let tally = state.take_tally();
            if state.is_closed() && state.is_candidate() {
                judged.push(state);
                tallies.push(tally);
            }
        }
        for state in &judged {
            if let Some(in_a_row) = state.failures_in_a_row() {
                let reason = Reason::ConsecutiveFailures(in_a_row);
                states.eject(&self.rule, state, reason, now, afterwards);
            }
        }
        for verdict in self.detectors.judge(&tallies) {
            let state = judged[verdict.endpoint];
            states.eject(&self.rule, state, verdict.reason, now, afterwards);
        }
    }

    /// Changes the states, and then tells of it.
    fn locked(&self, change: impl FnOnce(&mut States<A>, &mut Afterwards)) {
        let mut afterwards = Afterwards::default();
        change(&mut self.states(), &mut afterwards);
        afterwards.run();
    }

    fn states(&self) -> MutexGuard<'_, States<A>> {
        // Nothing under this lock panics halfway through a change.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Judge<A> for EndpointSet<A> {
    fn eject(&self, state: &EndpointState<A>, reason: Reason, now: Instant) {
        self.locked(|states, afterwards| states.eject(&self.rule, state, reason, now, afterwards));
    }

    fn eject_again(&self, state: &EndpointState<A>, now: Instant) {
        self.locked(|states, afterwards| states.eject_again(&self.rule, state, now, afterwards));
    }
}

impl<A: Address> States<A> {
    fn eject(
        &mut self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        reason: Reason,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        if !state.may_be_ejected() || !self.has(state) {
            return;
        }
        match self.objection(rule, state, now) {
            Some(objection) => {
                let endpoint = state.endpoint.clone();
                afterwards.add(move || debug!(%endpoint, %reason, objection, "not ejected"));
            }
            None => self.eject_now(rule, state, reason, now, afterwards),
        }
    }

    fn eject_again(
        &mut self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        let objection = self.objection(rule, state, now);
        match objection.or_else(|| (!self.has(state)).then_some("its service was replaced")) {
            Some(objection) => {
                let endpoint = state.endpoint.clone();
                afterwards
                    .add(move || warn!(%endpoint, objection, "readmitted though a probe failed"));
                state.close(afterwards);
            }
            None => self.eject_now(rule, state, Reason::Probe, now, afterwards),
        }
    }

    fn eject_now(
        &mut self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        reason: Reason,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        let until = state.eject(&reason, self.jitter(rule), now, afterwards);
        let seconds = until.saturating_duration_since(now).as_secs_f64();
        let endpoint = state.endpoint.clone();
        afterwards.add(move || warn!(%endpoint, %reason, seconds, ?until, "ejected"));
    }

    /// Returns whether `state` is its endpoint's current state, not that of a replaced service.
    fn has(&self, state: &EndpointState<A>) -> bool {
        let id = self.map.id(&state.endpoint);
        let current = id.and_then(|id| self.map.get(id));
        current.is_some_and(|(_, current)| current.number() == state.number())
    }

    /// Returns the rule that forbids an ejection, if there is one.
    ///
    /// An endpoint whose ejection has ended but that no request has probed yet does not count
    /// towards the cap. It may be unhealthy as well, or no request's key may lead to it, and then
    /// no probe ever comes.
    fn objection(
        &self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        now: Instant,
    ) -> Option<&'static str> {
        let others = || {
            let others = self.map.iter().map(|(_, _, other)| other);
            let others = others.filter(|other| other.endpoint != state.endpoint);
            others.filter(|other| other.is_candidate())
        };
        let ejected = others().filter(|other| other.is_out(now)).count();
        if ejected >= rule.most_ejected(others().count() + 1) {
            return Some("as many others are ejected as may be");
        }
        let is_available = |other: &Arc<EndpointState<A>>| {
            other.is_closed() && other.endpoint.status() == Status::Available
        };
        (!others().any(is_available)).then_some("no other is available")
    }

    fn jitter(&mut self, rule: &EjectionRule) -> Duration {
        random_part(rule.jitter, &mut self.rng)
    }
}

impl<A: Address> fmt::Debug for EndpointSet<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSet")
            .field("settings", &self.settings)
            .field("detectors", &self.detectors)
            .finish_non_exhaustive()
    }
}
