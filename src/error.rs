//! Errors of a balancer, and of layers that reject requests locally.
//!
//! All of them reach the caller as [`BoxError`] from the response future, never from `poll_ready`,
//! because they are passing conditions. Recognize them by `downcast_ref`.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use tower::BoxError;

/// Reports that discovery knows no endpoint that takes requests.
///
/// Its `source` is the last discovery error, unless discovery has succeeded since.
///
/// ```
/// # fn answer(error: tower::BoxError) -> u16 {
/// if error.downcast_ref::<tower_lb::NoEndpoints>().is_some() { 503 } else { 502 }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct NoEndpoints {
    draining: usize,
    has_ended: bool,
    source: Option<Arc<BoxError>>,
}

/// Reports that the balancer's driver is gone, so that no update of the set would be heard of.
///
/// The tokio runtime that the balancer was built in has been shut down, or the driver of
/// [`Balance::pair`](crate::Balance::pair) was dropped. Build the balancer in the runtime that
/// outlives it, or take `Balance::pair` and poll the driver where it lives as long as the handles.
#[derive(Clone, Copy, Debug)]
pub struct NotDriven;

/// Reports that endpoints are known but too few are available.
///
/// The others are ejected or unhealthy. Only a balancer that
/// [fails closed](crate::BalanceLayer::fail_closed) answers with it.
#[derive(Clone, Copy, Debug)]
pub struct Unavailable {
    available: usize,
    endpoints: usize,
}

/// Reports that no endpoint became ready: the `poll_ready` of each one failed.
///
/// Its `source` is the error of the endpoint that was tried last.
#[derive(Debug)]
pub struct NotReady {
    endpoint: String,
    tried: usize,
    source: BoxError,
}

/// Reports that the policy found none of the available endpoints suitable.
#[derive(Clone, Copy, Debug)]
pub struct NotChosen;

/// Reports that a request has no key, although the policy chooses by one.
///
/// Only a hash policy that [rejects](crate::hash::OnMissing::Reject) such requests answers with it.
#[derive(Clone, Copy, Debug)]
pub struct MissingKey;

/// Reports that the request was already sent to every available endpoint.
///
/// Answers a call that must go [elsewhere or nowhere](crate::Tried::strict).
#[derive(Clone, Copy, Debug)]
pub struct AllTried;

/// Reports that a request was given up because its time was over.
///
/// Only [`DeadlineLayer`](crate::DeadlineLayer) answers with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadlineExceeded {
    after: Duration,
    waited_for: WaitedFor,
}

/// What a request waited for when its time was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitedFor {
    /// An endpoint that is ready: the set is empty or not known yet, or all endpoints are full.
    /// Nothing was sent.
    Readiness,
    /// The answer. With a hash policy, this includes the wait for the endpoint of the key.
    Answer,
}

impl DeadlineExceeded {
    pub(crate) const fn new(after: Duration, waited_for: WaitedFor) -> Self {
        Self { after, waited_for }
    }

    /// Returns how long the request might take.
    #[must_use]
    pub const fn after(&self) -> Duration {
        self.after
    }

    /// Returns what was waited for.
    #[must_use]
    pub const fn waited_for(&self) -> WaitedFor {
        self.waited_for
    }
}

impl fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.waited_for {
            WaitedFor::Readiness => "no endpoint became ready",
            WaitedFor::Answer => "no answer came",
        };
        write!(f, "{what} within the deadline of {:?}", self.after)
    }
}

impl Error for DeadlineExceeded {}

impl NoEndpoints {
    /// Creates the error that a discovery source yields for a set known to be empty.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            draining: 0,
            has_ended: false,
            source: None,
        }
    }

    /// Returns whether discovery has ended: no endpoint will ever join.
    ///
    /// Those that drain may be given a weight again.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns how many endpoints are known but draining (weight 0).
    #[must_use]
    pub const fn draining(&self) -> usize {
        self.draining
    }

    /// Returns whether an endpoint may still join, or stop draining.
    pub(crate) const fn may_end(&self) -> bool {
        !self.has_ended || self.draining > 0
    }

    pub(crate) const fn because(source: Option<Arc<BoxError>>, has_ended: bool) -> Self {
        Self {
            draining: 0,
            has_ended,
            source,
        }
    }

    pub(crate) const fn with_draining(mut self, draining: usize) -> Self {
        self.draining = draining;
        self
    }
}

impl Unavailable {
    /// Returns how many endpoints are available.
    #[must_use]
    pub const fn available(&self) -> usize {
        self.available
    }

    /// Returns how many endpoints there are, not counting draining ones.
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
            0 if self.has_ended => f.write_str("no endpoints: discovery has ended"),
            0 => f.write_str("no endpoints"),
            n => write!(f, "no endpoints: all {n} are draining"),
        }
    }
}

impl fmt::Display for NotDriven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the balancer's driver is gone: its runtime was shut down, or it was dropped \
             (`Balance::pair` hands it to you)",
        )
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

impl Error for NotDriven {}
impl Error for Unavailable {}
impl Error for NotChosen {}
impl Error for MissingKey {}
impl Error for AllTried {}

/// Reports that as many requests are in flight as a limit allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitReached {
    max: usize,
    name: Option<Arc<str>>,
}

impl LimitReached {
    pub(crate) const fn new(max: usize, name: Option<Arc<str>>) -> Self {
        Self { max, name }
    }

    /// Returns how many requests the limit allows at once.
    #[must_use]
    pub const fn max(&self) -> usize {
        self.max
    }

    /// Returns the name of the limit, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        write!(f, "the limit of {} requests in flight is reached", self.max)
    }
}

impl Error for LimitReached {}

/// Reports that a request was rejected locally because the backends rejected most recent ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttled {
    probability: f64,
}

impl Throttled {
    pub(crate) const fn new(probability: f64) -> Self {
        Self { probability }
    }

    /// Returns the probability of rejection at the time of the request.
    #[must_use]
    pub const fn probability(self) -> f64 {
        self.probability
    }
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.probability * 100.0;
        write!(
            f,
            "rejected locally, as {percent:.0} % of requests: the backends reject most"
        )
    }
}

impl Error for Throttled {}
