use std::{borrow::Cow, error::Error, fmt, time::Duration};

use tower::BoxError;

/// Says that a request failed on every endpoint that it was sent to, which ones, and why.
///
/// Its `source` is the error of the last try.
///
/// ```
/// # fn log(error: tower::BoxError) {
/// if let Some(failed) = error.downcast_ref::<tower_lb::retry::AttemptsFailed>() {
///     for attempt in failed.attempts() {
///         println!("{}: {}", attempt.endpoint().unwrap_or("nobody"), attempt.error());
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

/// Says why there was no further try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// All tries that one request may have were made.
    Attempts,
    /// The budget or throttle allowed no retry.
    Budget,
    /// The policy did not want the last answer tried again.
    Policy,
    /// The server asked for a longer pause than is waited.
    Pushback,
}

/// Says that a try was given up, for its endpoint had not answered in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TryTimedOut {
    after: Duration,
}

/// Stands for an answer, not an error, after which a request was tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwantedAnswer {
    reason: Cow<'static, str>,
}

impl AttemptsFailed {
    pub(super) const fn new(attempts: Vec<Attempt>, stopped: Stopped) -> Self {
        Self { attempts, stopped }
    }

    /// Returns the tries in their order.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Returns why there was no further one.
    #[must_use]
    pub const fn stopped(&self) -> Stopped {
        self.stopped
    }

    /// Returns whether a try went to an endpoint that had been tried, for want of another.
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

    /// Returns the endpoint's name; `None` if the try reached none, or one that left long ago with many others.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Returns whether the endpoint had been tried before, and no other was available.
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

    /// Returns what the [policy](super::RetryPolicy::reason) says of the answer.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl TryTimedOut {
    pub(super) const fn new(after: Duration) -> Self {
        Self { after }
    }

    /// Returns how long the try was waited for.
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
