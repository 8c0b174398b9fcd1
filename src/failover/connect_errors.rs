use std::{
    error::Error,
    fmt,
    io::{self, ErrorKind},
    sync::Arc,
};

use tower::BoxError;

use super::{Retry, RetryPolicy};
use crate::error::NotReady;

/// Sends a request again only if it certainly has not reached a server.
///
/// That is safe for every request. It is so when no endpoint became ready ([`NotReady`]), or when
/// an [`io::Error`] of the kind connection refused or address not available is among the error and
/// its sources. Host or network unreachable do not count: an open connection can end with them
/// after its request was executed. Clients may have errors of their own for a connect that timed
/// out or found no route. Add those with [`also`](Self::also).
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

    /// Returns whether the error means that nothing was sent.
    #[must_use]
    pub fn matches(&self, error: &BoxError) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(error.as_ref());
        // Bounded, because an error that is its own source would loop for ever.
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
            Err(error) if self.matches(error) => Retry::Yes,
            _ => Retry::No,
        }
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
