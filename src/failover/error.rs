use std::{borrow::Cow, error::Error, fmt, time::Duration};

use tower::BoxError;

/// Reports that all tries of a request failed, on which endpoints, and why.
///
/// Its `source` is the error of the last try.
///
/// ```
/// # fn log(error: tower::BoxError) {
/// if let Some(failed) = error.downcast_ref::<tower_lb::AttemptsFailed>() {
///     for attempt in failed.attempts() {
///         println!("{}: {}", attempt.endpoint().unwrap_or("no endpoint"), attempt.error());
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct AttemptsFailed {
    attempts: Vec<Attempt>,
    stopped: Stopped,
}

/// One try of a request.
#[derive(Debug)]
pub struct Attempt {
    endpoint: Option<String>,
    repeated: bool,
    error: BoxError,
}

/// The reason why there was no further try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// The request was sent as often as one request may be.
    Attempts,
    /// The budget or throttle allowed no retry.
    Budget,
    /// The policy wanted no further try, or the request could not be copied.
    Policy,
    /// The server asked for a longer pause than the layer allows.
    Pushback,
}

/// Reports that a try was given up because it had no answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TryTimedOut {
    after: Duration,
}

/// Stands for an answer, not an error, that led to another try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwantedAnswer {
    reason: Cow<'static, str>,
}

impl AttemptsFailed {
    pub(super) const fn new(attempts: Vec<Attempt>, stopped: Stopped) -> Self {
        Self { attempts, stopped }
    }

    /// Returns the tries in order.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Returns why there was no further try.
    #[must_use]
    pub const fn stopped(&self) -> Stopped {
        self.stopped
    }

    /// Returns whether a try repeated an endpoint because no other was available.
    #[must_use]
    pub fn all_were_tried(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.repeated)
    }
}

impl Attempt {
    pub(super) const fn new(endpoint: Option<String>, repeated: bool, error: BoxError) -> Self {
        Self {
            endpoint,
            repeated,
            error,
        }
    }

    pub(super) fn into_error(self) -> BoxError {
        self.error
    }

    /// Returns the endpoint's name.
    ///
    /// `None` if the try reached no endpoint, or one that left long ago together with many others.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Returns whether the try repeated an endpoint because no other was available.
    #[must_use]
    pub const fn is_repeated(&self) -> bool {
        self.repeated
    }

    /// Returns why the try failed.
    #[must_use]
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.error.as_ref()
    }
}

impl UnwantedAnswer {
    pub(super) const fn new(reason: Cow<'static, str>) -> Self {
        Self { reason }
    }

    /// Returns the reason that the [policy](super::RetryPolicy::reason) gave for the further try.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl TryTimedOut {
    pub(super) const fn new(after: Duration) -> Self {
        Self { after }
    }

    /// Returns the timeout of the try.
    #[must_use]
    pub const fn after(self) -> Duration {
        self.after
    }
}

impl fmt::Display for AttemptsFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempts.len() {
            1 => f.write_str("the only attempt failed")?,
            n => write!(f, "{n} attempts failed")?,
        }
        f.write_str(match self.stopped {
            Stopped::Attempts => "",
            Stopped::Budget => ", the retry budget is spent",
            Stopped::Policy => ", the last not to be tried again",
            Stopped::Pushback => ", the server asked for a long pause",
        })?;
        if self.all_were_tried() {
            f.write_str(", every available endpoint was tried")?;
        }
        for (i, attempt) in self.attempts.iter().enumerate() {
            f.write_str(if i == 0 { ": " } else { "; " })?;
            attempt.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint().unwrap_or("no endpoint");
        write!(f, "{endpoint}: {}", self.error)
    }
}

impl fmt::Display for TryTimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {:?}", self.after)
    }
}

impl fmt::Display for UnwantedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for AttemptsFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let last = self.attempts.last()?;
        Some(last.error.as_ref())
    }
}

impl Error for TryTimedOut {}
impl Error for UnwantedAnswer {}
