use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    detectors::{Detectors, Reason},
    ejection::Rule,
    host::{Host, HostSettings},
    seat::Ticket,
};
use crate::{
    chance::random_part,
    endpoint::{Address, Endpoint, Status},
};

/// All endpoints that outlier detection watches, judged together.
pub(super) struct Fleet<A: Address> {
    rule: Rule,
    detectors: Detectors,
    settings: HostSettings,
    hosts: Mutex<Hosts<A>>,
}

struct Hosts<A: Address> {
    /// By number: in the order of joining.
    list: BTreeMap<u64, Arc<Host<A>>>,
    numbers: HashMap<Endpoint<A>, u64>,
    rng: SmallRng,
}

impl<A: Address> Fleet<A> {
    pub(super) fn new(detectors: Detectors, settings: HostSettings, rng: SmallRng) -> Self {
        Self {
            rule: settings.rule,
            detectors,
            settings,
            hosts: Mutex::new(Hosts {
                list: BTreeMap::new(),
                numbers: HashMap::new(),
                rng,
            }),
        }
    }

    /// Adds an endpoint, in place of the one of that address that there may have been.
    pub(super) fn insert(self: &Arc<Self>, endpoint: &Endpoint<A>) -> Ticket {
        let fleet = Arc::downgrade(self);
        // Whatever was said of a service that this one replaces.
        endpoint.readmit();
        let mut hosts = self.hosts();
        let host = Host::new(endpoint.clone(), self.settings, fleet);
        let (ticket, number) = (host.ticket(), host.number());
        let previous = hosts.numbers.insert(endpoint.clone(), number);
        let replaced = previous.and_then(|previous| hosts.list.remove(&previous));
        hosts.list.insert(number, host);
        // Those who wait at the one replaced are woken without the lock.
        drop(hosts);
        drop(replaced);
        ticket
    }

    pub(super) fn remove(&self, endpoint: &Endpoint<A>) {
        let mut hosts = self.hosts();
        let number = hosts.numbers.remove(endpoint);
        let removed = number.and_then(|number| hosts.list.remove(&number));
        drop(hosts);
        drop(removed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.hosts().list.is_empty()
    }

    /// Ejects an endpoint, if the rules let it.
    pub(super) fn eject(&self, host: &Host<A>, reason: Reason, now: Instant) {
        self.hosts().eject(&self.rule, host, reason, now);
    }

    /// Ejects an endpoint whose probe has failed: it counts as ejected already.
    pub(super) fn eject_again(&self, host: &Host<A>, now: Instant) {
        self.hosts().eject_again(&self.rule, host, now);
    }

    /// Ends an interval: judges by what was counted in it. **O(n log n)**.
    pub(super) fn sweep(&self, now: Instant) {
        let mut hosts = self.hosts();
        let all: Vec<_> = hosts.list.values().cloned().collect();
        let mut judged = Vec::with_capacity(all.len());
        let mut tallies = Vec::with_capacity(all.len());
        for host in &all {
            if host.end_interval(now) {
                hosts.eject_again(&self.rule, host, now);
            }
            let tally = host.take_tally();
            if host.is_closed() && host.is_candidate() {
                judged.push(host);
                tallies.push(tally);
            }
        }
        for host in &judged {
            if let Some(in_a_row) = host.failures_in_a_row() {
                let reason = Reason::ConsecutiveFailures(in_a_row);
                hosts.eject(&self.rule, host, reason, now);
            }
        }
        for outlier in self.detectors.judge(&tallies) {
            hosts.eject(&self.rule, judged[outlier.host], outlier.reason, now);
        }
    }

    fn hosts(&self) -> MutexGuard<'_, Hosts<A>> {
        // Nothing under this lock panics halfway through a change.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Hosts<A> {
    fn eject(&mut self, rule: &Rule, host: &Host<A>, reason: Reason, now: Instant) {
        if !host.may_be_ejected() || !self.has(host) {
            return;
        }
        match self.objection(rule, host, now) {
            Some(objection) => debug!(endpoint = %host.endpoint, %reason, objection, "not ejected"),
            None => self.eject_now(rule, host, reason, now),
        }
    }

    fn eject_again(&mut self, rule: &Rule, host: &Host<A>, now: Instant) {
        let objection = self.objection(rule, host, now);
        match objection.or_else(|| (!self.has(host)).then_some("its service was replaced")) {
            Some(objection) => {
                warn!(endpoint = %host.endpoint, objection, "readmitted though a probe failed");
                host.close();
            }
            None => self.eject_now(rule, host, Reason::Probe, now),
        }
    }

    fn eject_now(&mut self, rule: &Rule, host: &Host<A>, reason: Reason, now: Instant) {
        let until = host.eject(reason, self.jitter(rule), now);
        let seconds = until.saturating_duration_since(now).as_secs_f64();
        warn!(endpoint = %host.endpoint, %reason, seconds, ?until, "ejected");
    }

    /// Returns whether this is the host of its endpoint, not one whose service was replaced.
    fn has(&self, host: &Host<A>) -> bool {
        self.numbers.get(&host.endpoint) == Some(&host.number())
    }

    /// Returns why the rules do not let an endpoint be ejected, if they do not.
    ///
    /// Who is out of its time and has not been asked for since takes nobody's place: it may be unhealthy, too, or nobody's
    /// keys lead there, and then no probe will come.
    fn objection(&self, rule: &Rule, host: &Host<A>, now: Instant) -> Option<&'static str> {
        let others = || {
            let others = self.list.values();
            let others = others.filter(|other| other.endpoint != host.endpoint);
            others.filter(|other| other.is_candidate())
        };
        let ejected = others().filter(|other| other.is_out(now)).count();
        if ejected >= rule.most_ejected(others().count() + 1) {
            return Some("as many others are ejected as may be");
        }
        let is_available = |other: &Arc<Host<A>>| {
            other.is_closed() && other.endpoint.status() == Status::Available
        };
        (!others().any(is_available)).then_some("no other is available")
    }

    fn jitter(&mut self, rule: &Rule) -> Duration {
        random_part(rule.jitter, &mut self.rng)
    }
}

impl<A: Address> fmt::Debug for Fleet<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("settings", &self.settings)
            .field("detectors", &self.detectors)
            .finish_non_exhaustive()
    }
}
