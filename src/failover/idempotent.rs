use std::fmt;

use tower::BoxError;

use super::{ConnectErrors, Reach, Retry, RetryPolicy, error::TryTimedOut, policy::is_turned_away};
use crate::outcome::{Classify, ErrorsAreFailures, Outcome};

/// Sends a request again after any failure if it may be executed more than once.
///
/// Other requests are sent again only where [`ConnectErrors`] would do so. The classifier decides
/// what a failure is; by default, every error is one. A try that timed out is always a failure. If
/// the request was rejected locally, the caller gets the error at once: `NoEndpoints`,
/// `Unavailable` and others of [`error`](crate::error).
#[derive(Clone)]
pub struct Idempotent<W = AllRequests, K = ErrorsAreFailures> {
    when: W,
    classify: K,
    connect: ConnectErrors,
}

/// Selects the requests that may be executed more than once.
///
/// Any `Fn(&Req) -> bool` implements it.
pub trait RequestFilter<Req> {
    /// Returns whether the request may be executed more than once.
    fn matches(&self, request: &Req) -> bool;
}

/// Selects every request as one that may be executed more than once.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct AllRequests;

impl Idempotent {
    /// Treats every request as idempotent.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            when: AllRequests,
            classify: ErrorsAreFailures,
            connect: ConnectErrors::new(),
        }
    }

    /// Treats the requests for which `when` returns true as idempotent.
    #[must_use]
    pub fn when<Req, W: Fn(&Req) -> bool>(when: W) -> Idempotent<W> {
        Idempotent {
            when,
            classify: ErrorsAreFailures,
            connect: ConnectErrors::new(),
        }
    }
}

impl<W, K> Idempotent<W, K> {
    /// Sets which answers are failures. Default: errors.
    #[must_use]
    pub fn classify<D>(self, classify: D) -> Idempotent<W, D> {
        Idempotent {
            when: self.when,
            classify,
            connect: self.connect,
        }
    }

    /// Sets the errors after which any request is sent again.
    #[must_use]
    pub fn connect_errors(mut self, connect: ConnectErrors) -> Self {
        self.connect = connect;
        self
    }
}

impl<Req> RequestFilter<Req> for AllRequests {
    fn matches(&self, _: &Req) -> bool {
        true
    }
}

impl<Req, F: Fn(&Req) -> bool> RequestFilter<Req> for F {
    fn matches(&self, request: &Req) -> bool {
        self(request)
    }
}

impl<Req, Res, W, K> RetryPolicy<Req, Res> for Idempotent<W, K>
where
    W: RequestFilter<Req>,
    K: Classify<Res, BoxError>,
{
    fn is_idempotent(&self, request: &Req) -> bool {
        self.when.matches(request)
    }

    #[inline]
    fn retry(&self, request: &Req, answer: Result<&Res, &BoxError>) -> Retry {
        match answer {
            Err(error) if is_turned_away(error) => Retry::No,
            Err(error) if self.connect.matches(error) => Retry::Yes,
            // A classifier need not know the timeout of a try.
            Err(error) if error.is::<TryTimedOut>() && self.when.matches(request) => Retry::Yes,
            _ if self.classify.classify(answer) != Outcome::Failure => Retry::No,
            _ if self.when.matches(request) => Retry::Yes,
            _ => Retry::No,
        }
    }

    fn reach(&self, error: &BoxError) -> Reach {
        self.connect.reach_of(error)
    }
}

impl<W, K: fmt::Debug> fmt::Debug for Idempotent<W, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotent")
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}
