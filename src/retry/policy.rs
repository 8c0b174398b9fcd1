use std::{
    borrow::Cow,
    error::Error,
    fmt,
    io::{self, ErrorKind},
    sync::Arc,
    time::Duration,
};

use tower::BoxError;

use super::{adaptive_throttle::Throttled, error::TryTimedOut, limit::LimitReached};
use crate::{
    error::{AllTried, MissingKey, NoEndpoints, NotChosen, NotReady, Unavailable},
    load::{Classify, ErrorsAreFailures, Outcome},
};

/// Decides which requests are sent again, and after which answers.
///
/// Ready ones: [`ConnectErrors`], safe for every request, and [`Idempotent`], for those that may be executed
/// twice. One of your own sees request and answer:
///
/// ```
/// use std::time::Duration;
/// use tower::BoxError;
/// use tower_lb::retry::{Retry, RetryPolicy};
///
/// struct Answer { busy_for: Option<Duration> }
///
/// /// Sends again what a server was too busy for, when that server says.
/// #[derive(Debug)]
/// struct WhenBusy;
///
/// impl<Req> RetryPolicy<Req, Answer> for WhenBusy {
///     fn is_idempotent(&self, _: &Req) -> bool {
///         false
///     }
///
///     fn retry(&self, _: &Req, answer: Result<&Answer, &BoxError>) -> Retry {
///         match answer {
///             Ok(Answer { busy_for: Some(pause) }) => Retry::After(*pause),
///             _ => Retry::No,
///         }
///     }
/// }
/// ```
pub trait RetryPolicy<Req, Res> {
    /// Returns whether the request may be executed more than once. Only such requests are hedged.
    fn is_idempotent(&self, request: &Req) -> bool;

    /// Returns what to do about an answer. Must be cheap: it runs for every request.
    ///
    /// `request` is the copy that would be sent again.
    fn retry(&self, request: &Req, answer: Result<&Res, &BoxError>) -> Retry;

    /// Returns why an answer, not an error, was tried again: for the error that names the tries.
    fn reason(&self, response: &Res) -> Cow<'static, str> {
        let _ = response;
        "answered, but not as wanted".into()
    }
}

/// Says what to do about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// Give it to the caller: it is fine, or no other endpoint would do better.
    No,
    /// Give it to the caller, a failure after which the server asks for no further try.
    Never,
    /// Send the request to another endpoint, after the usual pause.
    Yes,
    /// Send the request to another endpoint, after this pause: the server has asked for it (pushback).
    After(Duration),
}

/// Sends again what certainly has not reached a server: safe for every request.
///
/// That is: no endpoint became ready ([`NotReady`]), or among an error and its sources is an [`io::Error`] of the kinds
/// connection refused or address not available. Host or network unreachable are not among them: a connection that is
/// open can end by them, with the request executed. What your client's own errors say of connecting, that they timed out or found no
/// route, tell it by [`or`](Self::or).
#[derive(Clone, Default)]
pub struct ConnectErrors {
    /// Behind a pointer, so that the type of a stack does not depend on it; asked only of errors.
    also: Vec<Arc<dyn ErrorFilter>>,
}

/// Sends again whatever has failed, if the request may be executed more than once.
///
/// Others are sent again where [`ConnectErrors`] would. What has failed is what the classifier says: by default,
/// every error. What turns a request away on this side ([`NoEndpoints`], [`Unavailable`], [`NotChosen`],
/// [`MissingKey`], [`Throttled`], [`LimitReached`]) is an answer to give at once.
#[derive(Clone)]
pub struct Idempotent<W = AllRequests, C = ErrorsAreFailures> {
    when: W,
    classify: C,
    connect: ConnectErrors,
}

/// Tells requests that may be executed more than once from others: any `Fn(&Req) -> bool` does.
pub trait RequestFilter<Req> {
    /// Returns whether the request is one of those.
    fn matches(&self, request: &Req) -> bool;
}

/// Takes every request for one that may be executed more than once.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct AllRequests;

trait ErrorFilter: Send + Sync {
    fn matches(&self, error: &(dyn Error + 'static)) -> bool;
}

impl ConnectErrors {
    /// Starts with the kinds of errors above.
    #[must_use]
    pub const fn new() -> Self {
        Self { also: Vec::new() }
    }

    /// Takes more errors for errors of connecting; `is_one` is asked of an error and of each of its sources.
    ///
    /// ```
    /// # use tower_lb::retry::ConnectErrors;
    /// # #[derive(Debug)] struct ClientError;
    /// # impl std::fmt::Display for ClientError { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
    /// # impl std::error::Error for ClientError {}
    /// # impl ClientError { fn is_connect(&self) -> bool { true } }
    /// let policy = ConnectErrors::default()
    ///     .or(|error| error.downcast_ref().is_some_and(ClientError::is_connect));
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn or<F>(mut self, is_one: F) -> Self
    where
        F: Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    {
        self.also.push(Arc::new(is_one));
        self
    }

    /// Returns whether the error says that nothing was sent.
    #[must_use]
    pub fn is_one(&self, error: &BoxError) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        // Bounded: an error that is its own source must not hang its reader.
        for _ in 0..MOST_SOURCES {
            let Some(error) = cause else {
                return false;
            };
            let io = error.downcast_ref().map(io::Error::kind);
            let mut also = self.also.iter();
            if io.is_some_and(is_connect)
                || error.is::<NotReady>()
                || also.any(|filter| filter.matches(error))
            {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

impl<F> ErrorFilter for F
where
    F: Fn(&(dyn Error + 'static)) -> bool + Send + Sync,
{
    fn matches(&self, error: &(dyn Error + 'static)) -> bool {
        self(error)
    }
}

impl<Req, Res> RetryPolicy<Req, Res> for ConnectErrors {
    fn is_idempotent(&self, _: &Req) -> bool {
        false
    }

    #[inline]
    fn retry(&self, _: &Req, answer: Result<&Res, &BoxError>) -> Retry {
        match answer {
            Err(error) if self.is_one(error) => Retry::Yes,
            _ => Retry::No,
        }
    }
}

impl Idempotent {
    /// Takes every request for idempotent.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            when: AllRequests,
            classify: ErrorsAreFailures,
            connect: ConnectErrors::new(),
        }
    }

    /// Takes those requests for idempotent of which `when` says so.
    #[must_use]
    pub fn when<Req, W: Fn(&Req) -> bool>(when: W) -> Idempotent<W> {
        Idempotent {
            when,
            classify: ErrorsAreFailures,
            connect: ConnectErrors::new(),
        }
    }
}

impl<W, C> Idempotent<W, C> {
    /// Sets what an answer must be to be a failure. Default: an error.
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

impl<Req, Res, W, C> RetryPolicy<Req, Res> for Idempotent<W, C>
where
    W: RequestFilter<Req>,
    C: Classify<Res, BoxError>,
{
    fn is_idempotent(&self, request: &Req) -> bool {
        self.when.matches(request)
    }

    #[inline]
    fn retry(&self, request: &Req, answer: Result<&Res, &BoxError>) -> Retry {
        match answer {
            Err(error) if is_nobody(error) => Retry::No,
            Err(error) if self.connect.is_one(error) => Retry::Yes,
            // A classifier need not know that a try can be given up.
            Err(error) if error.is::<TryTimedOut>() && self.when.matches(request) => Retry::Yes,
            _ if self.classify.classify(answer) != Outcome::Failure => Retry::No,
            _ if self.when.matches(request) => Retry::Yes,
            _ => Retry::No,
        }
    }
}

/// Returns whether the request was turned away on this side: another try would be, too.
pub(crate) fn is_nobody(error: &BoxError) -> bool {
    error.is::<NoEndpoints>()
        || error.is::<Unavailable>()
        || error.is::<NotChosen>()
        || error.is::<MissingKey>()
        || error.is::<AllTried>()
        || error.is::<Throttled>()
        || error.is::<LimitReached>()
}

const fn is_connect(kind: ErrorKind) -> bool {
    // Not `TimedOut`, `ConnectionReset` or `NotConnected`: a server may have had the request by then. Nor the unreachable
    // kinds, which Linux gives to an open connection, too, whose retransmissions have met them.
    matches!(
        kind,
        ErrorKind::ConnectionRefused | ErrorKind::AddrNotAvailable
    )
}

impl fmt::Debug for ConnectErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectErrors").finish_non_exhaustive()
    }
}

impl<W, C: fmt::Debug> fmt::Debug for Idempotent<W, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotent")
            .field("classify", &self.classify)
            .finish_non_exhaustive()
    }
}

/// Deeper than any chain that a client builds.
const MOST_SOURCES: usize = 32;
