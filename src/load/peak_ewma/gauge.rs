use super::{
    ages::Ages,
    level::{EwmaSettings, Level},
    standing::Standing,
};
use crate::{
    atomic::{Acquire, AtomicU64, Relaxed, Release},
    recycle::Recycled,
};

/// The measurements that the clones of one service share with its requests.
///
/// Gauges are [recycled](crate::recycle): once the services of a gauge are dropped and its requests
/// have ended, another service takes it. [`Ages`] already counts the requests, so a request need
/// not count a reference as well.
///
/// Laid out by who writes: every request writes the first cache line, and the second one changes
/// seldom. A thread whose request reads the settings, or that compares levels, then does not wait
/// for the requests of other threads.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Gauge {
    /// The number of leases.
    services: AtomicU64,
    pub(super) ages: Ages,
    _pad: [u64; 3],
    pub(super) level: Level,
    pub(super) standing: Standing,
    decay: AtomicU64,
    penalty: AtomicU64,
    default: AtomicU64,
}

/// A service's reference to its gauge. The service's clones hold clones of the lease.
#[derive(Debug)]
pub(super) struct GaugeLease(&'static Gauge);

impl Gauge {
    pub(super) fn new(settings: EwmaSettings, now: u64) -> Self {
        Self {
            services: AtomicU64::new(1),
            ages: Ages::default(),
            _pad: [0; 3],
            level: Level::new(now),
            standing: Standing::new(),
            decay: AtomicU64::new(settings.decay),
            penalty: AtomicU64::new(settings.penalty),
            default: AtomicU64::new(settings.default),
        }
    }

    #[inline]
    pub(super) fn settings(&self) -> EwmaSettings {
        EwmaSettings {
            decay: self.decay.load(Relaxed),
            penalty: self.penalty.load(Relaxed),
            default: self.default.load(Relaxed),
        }
    }

    #[inline]
    pub(super) fn add_service(&self) {
        // Relaxed: the caller already holds a lease, so the count cannot reach 0 meanwhile.
        self.services.fetch_add(1, Relaxed);
    }

    /// Returns whether the removed service was the last one.
    #[inline]
    pub(super) fn remove_service(&self) -> bool {
        // Every Release pairs with the Acquire of the last service to go, which therefore sees
        // everything that the others did. loom: `loom_a_gauge_changes_hands_when_all_is_over`
        self.services.fetch_sub(1, Release) == 1 && self.services.load(Acquire) == 0
    }

    /// Takes the gauge for another service, unless earlier requests are still in flight.
    ///
    /// Only for a caller that has the gauge to itself, after the gauge's last service has gone.
    pub(super) fn take(&self, settings: EwmaSettings, now: u64) -> bool {
        let is_over = self.ages.are_over();
        if is_over {
            self.level.reset(now);
            self.standing.reset();
            self.decay.store(settings.decay, Relaxed);
            self.penalty.store(settings.penalty, Relaxed);
            self.default.store(settings.default, Relaxed);
            self.services.store(1, Relaxed);
        }
        is_over
    }
}

impl GaugeLease {
    pub(super) fn new(settings: EwmaSettings, now: u64) -> Self {
        Self(GAUGES.take(
            |gauge| gauge.take(settings, now),
            || Gauge::new(settings, now),
        ))
    }

    #[inline]
    pub(super) const fn gauge(&self) -> &'static Gauge {
        self.0
    }
}

impl Clone for GaugeLease {
    #[inline]
    fn clone(&self) -> Self {
        self.0.add_service();
        Self(self.0)
    }
}

impl Drop for GaugeLease {
    #[inline]
    fn drop(&mut self) {
        if self.0.remove_service() {
            GAUGES.give_back(self.0);
        }
    }
}

/// The gauges whose services are all dropped.
static GAUGES: Recycled<Gauge> = Recycled::new();

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lease() -> GaugeLease {
        let second = Duration::from_secs(1);
        GaugeLease::new(EwmaSettings::new(second, second, second), 0)
    }

    #[test]
    fn what_changes_seldom_has_a_line_of_its_own() {
        assert_eq!(std::mem::offset_of!(Gauge, level), 64);
        assert_eq!(size_of::<Gauge>(), 128);
    }

    #[test]
    fn gauges_are_taken_again() {
        let mut gauges = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let lease = lease();
            let gauge = lease.clone().gauge();
            gauges.insert(std::ptr::from_ref(gauge));
        }
        // Other tests take some gauges at the same time.
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
