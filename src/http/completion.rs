use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::load::TrackCompletion;

use crate::outcome::{Outcome, Settle};

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
/// In outlier detection, the first data of a body makes a probe succeed. A request that its caller
/// drops after that does not count for `cancelled_after`.
///
/// A body that breaks off is a failure if the head left the outcome undecided.
/// [`HttpStatus`](super::HttpStatus) leaves it undecided only if told to:
/// `.class(2, Outcome::Undecided)`.
///
/// After status 101 or `CONNECT` a request is over at once, because what follows is not a body. So
/// an upgraded connection, such as a WebSocket, does not count as in flight: to balance those,
/// count them where they are used, by a handle that lives as long as the connection. The same is
/// true of a body that already reports its end ([`is_end_stream`](Body::is_end_stream)), such as
/// that of an answer to `HEAD`.
///
/// With [`PeakEwma`](crate::PeakEwma) the latency is that of the whole body. This is right for
/// downloads and unary calls, and wrong for streams that live for hours.
///
/// Allocates nothing, neither for a request nor for a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct CompleteOnBody<K = EndIsSuccess> {
    classify: K,
}

/// Counts a request until its response's body yields its first data or ends.
///
/// Use it for streams whose first message is the answer, and for servers whose work is over when
/// they start to send. The first data is a success if the head left the outcome undecided. If the
/// body ends without data, the classifier decides:
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
pub struct CompleteOnFirstData<K = EndIsSuccess> {
    classify: K,
}

/// Decides the outcome of an answer from the end of its body.
///
/// It is asked only if the head of the response left the outcome undecided.
pub trait ClassifyEnd {
    /// Classifies a body that has ended, with its trailers if it had any.
    fn classify_end(&self, trailers: Option<&HeaderMap>) -> Outcome;

    /// Classifies a body that broke off. Default: a failure.
    fn classify_break(&self) -> Outcome {
        Outcome::Failure
    }
}

/// Treats a body that ends as a success, and one that breaks off as a failure.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct EndIsSuccess;

pin_project! {
    /// A response body that counts as a request in flight.
    ///
    /// # Cancel safety
    ///
    /// A body that is dropped before its end gives the count back. An undecided outcome stays
    /// undecided.
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
            classify: EndIsSuccess,
        }
    }

    /// Counts until the body's end. `classify` then decides what the response's head left
    /// undecided.
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
            classify: EndIsSuccess,
        }
    }

    /// Counts until the first data.
    ///
    /// If the body ends without data, `classify` decides what the response's head left undecided.
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

/// Settles an undecided outcome, and gives the count back.
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
                // A caller need not poll a body again once it reports its end.
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

impl ClassifyEnd for EndIsSuccess {
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
