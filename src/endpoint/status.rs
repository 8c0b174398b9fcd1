use std::sync::Arc;

use tokio::time::Instant;

/// Tells whether an endpoint may be picked, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Status {
    /// Neither ejected nor unhealthy.
    #[default]
    Available,
    /// Not picked until a time, by outlier detection or
    /// [`Endpoint::eject`](crate::Endpoint::eject). An endpoint that is also unhealthy has the
    /// status `Unhealthy`. [`Endpoint::ejection`](crate::Endpoint::ejection) tells the reason.
    Ejected {
        /// When it is picked again.
        until: Instant,
    },
    /// Not picked until it is healthy again, because of a failed check or missing heartbeats.
    Unhealthy,
    /// Not picked until its first check has ended, neither healthy nor unhealthy.
    ///
    /// It does not count where a share of the endpoints matters, as in a panic. While no
    /// other endpoint is available, callers wait for it. Only where health checks are set so, see
    /// [`UntilFirstCheck`](crate::health::UntilFirstCheck).
    Unknown,
}

/// Tells why an endpoint is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejection {
    /// When it is picked again.
    pub until: Instant,
    /// Why it was ejected, with figures; empty if no reason was given.
    pub reason: Arc<str>,
}
