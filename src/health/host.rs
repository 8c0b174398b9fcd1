use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
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
    seat::{Lease, Ticket},
};
use crate::{
    endpoint::{Address, Endpoint},
    metric,
};

/// What `poll_ready` has come to while the endpoint is on trial.
pub(super) enum Trial<A: Address> {
    /// The next call is to decide.
    Probe(Probe<A>),
    /// The endpoint is ejected, or all probes are under way: another look is worth while after this.
    Wait(Pin<Box<OwnedNotified>>),
}

/// One endpoint as outlier detection knows it: what it has shown, and whether requests go through.
pub(super) struct Host<A: Address> {
    lease: Lease,
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

/// Permission for the next request to go through as a probe; dropped unsent, it is given back.
pub(super) struct Probe<A: Address> {
    /// `None` once it is sent.
    host: Option<Arc<Host<A>>>,
    round: u64,
}

impl<A: Address> Host<A> {
    pub(super) fn new(
        endpoint: Endpoint<A>,
        settings: HostSettings,
        fleet: Weak<Fleet<A>>,
    ) -> Arc<Self> {
        let host = Arc::new(Self {
            lease: Lease::new(&settings),
            settings,
            endpoint,
            door: Mutex::new(Breaker::new()),
            changed: Arc::default(),
            fleet,
        });
        host.lease.set_owner(&host);
        host
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.lease.ticket()
    }

    /// Returns a number that no other host has; later ones have higher ones.
    pub(super) fn number(&self) -> u64 {
        self.lease.number()
    }

    /// Returns whether requests go through as they come.
    pub(super) fn is_closed(&self) -> bool {
        self.lease.seat().is_closed()
    }

    pub(super) fn is_candidate(&self) -> bool {
        self.endpoint.weight() > 0
    }

    /// Takes the failure of a request that was no probe, or of the service to become ready.
    #[cold]
    #[inline(never)]
    pub(super) fn fail(&self) {
        if !self.is_closed() {
            return;
        }
        let in_a_row = self.lease.seat().fail();
        // Once: while it is refused, the end of the interval asks again. (The limit is 0 where they are not counted.)
        if in_a_row == self.settings.consecutive_failures {
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
        self.lease.seat().take_tally()
    }

    /// Returns how many failures there have been in a row, if they are too many.
    pub(super) fn failures_in_a_row(&self) -> Option<u32> {
        let limit = self.settings.consecutive_failures;
        let in_a_row = self.lease.seat().failures_in_a_row();
        (limit > 0 && in_a_row >= limit).then_some(in_a_row)
    }

    /// Admits a request while the endpoint is or was ejected; `None`: nothing stands in its way.
    #[cold]
    pub(super) fn admit(self: &Arc<Self>) -> Option<Trial<A>> {
        // Before the look, so that no change after it is missed.
        let changed = self.changed.clone().notified_owned();
        let standing = match self.endpoint.is_ejected() {
            false => Standing::Readmitted,
            true if self.endpoint.is_kept_out() => Standing::Ejected,
            true => Standing::Revived,
        };
        let rule = &self.settings.rule;
        match self.door().admit(rule, standing, Instant::now()) {
            Admission::Through => None,
            Admission::Probe(round) => Some(Trial::Probe(Probe {
                host: Some(self.clone()),
                round,
            })),
            Admission::Wait => Some(Trial::Wait(Box::pin(changed))),
        }
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

    /// Takes note that the head of a probe's answer has come, which leaves it to the rest.
    pub(super) fn answer_probe(&self, round: u64) {
        self.door().answer_probe(round);
    }

    /// Takes the outcome of a probe that was sent; `None`: undecided.
    pub(super) fn end_sent_probe(&self, round: u64, success: Option<bool>) {
        self.end_probe((round, true), success);
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
        self.lease.seat().set_closed(door.is_closed());
        drop(door);
        self.changed.notify_waiters();
    }

    fn door(&self) -> MutexGuard<'_, Breaker> {
        // Nothing under this lock panics halfway through a change.
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Probe<A> {
    /// Returns the round of probes that the request belongs to.
    pub(super) fn send(mut self) -> u64 {
        if let Some(host) = self.host.take() {
            host.door().send_probe(self.round, Instant::now());
        }
        self.round
    }
}

impl<A: Address> Drop for Probe<A> {
    fn drop(&mut self) {
        if let Some(host) = self.host.take() {
            host.end_probe((self.round, false), None);
        }
    }
}

/// Lets those go on who wait for a probe to end: it was the last one's.
impl<A: Address> Drop for Host<A> {
    fn drop(&mut self) {
        self.changed.notify_waiters();
    }
}

impl<A: Address> fmt::Debug for Host<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("endpoint", &self.endpoint)
            .field("counts", self.lease.seat())
            .finish_non_exhaustive()
    }
}
