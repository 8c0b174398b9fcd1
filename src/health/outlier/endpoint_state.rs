use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    breaker::{Admission, Breaker, Ejected, ProbeResult},
    counters::{CountersLease, CountersRef, Counts},
    detector::{Reason, Tally},
    settings::EndpointSettings,
};
use crate::{
    afterwards::Afterwards,
    clock,
    endpoint::{Address, Census, Counts as Others, Endpoint, Notice, Status},
    undecided::NOBODY_DECIDES,
};

/// Tells what `poll_ready` must do while the breaker is not closed.
pub(super) enum Admitted<A: Address> {
    /// The next call is a probe; its outcome decides.
    Probe(Probe<A>),
    /// The endpoint is ejected, or all probes are taken. Try again when this future ends.
    Wait(Pin<Box<OwnedNotified>>),
}

/// The state of one endpoint in outlier detection: its counts and its breaker.
pub(super) struct EndpointState<A: Address> {
    lease: CountersLease,
    settings: EndpointSettings,
    pub(super) endpoint: Endpoint<A>,
    breaker: Mutex<Breaker>,
    /// Wakes the callers that wait for the breaker to change.
    changed: Arc<Notify>,
    judge: Weak<dyn Judge<A>>,
}

/// What is known of an endpoint that has left.
#[derive(Debug)]
pub(super) struct Remembered {
    breaker: Breaker,
    counts: Counts,
}

/// Decides on ejections, which needs a view of all endpoints.
pub(super) trait Judge<A: Address>: Send + Sync {
    /// Ejects an endpoint if the rules allow it.
    fn eject(&self, state: &EndpointState<A>, reason: Reason, now: Instant);

    /// Returns whether the event of undecided answers is due, which it is once.
    fn warns_of_undecided(&self) -> bool;

    /// Ejects an endpoint whose probe of this round has failed, or readmits it if the rules forbid
    /// another ejection. Of several probes of a round that fail at once, the first counts.
    fn eject_again(&self, state: &EndpointState<A>, round: u64, now: Instant);
}

/// Permits the next request to go through as a probe. Dropped unsent, it makes room for another
/// probe.
pub(super) struct Probe<A: Address> {
    /// `None` once the probe is sent.
    state: Option<Arc<EndpointState<A>>>,
    round: u64,
}

impl<A: Address> EndpointState<A> {
    /// Starts with what is remembered of the endpoint, if it has been here before.
    pub(super) fn new(
        endpoint: Endpoint<A>,
        settings: EndpointSettings,
        judge: Weak<dyn Judge<A>>,
        remembered: Option<Remembered>,
    ) -> Arc<Self> {
        let lease = CountersLease::new(&settings);
        let breaker = match remembered {
            None => Breaker::new(),
            Some(remembered) => {
                lease.counters().restore(&remembered.counts);
                remembered.breaker
            }
        };
        lease.counters().copy_closed(breaker.is_closed());
        let state = Arc::new(Self {
            lease,
            settings,
            endpoint,
            breaker: Mutex::new(breaker),
            changed: Arc::default(),
            judge,
        });
        let owner: Weak<dyn Any + Send + Sync> = Arc::<Self>::downgrade(&state);
        state.lease.set_owner(owner);
        state
    }

    pub(super) fn counters(&self) -> CountersRef {
        self.lease.reference()
    }

    /// Returns a number that no other state has; later states have higher ones.
    pub(super) fn number(&self) -> u64 {
        self.lease.number()
    }

    /// Returns whether requests go through without asking the breaker.
    pub(super) fn is_closed(&self) -> bool {
        self.lease.counters().is_closed()
    }

    pub(super) fn is_candidate(&self) -> bool {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        self.endpoint.weight() > 0 && self.endpoint.status() != Status::Unknown
    }

    /// Returns what the next service of the endpoint, which leaves at `now`, must know; `None` if
    /// that is nothing: it is not ejected, has not been for some intervals, and does not fail.
    pub(super) fn remember(&self, now: Instant) -> Option<Remembered> {
        let breaker = self.breaker().kept(now);
        let counts = self.lease.counters().take_counts();
        if breaker.is_none() && counts.tally.failures == 0 && counts.in_a_row == 0 {
            return None;
        }
        let breaker = breaker.unwrap_or_else(Breaker::new);
        Some(Remembered { breaker, counts })
    }

    /// Counts the endpoint among those that are judged together, until [`leave`](Self::leave).
    pub(super) fn enter(&self, census: &Arc<Census>, now: Instant) {
        let breaker = self.breaker();
        self.endpoint
            .enter_census(census, self.number(), breaker.view(now));
    }

    pub(super) fn leave(&self) {
        self.endpoint.leave_census(self.number());
    }

    /// Returns the counts of the other endpoints; `None` if this one does not count any more.
    pub(super) fn others(&self) -> Option<Others> {
        self.endpoint.others(self.number())
    }

    /// Brings the census up to the time: an ejection may have ended.
    pub(super) fn look_again(&self) {
        self.count(&self.breaker());
    }

    #[cfg(all(test, not(tower_lb_loom)))]
    pub(super) fn view(&self, now: Instant) -> crate::endpoint::BreakerView {
        self.breaker().view(now)
    }

    /// Brings the census up to the breaker, whose lock the caller holds.
    // By a time that is read under the lock: a caller's may be before that of a thread that has
    // seen an ejection end.
    fn count(&self, breaker: &Breaker) {
        #[cfg(test)]
        LOOKS.set(LOOKS.get() + 1);
        self.endpoint
            .set_breaker(self.number(), breaker.view(Instant::now()));
    }

    /// Lets the next request through as a probe, if an ejection is remembered.
    pub(super) fn end_ejection(&self, now: Instant) {
        let mut breaker = self.breaker();
        breaker.end_ejection(now);
        self.count(&breaker);
    }

    /// Ejects the endpoint's new handle if the ejection that is remembered still lasts.
    ///
    /// Returns when the ejection ends.
    pub(super) fn eject_as_remembered(
        &self,
        now: Instant,
        afterwards: &mut Afterwards,
    ) -> Option<Instant> {
        let until = self.breaker().until().filter(|&until| until > now)?;
        let notice = self.endpoint.eject_untold(until, REMEMBERED.into());
        afterwards.add(move || notice.tell());
        Some(until)
    }

    /// Counts the failure of a request that was no probe, or of `poll_ready`.
    #[cold]
    #[inline(never)]
    pub(super) fn fail(&self) {
        if !self.is_closed() {
            return;
        }
        let in_a_row = self.lease.counters().fail();
        // Asks only once. If the rules forbid the ejection, the end of the interval asks again. The
        // limit is 0 where this detector is off, and then never reached.
        if in_a_row == self.settings.consecutive_failures {
            if let Some(judge) = self.judge.upgrade() {
                judge.eject(self, Reason::ConsecutiveFailures(in_a_row), Instant::now());
            }
        }
    }

    /// Tells that no answer's outcome is ever decided. Only the first call is an event.
    pub(super) fn warn_undecided(&self) {
        let judge = self.judge.upgrade();
        if judge.is_some_and(|judge| judge.warns_of_undecided()) {
            warn!(endpoint = %self.endpoint, "{NOBODY_DECIDES}");
        }
    }

    /// Returns whether a cancelled request was under way for long enough to count as failed.
    pub(super) fn is_too_long(&self, started: u64) -> bool {
        let limit = self.settings.cancelled_after;
        limit > 0 && started > 0 && clock::now().saturating_sub(started) >= limit
    }

    /// Returns the counts since the last call, and sets them to 0.
    pub(super) fn take_tally(&self) -> Tally {
        self.lease.counters().take_tally()
    }

    /// Returns the number of failures in a row if it is at the limit or above.
    pub(super) fn failures_in_a_row(&self) -> Option<u32> {
        let limit = self.settings.consecutive_failures;
        let in_a_row = self.lease.counters().failures_in_a_row();
        (limit > 0 && in_a_row >= limit).then_some(in_a_row)
    }

    /// Asks the breaker for a request's admission; `None`: it goes through like any other.
    #[cold]
    pub(super) fn admit(self: &Arc<Self>) -> Option<Admitted<A>> {
        // Made before the breaker is asked, so that no change after that is missed.
        let changed = self.changed.clone().notified_owned();
        let ejected = match self.endpoint.is_ejected() {
            false => Ejected::Readmitted,
            true if self.endpoint.is_kept_out() => Ejected::Yes,
            true => Ejected::Revived,
        };
        let now = Instant::now();
        let mut breaker = self.breaker();
        let admission = breaker.admit(&self.settings.rule, ejected, now);
        self.count(&breaker);
        drop(breaker);
        match admission {
            Admission::Through => None,
            Admission::Probe(round) => Some(Admitted::Probe(Probe {
                state: Some(self.clone()),
                round,
            })),
            Admission::Wait => Some(Admitted::Wait(Box::pin(changed))),
        }
    }

    /// Ends an interval; returns the round of a probe that has failed because it never ended.
    pub(super) fn end_interval(&self, now: Instant, afterwards: &mut Afterwards) -> Option<u64> {
        if !self.is_closed() {
            // The ejection may have ended. Our balancer notices that by itself; callers that wait
            // elsewhere are woken only here.
            self.wake(afterwards);
        }
        let mut breaker = self.breaker();
        let verdict = breaker.end_interval(&self.settings.rule, now);
        self.count(&breaker);
        if verdict == ProbeResult::Closed {
            self.readmit(&breaker, afterwards);
        }
        (verdict == ProbeResult::Failed).then(|| breaker.round())
    }

    /// Returns whether the probes of this round still decide.
    pub(super) fn is_probed_in(&self, round: u64) -> bool {
        self.breaker().is_probed_in(round)
    }

    pub(super) fn may_be_ejected(&self) -> bool {
        self.breaker().may_be_ejected(&self.settings.rule)
    }

    /// Ejects the endpoint; returns the end of the ejection.
    pub(super) fn eject(
        &self,
        reason: &Reason,
        jitter: impl FnOnce(Duration) -> Duration,
        now: Instant,
        afterwards: &mut Afterwards,
    ) -> Instant {
        let mut breaker = self.breaker();
        let until = breaker.eject(&self.settings.rule, jitter, now);
        self.count(&breaker);
        let notice = self.endpoint.eject_untold(until, reason.to_string().into());
        self.publish(&breaker, notice, afterwards);
        until
    }

    /// Readmits the endpoint without a probe.
    pub(super) fn close(&self, afterwards: &mut Afterwards) {
        let mut breaker = self.breaker();
        breaker.close();
        self.count(&breaker);
        self.publish(&breaker, self.endpoint.readmit_untold(), afterwards);
    }

    /// Records that the head of a probe's answer has come. The body decides.
    pub(super) fn answer_probe(&self, round: u64) {
        self.breaker().answer_probe(round);
    }

    /// Records the outcome of a probe that was sent; `None`: it decides nothing.
    pub(super) fn end_sent_probe(&self, round: u64, success: Option<bool>) {
        self.end_probe((round, true), success);
    }

    fn end_probe(&self, probe: (u64, bool), success: Option<bool>) {
        let mut afterwards = Afterwards::default();
        let mut breaker = self.breaker();
        let verdict = breaker.end_probe(&self.settings.rule, probe, success);
        let now = Instant::now();
        self.count(&breaker);
        match verdict {
            ProbeResult::Closed => self.readmit(&breaker, &mut afterwards),
            ProbeResult::Failed | ProbeResult::Undecided => {
                self.lease.counters().set_closed(breaker.is_closed());
                self.wake(&mut afterwards);
            }
        }
        drop(breaker);
        if verdict == ProbeResult::Failed {
            match self.judge.upgrade() {
                Some(judge) => judge.eject_again(self, probe.0, now),
                None => self.close(&mut afterwards),
            }
        }
        afterwards.run();
    }

    fn readmit(&self, breaker: &Breaker, afterwards: &mut Afterwards) {
        self.publish(breaker, self.endpoint.readmit_untold(), afterwards);
        let endpoint = self.endpoint.clone();
        afterwards.add(move || info!(%endpoint, "probes succeeded: readmitted"));
    }

    /// Publishes whether the breaker is closed; the endpoint's notice and the callers that wait
    /// come afterwards.
    fn publish(&self, breaker: &Breaker, notice: Notice<A>, afterwards: &mut Afterwards) {
        self.lease.counters().set_closed(breaker.is_closed());
        afterwards.add(move || notice.tell());
        self.wake(afterwards);
    }

    /// Wakes the callers that wait for the breaker to change.
    fn wake(&self, afterwards: &mut Afterwards) {
        let changed = self.changed.clone();
        afterwards.add(move || changed.notify_waiters());
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Nothing under this lock panics halfway through a change.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked at an endpoint.
    pub(super) static LOOKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// The reason of an ejection that began before the endpoint left.
const REMEMBERED: &str = "it was ejected when it left";

impl CountersRef {
    /// Returns the state of the endpoint that these counters belong to, unless it has left.
    pub(super) fn state<A: Address>(self) -> Option<Arc<EndpointState<A>>> {
        let owner = self.counters().owner().upgrade()?;
        let state = owner.downcast::<EndpointState<A>>().ok()?;
        // Another endpoint may use the counters by now.
        (state.number() == self.number()).then_some(state)
    }
}

impl<A: Address> Probe<A> {
    /// Marks the probe as sent; returns its round.
    pub(super) fn send(mut self) -> u64 {
        if let Some(state) = self.state.take() {
            state.breaker().send_probe(self.round, Instant::now());
        }
        self.round
    }
}

impl<A: Address> Drop for Probe<A> {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            state.end_probe((self.round, false), None);
        }
    }
}

/// Wakes the callers that wait for a probe to end. No probe can end any more.
impl<A: Address> Drop for EndpointState<A> {
    fn drop(&mut self) {
        self.leave();
        self.changed.notify_waiters();
    }
}

impl<A: Address> fmt::Debug for EndpointState<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointState")
            .field("endpoint", &self.endpoint)
            .field("counts", self.lease.counters())
            .finish_non_exhaustive()
    }
}
