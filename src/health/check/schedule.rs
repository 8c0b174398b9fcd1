use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::settings::{CheckSettings, UntilFirstCheck};
use crate::{
    endpoint::{Address, Endpoint, EndpointMap},
    health::due::DueTimes,
    random::random_part,
};

/// The endpoints that are checked, the results so far, and when the next checks are due.
pub(super) struct Schedule<A, S> {
    settings: CheckSettings,
    idle_interval: Option<Duration>,
    rng: SmallRng,
    endpoints: EndpointMap<A, Checked<S>>,
    /// When each endpoint's next check is due.
    due: DueTimes,
    /// Whether checks are late. They are on time again once none waits.
    is_late: bool,
}

struct Checked<S> {
    service: S,
    /// Whether requests were sent since the last check; `None` where that is not tracked.
    has_traffic: Option<Arc<AtomicBool>>,
    health: Health,
}

/// The health of one endpoint according to its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Health {
    /// `None`: not known before the first result.
    is_healthy: Option<bool>,
    /// How many results in a row contradict `is_healthy`.
    streak: u32,
}

impl<A, S> Schedule<A, S> {
    pub(super) fn new(
        settings: CheckSettings,
        idle_interval: Option<Duration>,
        rng: SmallRng,
    ) -> Self {
        Self {
            settings,
            idle_interval,
            rng,
            endpoints: EndpointMap::default(),
            due: DueTimes::default(),
            is_late: false,
        }
    }

    pub(super) const fn settings(&self) -> &CheckSettings {
        &self.settings
    }

    pub(super) fn len(&self) -> usize {
        self.endpoints.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Returns the endpoint with this number and its service, unless it has left.
    pub(super) fn get(&self, id: u64) -> Option<(&Endpoint<A>, &S)> {
        let (endpoint, checked) = self.endpoints.get(id)?;
        Some((endpoint, &checked.service))
    }

    /// Returns how many checks may run at once.
    pub(super) fn concurrency(&self) -> usize {
        self.settings.concurrency(self.len())
    }

    /// Returns when the next check is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.next()
    }

    /// Removes an entry that is due; returns its endpoint's number. The endpoint may have left.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u64> {
        match self.due.next().filter(|&due| due <= now) {
            None => self.is_late = false,
            Some(due) if !self.is_late && now - due > self.settings.interval => {
                self.is_late = true;
                let (endpoints, concurrency) = (self.len(), self.concurrency());
                warn!(
                    endpoints,
                    concurrency, "health checks are late: they wait for others"
                );
            }
            Some(_) => {}
        }
        self.due.pop(now)
    }
}

impl<A: Address, S> Schedule<A, S> {
    pub(super) fn insert(
        &mut self,
        endpoint: Endpoint<A>,
        service: S,
        has_traffic: Option<Arc<AtomicBool>>,
    ) {
        // The service that this one replaces may have been marked otherwise.
        let is_healthy = match self.settings.until_first_check {
            UntilFirstCheck::Available => {
                endpoint.mark_healthy();
                Some(true)
            }
            UntilFirstCheck::Unhealthy => {
                endpoint.mark_unknown();
                None
            }
        };
        let checked = Checked {
            service,
            has_traffic,
            health: Health {
                is_healthy,
                streak: 0,
            },
        };
        let (id, replaced) = self.endpoints.insert(endpoint, checked);
        // A service that is made again may be no better: it is checked at once.
        let pause = match replaced {
            None => random_part(self.settings.initial_jitter(), &mut self.rng),
            Some(_) => Duration::ZERO,
        };
        self.due.push(later(Instant::now(), pause), id);
    }

    pub(super) fn remove(&mut self, endpoint: &Endpoint<A>) {
        self.endpoints.remove(endpoint);
        let endpoints = &self.endpoints;
        self.due
            .compact(endpoints.len(), |id| endpoints.get(id).is_some());
    }

    /// Records the result of a check, and sets when the next one is due.
    pub(super) fn done(&mut self, id: u64, result: Result<(), String>) {
        // The endpoint may have left during the check.
        let Some((endpoint, checked)) = self.endpoints.get_mut(id) else {
            return;
        };
        let settings = &self.settings;
        checked.take(endpoint, result, settings);
        let pause = checked.pause(settings, self.idle_interval);
        let jitter = random_part(settings.jitter.min(pause), &mut self.rng);
        let at = later(Instant::now(), pause.saturating_add(jitter));
        self.due.push(at, id);
    }
}

impl<S> Checked<S> {
    /// Records the result of a check, and marks the endpoint if its health changes.
    fn take<A: Address>(
        &mut self,
        endpoint: &Endpoint<A>,
        result: Result<(), String>,
        settings: &CheckSettings,
    ) {
        if let Err(error) = &result {
            debug!(%endpoint, error, "health check failed");
        } else if settings.ends_ejection {
            endpoint.readmit_checked();
        }
        if !self.health.take(result.is_ok(), settings) {
            return;
        }
        match result {
            Ok(()) => {
                info!(%endpoint, "health checks succeed: healthy");
                endpoint.mark_healthy();
            }
            Err(error) => {
                warn!(%endpoint, error, "health checks fail: unhealthy");
                endpoint.mark_unhealthy();
            }
        }
    }

    /// Returns the time until the next check.
    fn pause(&self, settings: &CheckSettings, idle_interval: Option<Duration>) -> Duration {
        let had_traffic = self
            .has_traffic
            .as_ref()
            .map(|flag| flag.swap(false, Relaxed));
        let is_at_edge = self.health.streak > 0;
        match (settings.edge_interval, idle_interval) {
            (Some(edge), _) if is_at_edge => edge,
            (_, Some(idle)) if had_traffic == Some(false) && !is_at_edge => idle,
            _ => settings.interval,
        }
    }
}

impl Health {
    /// Records a result; returns whether it changes `is_healthy`.
    const fn take(&mut self, success: bool, settings: &CheckSettings) -> bool {
        let is_known = match self.is_healthy {
            Some(is_healthy) if is_healthy == success => {
                self.streak = 0;
                return false;
            }
            is_healthy => is_healthy.is_some(),
        };
        self.streak += 1;
        let enough = match success {
            _ if !is_known => 1,
            true => settings.successes,
            false => settings.failures,
        };
        if self.streak < enough {
            return false;
        }
        self.is_healthy = Some(success);
        self.streak = 0;
        true
    }
}

/// Returns `now + pause`, or a moment a year away if the clock cannot represent that.
fn later(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause)
        .unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}
