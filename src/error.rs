//! What a balancer answers when no endpoint can.
//!
//! All of these reach the caller as [`BoxError`] from the response future, never from
//! `poll_ready`: they are passing conditions. Find them again by `downcast_ref`.

use std::{error::Error, fmt, sync::Arc};

use tower::BoxError;

/// Says that discovery knows of no endpoint that takes requests.
///
/// Its `source` is the discovery error that came last, where one came with no success after it.
///
/// ```
/// # fn answer(error: tower::BoxError) -> u16 {
/// if error.downcast_ref::<tower_lb::NoEndpoints>().is_some() { 503 } else { 502 }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct NoEndpoints {
    draining: usize,
    source: Option<Arc<BoxError>>,
}

/// Says that endpoints are known but too few are available: the others are ejected or unhealthy.
///
/// Answered only by a balancer that [fails closed](crate::BalanceLayer::fail_closed).
#[derive(Clone, Copy, Debug)]
pub struct Unavailable {
    available: usize,
    endpoints: usize,
}

/// Says that no endpoint became ready: the `poll_ready` of each one failed.
///
/// Its `source` is the error of the one that was tried last.
#[derive(Debug)]
pub struct NotReady {
    endpoint: String,
    tried: usize,
    source: BoxError,
}

/// Says that the policy found none of the available endpoints suitable.
#[derive(Clone, Copy, Debug)]
pub struct NotChosen;

/// Says that a request has no key, where the policy chooses by one.
///
/// Answered only by a hash policy that [rejects](crate::hash::OnMissing::Reject) such requests.
#[derive(Clone, Copy, Debug)]
pub struct MissingKey;

/// Says that no endpoint is available but those that the request was sent to before.
///
/// Answered where a call is to go [elsewhere or nowhere](crate::balance::Tried::strict).
#[derive(Clone, Copy, Debug)]
pub struct AllTried;

impl NoEndpoints {
    /// Says that no endpoint takes requests: a discovery source yields this for a known-empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            draining: 0,
            source: None,
        }
    }

    /// Returns how many endpoints are known but draining (weight 0).
    #[must_use]
    pub const fn draining(&self) -> usize {
        self.draining
    }

    pub(crate) const fn because(draining: usize, source: Option<Arc<BoxError>>) -> Self {
        Self { draining, source }
    }
}

impl Unavailable {
    /// Returns how many endpoints are available.
    #[must_use]
    pub const fn available(&self) -> usize {
        self.available
    }

    /// Returns how many endpoints there are, draining ones apart.
    #[must_use]
    pub const fn endpoints(&self) -> usize {
        self.endpoints
    }

    pub(crate) const fn new(available: usize, endpoints: usize) -> Self {
        Self {
            available,
            endpoints,
        }
    }
}

impl NotReady {
    /// Returns how many endpoints were tried.
    #[must_use]
    pub const fn tried(&self) -> usize {
        self.tried
    }

    pub(crate) const fn new(endpoint: String, tried: usize, source: BoxError) -> Self {
        Self {
            endpoint,
            tried,
            source,
        }
    }
}

impl fmt::Display for NoEndpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.draining {
            0 => f.write_str("no endpoints"),
            n => write!(f, "no endpoints: all {n} are draining"),
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            available,
            endpoints,
        } = self;
        write!(
            f,
            "{available} of {endpoints} endpoints are available, too few"
        )
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            endpoint, tried, ..
        } = self;
        write!(f, "none of {tried} endpoints became ready, {endpoint} last")
    }
}

impl fmt::Display for NotChosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the policy chose none of the available endpoints")
    }
}

impl fmt::Display for AllTried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("every available endpoint was sent the request before")
    }
}

impl fmt::Display for MissingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request has no key to choose an endpoint by")
    }
}

impl Error for NoEndpoints {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source: &BoxError = self.source.as_deref()?;
        Some(source.as_ref())
    }
}

impl Error for NotReady {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref())
    }
}

impl Error for Unavailable {}
impl Error for NotChosen {}
impl Error for MissingKey {}
impl Error for AllTried {}
