use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::load::TrackCompletion;

use crate::load::{Outcome, Settle};

/// Counts a request until the body of its response has ended, has failed or is dropped.
///
/// For trackers and outlier detection:
///
/// ```
/// use tower_lb::{OutlierLayer, PendingRequestsLayer, http::{CompleteOnBody, GrpcStatus}};
///
/// let tracker = PendingRequestsLayer::default().completion(CompleteOnBody::new());
/// // A gRPC status is in the trailers:
/// let outliers = OutlierLayer::default()
///     .classify(GrpcStatus::new())
///     .completion(CompleteOnBody::classify(GrpcStatus::new()));
/// # let _ = (tracker, outliers);
/// ```
///
/// For outlier detection, a stream's first data ends a probe of its endpoint well, and what the caller then leaves is not what
/// `cancelled_after` means. A body that breaks off is a failure if the head has left it undecided, which [`HttpStatus`](super::HttpStatus)
/// does not, unless told: `.class(2, Outcome::Undecided)`. With 101 and after CONNECT a request is over at once, for what
/// follows is no body.
///
/// With [`PeakEwma`](crate::PeakEwma) a latency then is that of the whole body: right for downloads and unary calls, wrong for streams that
/// live for hours. A body that says that it ends ([`is_end_stream`](Body::is_end_stream)), as that of an answer to `HEAD` does, ends at once.
/// No allocation, none for a frame either.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompleteOnBody<K = BodiesSayNothing> {
    classify: K,
}

/// Counts a request until the first data of its response's body, or its end if it has none.
///
/// For streams whose first message is the answer, and servers whose work is over when they start to send. The first data is a
/// success, where the head has not decided; a body that ends without is what the classifier says:
///
/// ```
/// use tower_lb::{OutlierLayer, http::{CompleteOnFirstData, GrpcStatus}};
///
/// let outliers = OutlierLayer::default()
///     .classify(GrpcStatus::new())
///     .completion(CompleteOnFirstData::classify(GrpcStatus::new()));
/// # let _ = outliers;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CompleteOnFirstData<K = BodiesSayNothing> {
    classify: K,
}

/// Decides what the end of a body says of the endpoint that sent it.
///
/// Asked only where the head of the response has not decided.
pub trait ClassifyEnd {
    /// Classifies a body that has ended, with its trailers if it had any.
    fn classify_end(&self, trailers: Option<&HeaderMap>) -> Outcome;

    /// Classifies a body that broke off. Default: a failure.
    fn classify_break(&self) -> Outcome {
        Outcome::Failure
    }
}

/// Takes every body that ends for a success, and one that breaks off for a failure.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct BodiesSayNothing;

pin_project! {
    /// A response's body that counts as a request in flight.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end, it gives the count back; what was undecided stays so.
    pub struct TrackedBody<B, H, K> {
        #[pin]
        body: B,
        handle: Option<H>,
        classify: K,
        until: Until,
        has_data: bool,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    End,
    FirstData,
}

impl CompleteOnBody {
    /// Counts until the body's end.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            classify: BodiesSayNothing,
        }
    }

    /// Counts until the body's end, which decides what the response's head has not.
    #[must_use]
    pub const fn classify<K>(classify: K) -> CompleteOnBody<K> {
        CompleteOnBody { classify }
    }
}

impl<H, B, K> TrackCompletion<H, Response<B>> for CompleteOnBody<K>
where
    H: Settle,
    B: Body,
    K: ClassifyEnd + Clone,
{
    type Output = Response<TrackedBody<B, H, K>>;

    fn track_completion(&self, handle: H, response: Response<B>) -> Self::Output {
        let classify = self.classify.clone();
        response.map(|body| TrackedBody::new(body, handle, classify, Until::End))
    }
}

impl CompleteOnFirstData {
    /// Counts until the first data.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            classify: BodiesSayNothing,
        }
    }

    /// Counts until the first data, or the end of a body without, which decides what the response's head has not.
    #[must_use]
    pub const fn classify<K>(classify: K) -> CompleteOnFirstData<K> {
        CompleteOnFirstData { classify }
    }
}

impl<H, B, K> TrackCompletion<H, Response<B>> for CompleteOnFirstData<K>
where
    H: Settle,
    B: Body,
    K: ClassifyEnd + Clone,
{
    type Output = Response<TrackedBody<B, H, K>>;

    fn track_completion(&self, handle: H, response: Response<B>) -> Self::Output {
        let classify = self.classify.clone();
        response.map(|body| TrackedBody::new(body, handle, classify, Until::FirstData))
    }
}

impl<B, H, K> TrackedBody<B, H, K> {
    /// Returns the wrapped body.
    pub const fn get_ref(&self) -> &B {
        &self.body
    }
}

impl<B: Body, H: Settle, K: ClassifyEnd> TrackedBody<B, H, K> {
    fn new(body: B, handle: H, classify: K, until: Until) -> Self {
        let mut this = Self {
            handle: Some(handle),
            classify,
            until,
            has_data: false,
            body,
        };
        if this.body.is_end_stream() {
            end(&mut this.handle, || this.classify.classify_end(None));
        }
        this
    }
}

/// Settles what is undecided, and gives the count back.
fn end<H: Settle>(handle: &mut Option<H>, outcome: impl FnOnce() -> Outcome) {
    if let Some(mut handle) = handle.take() {
        handle.settle(outcome());
    }
}

impl<B: Body, H: Settle, K: ClassifyEnd> Body for TrackedBody<B, H, K> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        match &frame {
            None => end(this.handle, || this.classify.classify_end(None)),
            Some(Err(_)) => end(this.handle, || this.classify.classify_break()),
            Some(Ok(frame)) => match frame.trailers_ref() {
                Some(trailers) => end(this.handle, || this.classify.classify_end(Some(trailers))),
                // Nobody need ask a body again that says that it has ended.
                None if this.body.is_end_stream() => {
                    end(this.handle, || this.classify.classify_end(None));
                }
                None if !*this.has_data => {
                    *this.has_data = frame.is_data();
                    match *this.until {
                        _ if !*this.has_data => {}
                        Until::FirstData => end(this.handle, || Outcome::Success),
                        Until::End => this.handle.iter_mut().for_each(Settle::first_data),
                    }
                }
                None => {}
            },
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl ClassifyEnd for BodiesSayNothing {
    fn classify_end(&self, _: Option<&HeaderMap>) -> Outcome {
        Outcome::Success
    }
}

impl<B: Default, H, K: Default> Default for TrackedBody<B, H, K> {
    fn default() -> Self {
        Self {
            body: B::default(),
            handle: None,
            classify: K::default(),
            until: Until::End,
            has_data: false,
        }
    }
}

impl<B: fmt::Debug, H, K> fmt::Debug for TrackedBody<B, H, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedBody")
            .field("body", &self.body)
            .field("is_counted", &self.handle.is_some())
            .finish_non_exhaustive()
    }
}
