use std::time::Duration;

/// The settings of health checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckSettings {
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
