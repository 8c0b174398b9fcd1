use std::time::Duration;

/// The settings of health checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckSettings {
    pub(super) interval: Duration,
    pub(super) edge_interval: Option<Duration>,
    pub(super) timeout: Duration,
    pub(super) jitter: Duration,
    /// `None`: the interval, or nothing where callers wait for the first checks.
    pub(super) initial_jitter: Option<Duration>,
    pub(super) failures: u32,
    pub(super) successes: u32,
    /// `None`: as many as are needed.
    pub(super) concurrency: Option<usize>,
    pub(super) until_first_check: UntilFirstCheck,
    pub(super) ends_ejection: bool,
}

impl CheckSettings {
    /// Returns how many checks of `endpoints` may run at once.
    ///
    /// If all exceed the timeout, `endpoints * timeout / interval` run at a time on average. Twice
    /// as many may, so that checks that are late catch up.
    pub(super) fn concurrency(&self, endpoints: usize) -> usize {
        self.concurrency.unwrap_or_else(|| {
            let shortest = self
                .edge_interval
                .map_or(self.interval, |edge| edge.min(self.interval));
            let needed = 2.0 * endpoints as f64 * self.timeout.div_duration_f64(shortest);
            (needed as usize).clamp(FEW, endpoints.max(FEW))
        })
    }

    /// Returns within which time an endpoint's first check starts.
    pub(super) fn initial_jitter(&self) -> Duration {
        self.initial_jitter.unwrap_or(match self.until_first_check {
            UntilFirstCheck::Available => self.interval,
            UntilFirstCheck::Unhealthy => Duration::ZERO,
        })
    }
}

/// So many checks may always run at once.
const FEW: usize = 64;

/// Tells whether an endpoint is available before its first check has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UntilFirstCheck {
    /// It takes requests. Right where checks seldom fail.
    #[default]
    Available,
    /// It takes none, and its status is [`Unknown`](crate::Status::Unknown). The first result
    /// decides, either way. Right for endpoints that are announced before they are ready.
    Unhealthy,
}
