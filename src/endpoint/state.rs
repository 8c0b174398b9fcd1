use std::sync::{Arc, Weak};

use tokio::{sync::Notify, time::Instant};

use super::{Asking, Ejection, Status, census::Entries};

/// What may change of an endpoint, behind its lock.
pub(super) struct State<A> {
    pub(super) weight: u32,
    pub(super) zone: Option<Arc<str>>,
    pub(super) priority: u16,
    pub(super) hash_key: Option<Arc<str>>,
    // Boxed, because few endpoints are ejected.
    pub(super) out: Option<Box<Out>>,
    /// Set by health checks and [`Endpoint::mark_unhealthy`].
    pub(super) unhealthy: bool,
    /// Set until the first health check has ended, where that is waited for.
    pub(super) unknown: bool,
    /// Set while heartbeats are missing.
    pub(super) silent: bool,
    /// The weight computed from the endpoint's own reports.
    pub(super) reported: Option<f64>,
    /// Whether the balancer picks it although it is not available, because too few others are.
    pub(super) revived: bool,
    /// When the status last changed.
    pub(super) since: Instant,
    /// Whom the endpoint asks for another service.
    pub(super) source: Weak<Asking<A>>,
    /// Whether the service is not the first one.
    pub(super) is_made_again: bool,
    /// The driver to notify of a change.
    pub(super) driver: Weak<Notify>,
    /// Where outlier detection counts the endpoint.
    pub(super) census: Entries,
}

/// Why and until when an endpoint gets no requests.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// Set by outlier detection and [`Endpoint::eject`].
    pub(super) ejected: Option<Ejection>,
    /// Whether outlier detection has set it, so that a check may end it.
    pub(super) by_outliers: bool,
    /// Until when the server has asked to get no request.
    pub(super) rests: Option<Instant>,
}

impl<A> State<A> {
    /// Returns the ejection that lasts longer: that of outlier detection, or the one that the
    /// server has asked for.
    pub(super) fn ejection(&self) -> Option<Ejection> {
        let out = self.out.as_ref()?;
        let rest = out.rests.map(|until| Ejection {
            until,
            reason: ASKED.into(),
        });
        match (&out.ejected, rest) {
            (Some(ejected), Some(rest)) if ejected.until < rest.until => Some(rest),
            (ejected, rest) => ejected.clone().or(rest),
        }
    }

    pub(super) fn ejected(&self) -> Option<&Ejection> {
        self.out.as_ref()?.ejected.as_ref()
    }

    pub(super) fn readmit(&mut self) {
        if let Some(out) = &mut self.out {
            out.ejected = None;
        }
        self.out.take_if(|out| out.rests.is_none());
    }

    pub(super) fn status(&self) -> Status {
        let out = self.out.as_ref();
        let until = out.and_then(|out| out.ejected.as_ref().map(|e| e.until).max(out.rests));
        match until {
            _ if self.unhealthy || self.silent => Status::Unhealthy,
            _ if self.unknown => Status::Unknown,
            Some(until) => Status::Ejected { until },
            None => Status::Available,
        }
    }

    /// Changes the state; returns the status before and after if it has changed.
    pub(super) fn change(&mut self, set: impl FnOnce(&mut Self)) -> Option<(Status, Status)> {
        let before = self.status();
        set(self);
        let after = self.status();
        let has_changed = after != before;
        if has_changed {
            self.since = Instant::now();
            self.update_census();
        }
        has_changed.then_some((before, after))
    }

    pub(super) fn update_census(&mut self) {
        let status = self.status();
        self.census.update(self.weight, status);
    }

    /// Returns the driver to notify if there is a change. The caller releases the lock before.
    pub(super) fn driver_if(&self, has_changed: bool) -> Option<Arc<Notify>> {
        has_changed.then(|| self.driver.upgrade()).flatten()
    }
}

/// The reason of an ejection that the server has asked for.
pub(super) const ASKED: &str = "its server asked for a pause";
