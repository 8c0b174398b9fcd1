use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind},
    sync::Arc,
};

use tower::BoxError;

use super::{Reach, Retry, RetryPolicy};
use crate::error::NotReady;

/// Sends a request again only if it certainly has not reached a server.
///
/// That is safe for every request. It is so when no endpoint became ready ([`NotReady`]), or when
/// an [`io::Error`] of the kind connection refused or address not available is among the error and
/// its sources. With the feature `http2` it is also so when hyper's client did not take the request
/// because its connection was closing, and when an HTTP/2 server refused the stream, or shut down
/// before it began with it (RFC 9113, section 8.7). Host or network unreachable do not count: an
/// open connection can end with them after its request was executed. Clients may have errors of
/// their own for a connect that timed out or found no route. Add those with [`also`](Self::also).
#[derive(Clone, Default)]
pub struct ConnectErrors {
    /// Behind pointers, to keep the filters out of the type of the stack. Called only for errors.
    also: Vec<Arc<dyn ErrorFilter>>,
}

trait ErrorFilter: Send + Sync {
    fn matches(&self, error: &(dyn Error + 'static)) -> bool;
}

impl ConnectErrors {
    /// Starts with only the errors that are listed above.
    #[must_use]
    pub const fn new() -> Self {
        Self { also: Vec::new() }
    }

    /// Counts more errors as failures to connect.
    ///
    /// `matches` gets the error and each of its sources.
    ///
    /// ```
    /// # use tower_lb::failover::ConnectErrors;
    /// # #[derive(Debug)] struct ClientError;
    /// # impl std::fmt::Display for ClientError { fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { Ok(()) } }
    /// # impl std::error::Error for ClientError {}
    /// # impl ClientError { fn is_connect(&self) -> bool { true } }
    /// let policy = ConnectErrors::default()
    ///     .also(|error| error.downcast_ref().is_some_and(ClientError::is_connect));
    /// # let _ = policy;
    /// ```
    #[must_use]
    pub fn also<F>(mut self, matches: F) -> Self
    where
        F: Fn(&(dyn Error + 'static)) -> bool + Send + Sync + 'static,
    {
        self.also.push(Arc::new(matches));
        self
    }

    /// Returns whether no server has begun with a request that ended with this error.
    #[must_use]
    pub fn matches(&self, error: &BoxError) -> bool {
        self.reach_of(error) != Reach::Server
    }

    pub(crate) fn reach_of(&self, error: &BoxError) -> Reach {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        // Bounded, because an error that is its own source would loop for ever.
        for _ in 0..MOST_SOURCES {
            let Some(error) = cause else { break };
            let io = error.downcast_ref().map(io::Error::kind);
            let mut also = self.also.iter();
            if is_unprocessed(error) || is_canceled(error) {
                return Reach::Unprocessed;
            }
            if io.is_some_and(is_connect)
                || error.is::<NotReady>()
                || also.any(|filter| filter.matches(error))
            {
                return Reach::Unsent;
            }
            cause = error.source();
        }
        Reach::Server
    }
}

/// Returns whether an HTTP/2 server says that it has not begun with the request.
///
/// After a GOAWAY of another reason than NO_ERROR, `h2` gives all requests the same error, whether
/// the server had begun with them or not.
#[cfg(feature = "http2")]
fn is_unprocessed(error: &(dyn Error + 'static)) -> bool {
    let Some(error) = error.downcast_ref::<h2::Error>() else {
        return false;
    };
    let reason = error.reason();
    let is_refused = error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM);
    let is_shut_down = error.is_go_away() && reason == Some(h2::Reason::NO_ERROR);
    error.is_remote() && (is_refused || is_shut_down)
}

/// Returns whether hyper's client has given a request back that its connection did not take.
///
/// The connection was closing, or its server had said by GOAWAY that it takes no more.
#[cfg(feature = "http2")]
fn is_canceled(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref().is_some_and(hyper::Error::is_canceled)
}

#[cfg(not(feature = "http2"))]
const fn is_canceled(_: &(dyn Error + 'static)) -> bool {
    false
}

#[cfg(not(feature = "http2"))]
const fn is_unprocessed(_: &(dyn Error + 'static)) -> bool {
    false
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
            Err(error) if self.matches(error) => Retry::Yes,
            _ => Retry::No,
        }
    }

    fn reach(&self, error: &BoxError) -> Reach {
        self.reach_of(error)
    }
}

const fn is_connect(kind: ErrorKind) -> bool {
    // Not `TimedOut`, `ConnectionReset` or `NotConnected`: the server may have received the request
    // by then. Not the unreachable kinds either: Linux also reports them on an open connection,
    // when its retransmissions find the way unreachable.
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

/// Deeper than any chain that a client builds.
const MOST_SOURCES: usize = 32;
