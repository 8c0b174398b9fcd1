//! What an answer tells about its endpoint.

/// What an answer tells about the endpoint that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The endpoint did its work.
    Success,
    /// The endpoint did not do its work, however fast it answered.
    Failure,
    /// The answer tells nothing about the endpoint's health, like the refusal of a malformed
    /// request. An `Ok` still shows that the endpoint answers. An `Err` does not show even that.
    Neutral,
    /// The rest of the answer will tell, for example the trailers of its body.
    ///
    /// The code that completes the request then [settles](Settle) it. If it never does,
    /// [`PeakEwma`](crate::PeakEwma) learns nothing from the answer, and outlier detection treats
    /// the request as cancelled.
    Undecided,
}

/// Receives the outcome of an answer whose head was [undecided](Outcome::Undecided).
///
/// Trackers and outlier detection give a handle to a
/// [`TrackCompletion`](tower::load::TrackCompletion). The handle implements this trait.
pub trait Settle {
    /// Sets the outcome. The first outcome that is not undecided stands.
    fn settle(&mut self, outcome: Outcome);

    /// Reports that the first data of the answer has arrived. Default: does nothing.
    ///
    /// From then on the caller no longer waits in vain, however long the rest takes.
    fn first_data(&mut self) {}
}

impl Outcome {
    /// Returns whether it is a success; `None` if the outcome is neutral or undecided.
    #[must_use]
    pub const fn is_success(self) -> Option<bool> {
        match self {
            Self::Success => Some(true),
            Self::Failure => Some(false),
            Self::Neutral | Self::Undecided => None,
        }
    }
}

/// A classifier with the completion that it needs.
///
/// For outcomes that the end of an answer tells. `OutlierLayer::outcomes` and
/// `PeakEwmaLayer::outcomes` set both at once.
pub trait Outcomes {
    /// Classifies the head of an answer.
    type Classify;
    /// Completes the request, and settles what the head left undecided.
    type Completion;

    /// Returns both.
    fn outcomes(self) -> (Self::Classify, Self::Completion);
}

/// Decides what an answer tells about the endpoint that gave it.
///
/// Any `Fn(Result<&Response, &Error>) -> Outcome` is one:
///
/// ```
/// use tower_lb::{Outcome, PeakEwmaLayer};
///
/// let layer = PeakEwmaLayer::default().classify(|answer: Result<&u16, &std::io::Error>| match answer {
///     Ok(500..) | Err(_) => Outcome::Failure,
///     Ok(400..500) => Outcome::Neutral,
///     Ok(_) => Outcome::Success,
/// });
/// # let _ = layer;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not classify these answers",
    label = "no classifier of `Result<&{Response}, &{Error}>`",
    note = "a closure must name its argument's type: `|answer: Result<&Response, &Error>| Outcome::Success`",
    note = "`HttpStatus` and `GrpcStatus` are for answers that are `http::Response`s"
)]
pub trait Classify<Response, Error> {
    /// Classifies one answer. Must be cheap: it runs once for every request.
    fn classify(&self, answer: Result<&Response, &Error>) -> Outcome;
}

#[diagnostic::do_not_recommend]
impl<Response, Error, F> Classify<Response, Error> for F
where
    F: Fn(Result<&Response, &Error>) -> Outcome,
{
    fn classify(&self, answer: Result<&Response, &Error>) -> Outcome {
        self(answer)
    }
}

/// Classifies every `Err` as a failure and every `Ok` as a success. This is the default.
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
