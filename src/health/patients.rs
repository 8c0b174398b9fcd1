use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use rand::rngs::SmallRng;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::check::UntilFirstCheck;
use crate::{
    chance::random_part,
    endpoint::{Address, Endpoint},
};

/// What the builder of health checks decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) interval: Duration,
    pub(super) edge_interval: Option<Duration>,
    pub(super) timeout: Duration,
    pub(super) jitter: Duration,
    pub(super) failures: u32,
    pub(super) successes: u32,
    pub(super) concurrency: usize,
    pub(super) until_first_check: UntilFirstCheck,
    pub(super) ends_ejection: bool,
}

/// Those who are checked.
pub(super) struct Patients<A, S> {
    pub(super) by_id: HashMap<u64, Patient<A, S>>,
    ids: HashMap<Endpoint<A>, u64>,
    next_id: u64,
    /// Whose turn it is when; some of them may be gone.
    pub(super) due: BinaryHeap<Reverse<(Instant, u64)>>,
}

pub(super) struct Patient<A, S> {
    pub(super) endpoint: Endpoint<A>,
    pub(super) service: S,
    /// Whether requests have been sent since the last check, where that is known.
    has_traffic: Option<Arc<AtomicBool>>,
    health: Health,
}

/// What the checks of one endpoint have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Health {
    is_healthy: bool,
    is_checked: bool,
    /// Results in a row that speak against `is_healthy`.
    streak: u32,
}

impl<A, S> Patients<A, S> {
    pub(super) fn new() -> Self {
        Self {
            by_id: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            due: BinaryHeap::new(),
        }
    }
}

impl<A: Address, S> Patients<A, S> {
    pub(super) fn insert(
        &mut self,
        endpoint: Endpoint<A>,
        service: S,
        has_traffic: Option<Arc<AtomicBool>>,
        settings: &Settings,
    ) {
        self.remove(&endpoint);
        // Whatever was said of a service that this one replaces.
        let is_healthy = settings.until_first_check == UntilFirstCheck::Available;
        if is_healthy {
            endpoint.mark_healthy();
        } else {
            endpoint.mark_unhealthy();
        }
        let id = self.next_id;
        self.next_id += 1;
        self.ids.insert(endpoint.clone(), id);
        self.by_id.insert(
            id,
            Patient {
                endpoint,
                service,
                has_traffic,
                health: Health {
                    is_healthy,
                    is_checked: false,
                    streak: 0,
                },
            },
        );
        self.schedule(id, Instant::now());
    }

    pub(super) fn remove(&mut self, endpoint: &Endpoint<A>) {
        if let Some(id) = self.ids.remove(endpoint) {
            self.by_id.remove(&id);
        }
    }

    /// Takes the result of a check, and says when the next one is due.
    pub(super) fn done(
        &mut self,
        id: u64,
        result: Result<(), String>,
        settings: &Settings,
        idle_interval: Option<Duration>,
        rng: &mut SmallRng,
    ) {
        // It may have left meanwhile.
        let Some(patient) = self.by_id.get_mut(&id) else {
            return;
        };
        patient.take(result, settings);
        let pause = patient.pause(settings, idle_interval);
        let jitter = random_part(settings.jitter.min(pause), rng);
        self.schedule(id, later(Instant::now(), pause.saturating_add(jitter)));
    }

    fn schedule(&mut self, id: u64, at: Instant) {
        self.due.push(Reverse((at, id)));
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u64> {
        let &Reverse((at, id)) = self.due.peek()?;
        (at <= now).then(|| {
            self.due.pop();
            id
        })
    }
}

impl<A: Address, S> Patient<A, S> {
    /// Takes the result of a check.
    fn take(&mut self, result: Result<(), String>, settings: &Settings) {
        let endpoint = &self.endpoint;
        if let Err(error) = &result {
            debug!(%endpoint, error, "health check failed");
        } else if settings.ends_ejection {
            endpoint.readmit();
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
                warn!(%endpoint, failures = settings.failures, error, "health checks fail: unhealthy");
                endpoint.mark_unhealthy();
            }
        }
    }

    /// Returns the time until the next check.
    fn pause(&self, settings: &Settings, idle_interval: Option<Duration>) -> Duration {
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
    /// Takes a result; says whether it changed the state.
    const fn take(&mut self, success: bool, settings: &Settings) -> bool {
        let is_first = !self.is_checked;
        self.is_checked = true;
        if success == self.is_healthy {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let enough = match success {
            true if is_first => 1,
            true => settings.successes,
            false => settings.failures,
        };
        if self.streak < enough {
            return false;
        }
        self.is_healthy = success;
        self.streak = 0;
        true
    }
}

/// A time so far away that the clock does not reach it is a year away.
fn later(now: Instant, pause: Duration) -> Instant {
    now.checked_add(pause)
        .unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}
