use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};
use tracing::info;

use super::{
    detectors::{Reason, Tally},
    ejection::{Admission, Breaker, Rule, Standing, Verdict},
    fleet::Fleet,
};
use crate::{
    endpoint::{Address, Endpoint},
    metric,
};

/// What services and requests hold of their endpoint: one pointer, to what all share or to a trial of their own.
#[allow(clippy::large_enum_variant)] // of the large one there is one for each endpoint; the small one is rare
pub(super) enum Ticket<A: Address> {
    Free(Host<A>),
    OnTrial {
        /// The one that all share.
        free: Arc<Self>,
        trial: Trial<A>,
    },
}

/// What `poll_ready` has come to while the endpoint is on trial.
pub(super) enum Trial<A: Address> {
    /// The next call is to decide.
    Probe(Probe<A>),
    /// The endpoint is ejected, or all probes are under way: another look is worth while after this.
    Wait(Pin<Box<OwnedNotified>>),
}

/// One endpoint as outlier detection knows it: what it has shown, and whether requests go through.
pub(super) struct Host<A: Address> {
    counts: Counts,
    /// A copy of what `door` says, for the healthy request to read.
    is_closed: AtomicBool,
    settings: HostSettings,
    pub(super) endpoint: Endpoint<A>,
    door: Mutex<Breaker>,
    /// Wakes those that were told to wait for a probe to end.
    changed: Arc<Notify>,
    fleet: Weak<Fleet<A>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct HostSettings {
    pub(super) rule: Rule,
    /// 0: failures in a row are not counted.
    pub(super) consecutive_failures: u32,
    pub(super) need_tallies: bool,
    /// Whether the start of requests is to be known, of some at least.
    pub(super) need_start: bool,
    /// In ns; 0: cancelled calls are ignored.
    pub(super) cancelled_after: u64,
}

/// What every request writes.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counts {
    /// In this interval: successes in the lower half, failures in the upper one.
    tally: AtomicU64,
    timed: AtomicU64,
    time_nanos: AtomicU64,
    /// Failures since the last success.
    in_a_row: AtomicU32,
}

/// A request's permission to go through as a probe; dropped without an outcome, it is given back.
pub(super) struct Probe<A: Address> {
    /// `None` once it has ended.
    free: Option<Arc<Ticket<A>>>,
    round: u64,
    is_sent: bool,
}

impl<A: Address> Ticket<A> {
    #[inline]
    pub(super) fn host(&self) -> &Host<A> {
        match self {
            Self::Free(host) => host,
            Self::OnTrial { free, .. } => free.host(),
        }
    }

    /// Returns whether requests go through as they come.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Free(host) if host.is_closed())
    }

    /// Returns when a request starts, see [`Host::start`].
    #[inline]
    pub(super) fn start(&self) -> u64 {
        self.host().start()
    }

    /// Returns the ticket that all share: `this` one, unless it is that of a trial.
    #[inline]
    pub(super) fn free(this: &Arc<Self>) -> Arc<Self> {
        match &**this {
            Self::Free(_) => this.clone(),
            Self::OnTrial { free, .. } => free.clone(),
        }
    }

    /// Takes the ticket of the next request out of `this`, which it leaves with the one that all share.
    #[inline]
    pub(super) fn take(this: &mut Arc<Self>) -> Arc<Self> {
        match &**this {
            Self::Free(_) => this.clone(),
            Self::OnTrial { .. } => Self::take_trial(this),
        }
    }

    #[cold]
    #[inline(never)]
    fn take_trial(this: &mut Arc<Self>) -> Arc<Self> {
        if let Some(Self::OnTrial {
            trial: Trial::Probe(probe),
            ..
        }) = Arc::get_mut(this)
        {
            probe.send();
        }
        let free = Self::free(this);
        std::mem::replace(this, free)
    }

    /// Takes note that the head of an answer has come, and that the rest is to decide.
    #[cold]
    #[inline(never)]
    pub(super) fn answer(&self) {
        if let Self::OnTrial {
            trial: Trial::Probe(probe),
            ..
        } = self
        {
            probe.answer();
        }
    }

    /// Takes the outcome of a request, unless it is a success that was no probe's.
    #[cold]
    #[inline(never)]
    pub(super) fn end(this: Arc<Self>, success: Option<bool>) {
        if let Self::Free(host) = &*this {
            if success == Some(false) {
                host.fail();
            }
            return;
        }
        // A trial's ticket is nobody else's.
        if let Some(Self::OnTrial {
            trial: Trial::Probe(probe),
            ..
        }) = Arc::into_inner(this)
        {
            probe.end(success);
        }
    }

    /// Admits a request while the endpoint is or was ejected; `None`: nothing stands in its way.
    #[cold]
    pub(super) fn admit(free: &Arc<Self>) -> Option<Trial<A>> {
        let host = free.host();
        // Before the look, so that no change after it is missed.
        let changed = host.changed.clone().notified_owned();
        let standing = match host.endpoint.is_ejected() {
            false => Standing::Readmitted,
            true if host.endpoint.is_kept_out() => Standing::Ejected,
            true => Standing::Revived,
        };
        let rule = &host.settings.rule;
        match host.door().admit(rule, standing, Instant::now()) {
            Admission::Through => None,
            Admission::Probe(round) => Some(Trial::Probe(Probe {
                free: Some(free.clone()),
                round,
                is_sent: false,
            })),
            Admission::Wait => Some(Trial::Wait(Box::pin(changed))),
        }
    }
}

impl<A: Address> Host<A> {
    pub(super) fn new(
        endpoint: Endpoint<A>,
        settings: HostSettings,
        fleet: Weak<Fleet<A>>,
    ) -> Self {
        Self {
            counts: Counts::default(),
            is_closed: AtomicBool::new(true),
            settings,
            endpoint,
            door: Mutex::new(Breaker::new()),
            changed: Arc::default(),
            fleet,
        }
    }

    /// Returns whether requests go through as they come.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        // Relaxed: who sees it late sends one request more, or asks the door in vain.
        self.is_closed.load(Relaxed)
    }

    pub(super) fn is_candidate(&self) -> bool {
        self.endpoint.weight() > 0
    }

    /// Returns the time at which a request starts, in ns, if it is to be known at its end; else 0.
    #[inline]
    pub(super) fn start(&self) -> u64 {
        if self.settings.need_start {
            self.start_if_timed()
        } else {
            0
        }
    }

    #[inline(never)]
    fn start_if_timed(&self) -> u64 {
        let is_needed = self.settings.cancelled_after > 0 || self.is_timed();
        if is_needed { metric::now() } else { 0 }
    }

    /// Returns whether the next request is one of those that are timed: the first ones, and one in 16.
    fn is_timed(&self) -> bool {
        let successes = self.counts.tally.load(Relaxed) & SUCCESSES;
        successes < 64 || successes % 16 == 0
    }

    /// Takes the success of a request that was no probe, and that started at `started`.
    #[inline]
    pub(super) fn succeed(&self, started: u64) {
        if self.counts.in_a_row.load(Relaxed) != 0 {
            self.counts.in_a_row.store(0, Relaxed);
        }
        if self.settings.need_tallies {
            self.counts.tally.fetch_add(1, Relaxed);
        }
        if started != 0 {
            self.time(started);
        }
    }

    /// Takes how long a request has waited for its answer.
    #[inline(never)]
    pub(super) fn time(&self, started: u64) {
        let took = metric::now().saturating_sub(started);
        self.counts.timed.fetch_add(1, Relaxed);
        self.counts.time_nanos.fetch_add(took, Relaxed);
    }

    /// Takes the failure of a request that was no probe, or of the service to become ready.
    #[cold]
    #[inline(never)]
    pub(super) fn fail(&self) {
        if !self.is_closed() {
            return;
        }
        if self.settings.need_tallies {
            self.counts.tally.fetch_add(1 << 32, Relaxed);
        }
        let limit = self.settings.consecutive_failures;
        if limit == 0 {
            return;
        }
        let in_a_row = self.counts.in_a_row.fetch_add(1, Relaxed).saturating_add(1);
        // Once: while it is refused, the end of the interval asks again.
        if in_a_row == limit {
            if let Some(fleet) = self.fleet.upgrade() {
                fleet.eject(self, Reason::ConsecutiveFailures(in_a_row), Instant::now());
            }
        }
    }

    /// Returns whether a request that its caller has given up was so long under way that it counts as failed.
    pub(super) fn is_too_long(&self, started: u64) -> bool {
        let limit = self.settings.cancelled_after;
        limit > 0 && started > 0 && metric::now().saturating_sub(started) >= limit
    }

    /// Returns what was counted, and starts to count anew.
    pub(super) fn take_tally(&self) -> Tally {
        let tally = self.counts.tally.swap(0, Relaxed);
        Tally {
            successes: tally & SUCCESSES,
            failures: tally >> 32,
            timed: self.counts.timed.swap(0, Relaxed),
            time: Duration::from_nanos(self.counts.time_nanos.swap(0, Relaxed)),
        }
    }

    /// Returns how many failures there have been in a row, if they are too many.
    pub(super) fn failures_in_a_row(&self) -> Option<u32> {
        let limit = self.settings.consecutive_failures;
        let in_a_row = self.counts.in_a_row.load(Relaxed);
        (limit > 0 && in_a_row >= limit).then_some(in_a_row)
    }

    /// Ends an interval; says whether a probe has failed by never being answered.
    pub(super) fn end_interval(&self, now: Instant) -> bool {
        if !self.is_closed() {
            // Its time may be over, which nobody else says to those who wait elsewhere than in a balancer of ours.
            self.changed.notify_waiters();
        }
        let mut door = self.door();
        let verdict = door.end_interval(&self.settings.rule, now);
        if verdict == Verdict::Closed {
            self.readmit(door);
        }
        verdict == Verdict::Failed
    }

    pub(super) fn may_be_ejected(&self) -> bool {
        self.door().may_be_ejected()
    }

    /// Returns whether the endpoint is kept from requests.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.door().is_out(now)
    }

    /// Ejects the endpoint; returns until when.
    pub(super) fn eject(&self, reason: Reason, jitter: Duration, now: Instant) -> Instant {
        let mut door = self.door();
        let until = door.eject(&self.settings.rule, jitter, now);
        self.endpoint.eject_because(until, reason.to_string());
        self.tell(door);
        until
    }

    /// Lets all requests through again.
    pub(super) fn close(&self) {
        let mut door = self.door();
        door.close();
        self.endpoint.readmit();
        self.tell(door);
    }

    fn end_probe(&self, probe: (u64, bool), success: Option<bool>) {
        let mut door = self.door();
        let verdict = door.end_probe(&self.settings.rule, probe, success);
        if verdict == Verdict::Closed {
            return self.readmit(door);
        }
        self.tell(door);
        if verdict == Verdict::Failed {
            match self.fleet.upgrade() {
                Some(fleet) => fleet.eject_again(self, Instant::now()),
                None => self.close(),
            }
        }
    }

    fn readmit(&self, door: MutexGuard<'_, Breaker>) {
        self.endpoint.readmit();
        info!(endpoint = %self.endpoint, "probes succeeded: readmitted");
        self.tell(door);
    }

    /// Tells what the door says to those who read it and those who wait.
    fn tell(&self, door: MutexGuard<'_, Breaker>) {
        self.counts.in_a_row.store(0, Relaxed);
        self.is_closed.store(door.is_closed(), Relaxed);
        drop(door);
        self.changed.notify_waiters();
    }

    fn door(&self) -> MutexGuard<'_, Breaker> {
        // Nothing under this lock panics halfway through a change.
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Probe<A> {
    fn send(&mut self) {
        self.is_sent = true;
        if let Some(free) = &self.free {
            free.host().door().send_probe(self.round, Instant::now());
        }
    }

    /// Takes note that the head of the answer has come, which leaves it to the rest.
    fn answer(&self) {
        if let Some(free) = &self.free {
            free.host().door().answer_probe(self.round);
        }
    }

    /// Takes the probe's outcome; `None`: undecided.
    pub(super) fn end(mut self, success: Option<bool>) {
        if let Some(free) = self.free.take() {
            free.host().end_probe((self.round, self.is_sent), success);
        }
    }
}

impl<A: Address> Drop for Probe<A> {
    fn drop(&mut self) {
        if let Some(free) = self.free.take() {
            free.host().end_probe((self.round, self.is_sent), None);
        }
    }
}

impl<A: Address> fmt::Debug for Host<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("endpoint", &self.endpoint)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

/// The lower half of a tally.
const SUCCESSES: u64 = u32::MAX as u64;
