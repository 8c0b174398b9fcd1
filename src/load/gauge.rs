use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    ages::Ages,
    ewma::{Level, Settings},
};
use crate::atomic::{Acquire, AtomicU64, Relaxed, Release};

/// What the clones of one service and its requests share.
///
/// Gauges are never freed: once a gauge's services have gone and its requests are over, another service takes
/// it. So a request, which [`Ages`] counts already, need not count a reference beside.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Gauge {
    /// The leases.
    services: AtomicU64,
    pub(super) ages: Ages,
    pub(super) level: Level,
    decay: AtomicU64,
    penalty: AtomicU64,
}

/// A service's hold on its gauge; its clones hold the same.
#[derive(Debug)]
pub(super) struct Lease(&'static Gauge);

impl Gauge {
    pub(super) fn new(settings: Settings, default_rtt: Duration, now: u64) -> Self {
        Self {
            services: AtomicU64::new(1),
            ages: Ages::default(),
            level: Level::new(default_rtt, now),
            decay: AtomicU64::new(settings.decay),
            penalty: AtomicU64::new(settings.penalty),
        }
    }

    #[inline]
    pub(super) fn settings(&self) -> Settings {
        Settings {
            decay: self.decay.load(Relaxed),
            penalty: self.penalty.load(Relaxed),
        }
    }

    #[inline]
    pub(super) fn add_service(&self) {
        // Relaxed: who adds one has one.
        self.services.fetch_add(1, Relaxed);
    }

    /// Returns whether that was the last one.
    #[inline]
    pub(super) fn remove_service(&self) -> bool {
        // Release and Acquire: the last one sees what all the others did.
        // loom: `loom_a_gauge_changes_hands_when_all_is_over`
        self.services.fetch_sub(1, Release) == 1 && self.services.load(Acquire) == 0
    }

    /// Takes the gauge for another service, unless requests of the one before are still in flight.
    ///
    /// Only for who alone has it, as its last service has gone.
    pub(super) fn take(&self, settings: Settings, default_rtt: Duration, now: u64) -> bool {
        let is_over = self.ages.are_over();
        if is_over {
            self.level.reset(default_rtt, now);
            self.decay.store(settings.decay, Relaxed);
            self.penalty.store(settings.penalty, Relaxed);
            self.services.store(1, Relaxed);
        }
        is_over
    }
}

impl Lease {
    pub(super) fn new(settings: Settings, default_rtt: Duration, now: u64) -> Self {
        for _ in 0..TRIES {
            let Some(gauge) = left().pop_front() else {
                break;
            };
            if gauge.take(settings, default_rtt, now) {
                return Self(gauge);
            }
            left().push_back(gauge);
        }
        Self(Box::leak(Box::new(Gauge::new(settings, default_rtt, now))))
    }

    #[inline]
    pub(super) const fn gauge(&self) -> &'static Gauge {
        self.0
    }
}

impl Clone for Lease {
    #[inline]
    fn clone(&self) -> Self {
        self.0.add_service();
        Self(self.0)
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if self.0.remove_service() {
            leave(self.0);
        }
    }
}

#[cold]
fn leave(gauge: &'static Gauge) {
    left().push_back(gauge);
}

/// The gauges whose services have gone.
static LEFT: Mutex<VecDeque<&'static Gauge>> = Mutex::new(VecDeque::new());

fn left() -> MutexGuard<'static, VecDeque<&'static Gauge>> {
    // Nothing under this lock panics.
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As many gauges are looked at for one whose requests are over, before a new one is made.
const TRIES: usize = 4;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let second = Duration::from_secs(1);
        Lease::new(Settings::new(second, second), second, 0)
    }

    #[test]
    fn gauges_are_taken_again() {
        let mut gauges = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let lease = lease();
            let gauge = lease.clone().gauge();
            gauges.insert(std::ptr::from_ref(gauge));
        }
        // Other tests take some meanwhile.
        assert!(gauges.len() < 1000, "{}", gauges.len());
    }

    #[test]
    fn a_gauge_with_a_request_in_flight_is_not_taken() {
        let gone = lease();
        let gauge = gone.gauge();
        let request = gauge.ages.enter(0, || 0).unwrap();
        drop(gone);
        let leases: Vec<_> = (0..100).map(|_| lease()).collect();
        assert!(!leases.iter().any(|l| std::ptr::eq(l.gauge(), gauge)));
        gauge.ages.leave(request);
    }
}
