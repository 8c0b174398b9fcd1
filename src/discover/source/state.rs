use std::time::Duration;

use tokio::time::Instant;

/// What is known of a source, returned by [`Found::state`](super::Found::state).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SourceState {
    /// When the last successful answer came.
    pub last_success: Option<Instant>,
    /// The last failure. It may be over, see [`is_failing`](Self::is_failing).
    pub last_failure: Option<Failure>,
    /// The number of targets that are served.
    pub targets: usize,
    /// Whether the source has failed since its last success.
    pub is_failing: bool,
    /// Whether a set is served that the last answer contradicts, because that answer is empty or
    /// has lost more than half of the targets.
    pub is_keeping: bool,
    /// Whether there will be no further answer.
    pub has_ended: bool,
}

/// A failure of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// When it happened.
    pub at: Instant,
    /// What the source said, in its own words.
    pub error: String,
}

impl SourceState {
    /// Returns how long ago the last successful answer came; `None` before the first.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.last_success.map(|at| at.elapsed())
    }

    /// Returns whether the targets that are served may not be true any more.
    ///
    /// That is so while the source fails, while an answer is not believed, and after its end.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.is_failing || self.is_keeping || self.has_ended
    }
}
