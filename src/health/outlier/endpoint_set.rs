use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    census::Census,
    counters::CountersRef,
    detector::{Detectors, Reason},
    endpoint_state::{EndpointState, Judge, Remembered},
    rule::EjectionRule,
    settings::EndpointSettings,
};
use crate::{
    afterwards::Afterwards,
    endpoint::{Address, Endpoint, EndpointMap},
    random::random_part,
};

/// The endpoints that outlier detection watches and judges together.
pub(super) struct EndpointSet<A: Address> {
    rule: EjectionRule,
    detectors: Detectors,
    settings: EndpointSettings,
    /// How long an endpoint that has left is remembered.
    memory: Duration,
    has_warned_of_undecided: AtomicBool,
    states: Mutex<States<A>>,
}

struct States<A: Address> {
    map: EndpointMap<A, Arc<EndpointState<A>>>,
    /// The endpoints that have left and may come back, and when they left.
    departed: EndpointMap<A, (Instant, Remembered)>,
    /// The most endpoints that there have been at once.
    largest: usize,
    rng: SmallRng,
}

impl<A: Address> EndpointSet<A> {
    pub(super) fn new(
        detectors: Detectors,
        settings: EndpointSettings,
        memory: Duration,
        rng: SmallRng,
    ) -> Self {
        Self {
            rule: settings.rule,
            detectors,
            settings,
            memory,
            has_warned_of_undecided: AtomicBool::new(false),
            states: Mutex::new(States {
                map: EndpointMap::default(),
                departed: EndpointMap::default(),
                largest: 0,
                rng,
            }),
        }
    }

    /// Adds an endpoint; it replaces an earlier one of the same address.
    ///
    /// One that has left a short time ago goes on as it was: ejected, or with its failures. So a
    /// registry that flaps does not hide a broken endpoint.
    pub(super) fn insert(self: &Arc<Self>, endpoint: &Endpoint<A>, now: Instant) -> CountersRef {
        let judge: Weak<dyn Judge<A>> = Arc::<Self>::downgrade(self);
        // The service that this one replaces may have been ejected.
        endpoint.readmit();
        let mut afterwards = Afterwards::default();
        let mut states = self.states();
        let remembered = states.recall(endpoint, now, self.memory);
        let state = EndpointState::new(endpoint.clone(), self.settings, judge, remembered);
        // Only if an ejection is remembered, because the census looks at all others.
        if !state.is_closed() {
            let mut census = states.census(now);
            census.enter(&state, now);
            match census.objection(&self.rule, &state, now) {
                None => state.eject_as_remembered(now, &mut afterwards),
                // Its next request is a probe.
                Some(_) => state.end_ejection(now),
            }
        }
        let counters = state.counters();
        let (_, replaced) = states.map.insert(endpoint.clone(), state);
        states.largest = states.largest.max(states.map.len());
        // Dropping the last reference wakes the callers that wait for the replaced endpoint. The
        // lock is released before.
        drop(states);
        drop(replaced);
        afterwards.run();
        counters
    }

    pub(super) fn remove(&self, endpoint: &Endpoint<A>, now: Instant) {
        let mut states = self.states();
        let removed = states.map.remove(endpoint);
        if let Some((_, endpoint, state)) = &removed {
            states.remember(endpoint, state, now);
        }
        drop(states);
        drop(removed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states().map.is_empty()
    }

    /// Ends an interval and judges the endpoints by its counts.
    ///
    /// Cost: **O(n log n)** for `n` endpoints.
    pub(super) fn sweep(&self, now: Instant) {
        self.locked(|states, afterwards| {
            states.forget(now, self.memory);
            self.judge_all(states, now, afterwards);
        });
    }

    fn judge_all(&self, states: &mut States<A>, now: Instant, afterwards: &mut Afterwards) {
        let all: Vec<_> = states
            .map
            .iter()
            .map(|(_, _, state)| state.clone())
            .collect();
        // 1. Probes that have taken too long.
        let mut failed_probes = Vec::new();
        for state in &all {
            if state.end_interval(now, afterwards) {
                failed_probes.push(state);
            }
        }
        let mut census = states.census(now);
        for state in failed_probes {
            states.eject_again(&self.rule, &mut census, state, now, afterwards);
        }
        // 2. The counts of the interval.
        let mut judged = Vec::with_capacity(all.len());
        let mut tallies = Vec::with_capacity(all.len());
        for state in &all {
            let tally = state.take_tally();
            if state.is_closed() && state.is_candidate() {
                judged.push(state);
                tallies.push(tally);
            }
        }
        for state in &judged {
            if let Some(in_a_row) = state.failures_in_a_row() {
                let reason = Reason::ConsecutiveFailures(in_a_row);
                states.eject(&self.rule, &mut census, state, reason, now, afterwards);
            }
        }
        for verdict in self.detectors.judge(&tallies) {
            let state = judged[verdict.endpoint];
            states.eject(
                &self.rule,
                &mut census,
                state,
                verdict.reason,
                now,
                afterwards,
            );
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
    fn warns_of_undecided(&self) -> bool {
        !self.has_warned_of_undecided.swap(true, Relaxed)
    }

    fn eject(&self, state: &EndpointState<A>, reason: Reason, now: Instant) {
        self.locked(|states, afterwards| {
            let census = &mut states.census(now);
            states.eject(&self.rule, census, state, reason, now, afterwards);
        });
    }

    fn eject_again(&self, state: &EndpointState<A>, now: Instant) {
        self.locked(|states, afterwards| {
            let census = &mut states.census(now);
            states.eject_again(&self.rule, census, state, now, afterwards);
        });
    }
}

impl<A: Address> States<A> {
    /// Keeps what must be known of an endpoint that leaves, if anything must. **O(log n)**.
    fn remember(&mut self, endpoint: &Endpoint<A>, state: &EndpointState<A>, now: Instant) {
        if let Some(remembered) = state.remember(now) {
            self.departed.insert(endpoint.clone(), (now, remembered));
        }
        if self.departed.len() > self.largest {
            self.departed.remove_oldest();
        }
    }

    /// Returns what is remembered of an endpoint that comes back.
    fn recall(
        &mut self,
        endpoint: &Endpoint<A>,
        now: Instant,
        memory: Duration,
    ) -> Option<Remembered> {
        let (_, _, (left_at, remembered)) = self.departed.remove(endpoint)?;
        (now.saturating_duration_since(left_at) < memory).then_some(remembered)
    }

    /// Forgets the endpoints that have left too long ago.
    fn forget(&mut self, now: Instant, memory: Duration) {
        let is_over = |&(_, _, &(left_at, _)): &(u64, &Endpoint<A>, &(Instant, Remembered))| {
            now.saturating_duration_since(left_at) >= memory
        };
        while self.departed.iter().next().as_ref().is_some_and(is_over) {
            self.departed.remove_oldest();
        }
    }

    fn eject(
        &mut self,
        rule: &EjectionRule,
        census: &mut Census,
        state: &EndpointState<A>,
        reason: Reason,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        if !state.may_be_ejected() || !self.has(state) {
            return;
        }
        match census.objection(rule, state, now) {
            Some(objection) => {
                let endpoint = state.endpoint.clone();
                afterwards.add(move || debug!(%endpoint, %reason, objection, "not ejected"));
            }
            None => self.eject_now(census, state, reason, now, afterwards),
        }
    }

    fn eject_again(
        &mut self,
        rule: &EjectionRule,
        census: &mut Census,
        state: &EndpointState<A>,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        let objection = census.objection(rule, state, now);
        match objection.or_else(|| (!self.has(state)).then_some("its service was replaced")) {
            Some(objection) => {
                let endpoint = state.endpoint.clone();
                afterwards
                    .add(move || warn!(%endpoint, objection, "readmitted though a probe failed"));
                census.leave(state, now);
                state.close(afterwards);
                census.enter(state, now);
            }
            None => self.eject_now(census, state, Reason::Probe, now, afterwards),
        }
    }

    fn eject_now(
        &mut self,
        census: &mut Census,
        state: &EndpointState<A>,
        reason: Reason,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        let jitter = |most| random_part(most, &mut self.rng);
        census.leave(state, now);
        let until = state.eject(&reason, jitter, now, afterwards);
        census.enter(state, now);
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

    /// Counts the endpoints as they are now. **O(n)**.
    fn census(&self, now: Instant) -> Census {
        let mut census = Census::default();
        for (_, _, state) in self.map.iter() {
            census.enter(state, now);
        }
        census
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
