/// What an answer says of the endpoint that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The endpoint did its work.
    Success,
    /// The endpoint did not do its work, however fast it said so.
    Failure,
    /// The answer says nothing of the endpoint, like a request that was refused as malformed; but that it answers,
    /// unless it is an error.
    Ignore,
    /// The rest of the answer will tell, its body's trailers, say.
    ///
    /// Whoever completes the request then [settles](Settle) it; if nobody does, [`PeakEwma`](crate::PeakEwma) learns
    /// nothing from it, and outlier detection takes it for cancelled.
    Undecided,
}

/// Takes what an answer has turned out to be, after its head had been [undecided](Outcome::Undecided).
///
/// The handles that trackers and outlier detection give to a [`TrackCompletion`](tower::load::TrackCompletion) implement it.
pub trait Settle {
    /// Says what the answer is; what was decided once stands.
    fn settle(&mut self, outcome: Outcome);

    /// Says that the first data of the answer has come: it is not for waiting in vain if it takes long from now on.
    fn first_data(&mut self) {}
}

impl Outcome {
    /// Returns whether it is a success; `None` if it says nothing.
    #[must_use]
    pub const fn is_success(self) -> Option<bool> {
        match self {
            Self::Success => Some(true),
            Self::Failure => Some(false),
            Self::Ignore | Self::Undecided => None,
        }
    }
}

/// Decides what an answer says of the endpoint that gave it.
///
/// Any `Fn(Result<&Response, &Error>) -> Outcome` is one:
///
/// ```
/// use tower_lb::{Outcome, PeakEwmaLayer};
///
/// let layer = PeakEwmaLayer::default().classify(|answer: Result<&u16, &std::io::Error>| match answer {
///     Ok(500..) | Err(_) => Outcome::Failure,
///     Ok(400..500) => Outcome::Ignore,
///     Ok(_) => Outcome::Success,
/// });
/// # let _ = layer;
/// ```
pub trait Classify<Response, Error> {
    /// Classifies one answer. Must be cheap: it runs once for every request.
    fn classify(&self, answer: Result<&Response, &Error>) -> Outcome;
}

impl<Response, Error, F> Classify<Response, Error> for F
where
    F: Fn(Result<&Response, &Error>) -> Outcome,
{
    fn classify(&self, answer: Result<&Response, &Error>) -> Outcome {
        self(answer)
    }
}

/// Takes every `Err` for a failure and every `Ok` for a success: the default.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ErrorsAreFailures;

impl<Response, Error> Classify<Response, Error> for ErrorsAreFailures {
    fn classify(&self, answer: Result<&Response, &Error>) -> Outcome {
        match answer {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        }
    }
}
