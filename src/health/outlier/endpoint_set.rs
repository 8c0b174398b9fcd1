use std::{
    collections::BTreeSet,
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
    counters::CountersRef,
    detector::{Detectors, Reason},
    endpoint_state::{EndpointState, Judge, Remembered},
    rule::EjectionRule,
    settings::EndpointSettings,
};
#[cfg(all(test, not(tower_lb_loom)))]
use crate::endpoint::Counts;
use crate::{
    afterwards::Afterwards,
    endpoint::{Address, Census, Endpoint, EndpointMap},
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
    map: EndpointMap<A, Watched<A>>,
    /// Counts the endpoints in `map`.
    census: Arc<Census>,
    /// When ejections end, with the endpoints' numbers in `map`.
    ends: BTreeSet<(Instant, u64)>,
    /// The endpoints that have left and may come back, and when they left.
    departed: EndpointMap<A, (Instant, Remembered)>,
    /// The most endpoints that there have been at once.
    largest: usize,
    rng: SmallRng,
}

/// One endpoint of the set.
struct Watched<A: Address> {
    state: Arc<EndpointState<A>>,
    /// Its entry in the list of ends.
    ends: Option<Instant>,
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
                census: Arc::default(),
                ends: BTreeSet::new(),
                departed: EndpointMap::default(),
                largest: 0,
                rng,
            }),
        }
    }

    /// Adds an endpoint; it replaces an earlier one of the same address. **O(log n)**.
    ///
    /// One that has left a short time ago goes on as it was: ejected, or with its failures. So a
    /// registry that flaps does not hide a broken endpoint.
    pub(super) fn insert(self: &Arc<Self>, endpoint: &Endpoint<A>, now: Instant) -> CountersRef {
        let judge: Weak<dyn Judge<A>> = Arc::<Self>::downgrade(self);
        // The service that this one replaces may have been ejected.
        endpoint.readmit();
        let mut afterwards = Afterwards::default();
        let mut states = self.states();
        let replaced = states.take_out(endpoint);
        let remembered = states.recall(endpoint, now, self.memory);
        let state = EndpointState::new(endpoint.clone(), self.settings, judge, remembered);
        state.enter(&states.census, now);
        let counters = state.counters();
        let watched = Watched {
            state: state.clone(),
            ends: None,
        };
        let (id, _) = states.map.insert(endpoint.clone(), watched);
        states.largest = states.largest.max(states.map.len());
        if !state.is_closed() {
            match states.objection(&self.rule, &state, now) {
                None => {
                    let until = state.eject_as_remembered(now, &mut afterwards);
                    states.set_end(id, until);
                }
                // Its next request is a probe.
                Some(_) => state.end_ejection(now),
            }
        }
        // Dropping the last reference wakes the callers that wait for the replaced endpoint. The
        // lock is released before.
        drop(states);
        drop(replaced);
        afterwards.run();
        counters
    }

    pub(super) fn remove(&self, endpoint: &Endpoint<A>, now: Instant) {
        let mut states = self.states();
        let removed = states.take_out(endpoint);
        if let Some(state) = &removed {
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
    /// Each verdict takes the lock for itself: a request that fails meanwhile does not wait until
    /// all endpoints are judged.
    ///
    /// Cost: **O(n log n)** for `n` endpoints.
    pub(super) fn sweep(&self, now: Instant) {
        let mut afterwards = Afterwards::default();
        let mut states = self.states();
        states.forget(now, self.memory);
        let entries = states.map.iter();
        let all: Vec<_> = entries
            .map(|(_, _, watched)| watched.state.clone())
            .collect();
        drop(states);
        self.judge_all(&all, now, &mut afterwards);
        afterwards.run();
    }

    fn judge_all(&self, all: &[Arc<EndpointState<A>>], now: Instant, afterwards: &mut Afterwards) {
        // 1. Probes that have taken too long.
        for state in all {
            if let Some(round) = state.end_interval(now, afterwards) {
                let mut states = self.states();
                states.eject_again(&self.rule, state, round, now, afterwards);
            }
        }
        // 2. The counts of the interval.
        let mut judged = Vec::with_capacity(all.len());
        let mut tallies = Vec::with_capacity(all.len());
        for state in all {
            let tally = state.take_tally();
            if state.is_closed() && state.is_candidate() {
                judged.push(state);
                tallies.push(tally);
            }
        }
        let eject = |state: &EndpointState<A>, reason, afterwards: &mut Afterwards| {
            let mut states = self.states();
            states.eject(&self.rule, state, reason, now, afterwards);
        };
        for state in &judged {
            if let Some(in_a_row) = state.failures_in_a_row() {
                eject(state, Reason::ConsecutiveFailures(in_a_row), afterwards);
            }
        }
        for verdict in self.detectors.judge(&tallies) {
            eject(judged[verdict.endpoint], verdict.reason, afterwards);
        }
    }

    /// Changes the states, and then tells of it.
    fn locked(&self, change: impl FnOnce(&mut States<A>, &mut Afterwards)) {
        let mut afterwards = Afterwards::default();
        change(&mut self.states(), &mut afterwards);
        afterwards.run();
    }

    /// Returns what the census counts, and what a count of all endpoints finds.
    #[cfg(all(test, not(tower_lb_loom)))]
    pub(super) fn kept_and_counted(&self, now: Instant) -> [Counts; 2] {
        let mut states = self.states();
        states.end_ejections(now);
        let mut counted = Counts::default();
        for (_, endpoint, Watched { state, .. }) in states.map.iter() {
            let (weight, status) = (endpoint.weight(), endpoint.status());
            let of = Counts::of(weight, status, state.view(now));
            counted.candidates += of.candidates;
            counted.ejected += of.ejected;
            counted.available += of.available;
        }
        [states.census.read(), counted]
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
            states.eject(&self.rule, state, reason, now, afterwards);
        });
    }

    fn eject_again(&self, state: &EndpointState<A>, round: u64, now: Instant) {
        self.locked(|states, afterwards| {
            states.eject_again(&self.rule, state, round, now, afterwards);
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
            None => self.eject_now(state, reason, now, afterwards),
        }
    }

    fn eject_again(
        &mut self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        round: u64,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        // Another probe of the round may have failed since.
        if !state.is_probed_in(round) {
            return;
        }
        let objection = match self.has(state) {
            true => self.objection(rule, state, now),
            false => Some("its service was replaced"),
        };
        match objection {
            Some(objection) => {
                let endpoint = state.endpoint.clone();
                afterwards
                    .add(move || warn!(%endpoint, objection, "readmitted though a probe failed"));
                state.close(afterwards);
            }
            None => self.eject_now(state, Reason::Probe, now, afterwards),
        }
    }

    fn eject_now(
        &mut self,
        state: &EndpointState<A>,
        reason: Reason,
        now: Instant,
        afterwards: &mut Afterwards,
    ) {
        let jitter = |most| random_part(most, &mut self.rng);
        let until = state.eject(&reason, jitter, now, afterwards);
        if let Some(id) = self.map.id(&state.endpoint) {
            self.set_end(id, Some(until));
        }
        let seconds = until.saturating_duration_since(now).as_secs_f64();
        let endpoint = state.endpoint.clone();
        afterwards.add(move || warn!(%endpoint, %reason, seconds, ?until, "ejected"));
    }

    /// Returns the rule that forbids an ejection, if there is one. **O(1)**, and **O(log n)** for
    /// each ejection that has ended since.
    ///
    /// An endpoint whose ejection has ended but that no request has probed yet does not count
    /// towards the cap. It may be unhealthy as well, or no request's key may lead to it, and then
    /// no probe ever comes.
    fn objection(
        &mut self,
        rule: &EjectionRule,
        state: &EndpointState<A>,
        now: Instant,
    ) -> Option<&'static str> {
        self.end_ejections(now);
        let others = state.others().unwrap_or_default();
        if others.ejected >= rule.most_ejected(others.candidates + 1) {
            return Some("as many others are ejected as may be");
        }
        (others.available == 0).then_some("no other is available")
    }

    /// Tells the census of the ejections that have ended.
    fn end_ejections(&mut self, now: Instant) {
        while self.ends.first().is_some_and(|(end, _)| *end <= now) {
            let id = self.ends.pop_first().map(|(_, id)| id);
            if let Some((_, watched)) = id.and_then(|id| self.map.get_mut(id)) {
                watched.ends = None;
                watched.state.look_again();
            }
        }
    }

    /// Records when an ejection ends. **O(log n)**.
    fn set_end(&mut self, id: u64, end: Option<Instant>) {
        if let Some((_, watched)) = self.map.get_mut(id) {
            if let Some(before) = std::mem::replace(&mut watched.ends, end) {
                self.ends.remove(&(before, id));
            }
            self.ends.extend(end.map(|end| (end, id)));
        }
    }

    /// Takes an endpoint out of everything but the memory. **O(log n)**.
    fn take_out(&mut self, endpoint: &Endpoint<A>) -> Option<Arc<EndpointState<A>>> {
        self.set_end(self.map.id(endpoint)?, None);
        let (_, _, Watched { state, .. }) = self.map.remove(endpoint)?;
        state.leave();
        Some(state)
    }

    /// Returns whether `state` is its endpoint's current state, not that of a replaced service.
    fn has(&self, state: &EndpointState<A>) -> bool {
        let id = self.map.id(&state.endpoint);
        let current = id.and_then(|id| self.map.get(id));
        current.is_some_and(|(_, current)| current.state.number() == state.number())
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
