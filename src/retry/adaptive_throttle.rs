use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower::{BoxError, Layer, Service};

use super::window::Window;
use crate::{
    balance::{CallExcluding, Tried},
    chance::entropy,
    endpoint::Endpoint,
    load::{Classify, ErrorsAreFailures, Outcome},
    metric::{now, now_from},
    policy::Rng,
};

/// Rejects locally what the backends would reject.
///
/// Of the requests of the last two minutes it counts all, and those that were accepted. While backends accept at
/// least one in K = 2, nothing is rejected here; where they accept less, requests are rejected by chance so that the
/// backends see K times what they accept:
///
/// ```text
/// probability = max(0, (requests - K x accepts) / (requests + 1))
/// ```
///
/// An answer that the classifier takes for a [failure](Outcome::Failure) was not accepted, every other one was; take a classifier that
/// tells overload from other errors, where the backends do. A request that its caller gave up counts as if it had not been
/// sent. Put this layer above retries, so that it judges what becomes of requests, or below them, to stop retries too.
///
/// Cost: one reading of the clock and two atomic operations; no allocation, no lock.
///
/// ```
/// use tower_lb::retry::AdaptiveThrottleLayer;
///
/// let layer = AdaptiveThrottleLayer::default();
/// # let _: AdaptiveThrottleLayer = layer;
/// ```
///
/// Source: Beyer et al., "Site Reliability Engineering", 2016, chapter 21, "Client-Side Throttling".
#[derive(Clone, Debug)]
pub struct AdaptiveThrottleLayer<C = ErrorsAreFailures> {
    k: f64,
    window: Duration,
    classify: C,
    seed: Option<u64>,
}

/// A service that rejects what its backends would reject; see [`AdaptiveThrottleLayer`].
pub struct AdaptiveThrottle<S, C = ErrorsAreFailures> {
    service: S,
    classify: C,
    shared: Arc<Shared>,
    rng: Rng,
}

/// Says that a request was rejected locally, for the backends have rejected most of late.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttled {
    probability: f64,
}

struct Shared {
    k: f64,
    requests: Window,
    accepts: Window,
    seed: u64,
    handles: AtomicU64,
}

pin_project! {
    /// The response future of an [`AdaptiveThrottle`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is done, the request counts as if it had not been sent.
    pub struct ThrottleFuture<F, C> {
        #[pin]
        state: State<F, C>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, C> {
        Sent { #[pin] future: F, classify: C, request: Request },
        Rejected { error: Throttled },
    }
}

/// A request that was sent, and is to be taken back if it is dropped unanswered.
struct Request {
    shared: Arc<Shared>,
    answered: bool,
}

impl AdaptiveThrottleLayer {
    /// Starts with K = 2, a window of two minutes, and every error a rejection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            k: 2.0,
            window: Duration::from_secs(120),
            classify: ErrorsAreFailures,
            seed: None,
        }
    }
}

impl<C> AdaptiveThrottleLayer<C> {
    /// Sets how many times what they accept the backends are to see. Default 2.
    ///
    /// Less rejects sooner and spares the backends; more notices sooner that they are well again.
    ///
    /// # Panics
    ///
    /// If it is below 1 or not finite.
    #[must_use]
    #[track_caller]
    pub fn k(mut self, k: f64) -> Self {
        assert!(k >= 1.0 && k.is_finite(), "K must be at least 1 and finite");
        self.k = k;
        self
    }

    /// Sets how far back requests count. Default 2 min.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn window(mut self, window: Duration) -> Self {
        assert!(!window.is_zero(), "the window must not be zero");
        self.window = window;
        self
    }

    /// Sets which answers are rejections: those that are failures. Default: errors.
    #[must_use]
    pub fn classify<D>(self, classify: D) -> AdaptiveThrottleLayer<D> {
        AdaptiveThrottleLayer {
            k: self.k,
            window: self.window,
            classify,
            seed: self.seed,
        }
    }

    /// Makes the choice of the requests that are rejected repeatable.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl Default for AdaptiveThrottleLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, C: Clone> Layer<S> for AdaptiveThrottleLayer<C> {
    type Service = AdaptiveThrottle<S, C>;

    fn layer(&self, service: S) -> Self::Service {
        let seed = self.seed.unwrap_or_else(entropy);
        let window = u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX);
        let now = now();
        AdaptiveThrottle {
            service,
            classify: self.classify.clone(),
            shared: Arc::new(Shared {
                k: self.k,
                requests: Window::new(0, window, now),
                accepts: Window::new(0, window, now),
                seed,
                handles: AtomicU64::new(0),
            }),
            rng: Rng::new(seed, 0),
        }
    }
}

impl Shared {
    /// Returns the probability to reject with, at this moment.
    fn probability(&self) -> f64 {
        // One reading for both: what is left of them must be of the same time.
        if let Some(now) = now_from(self.requests.ends().min(self.accepts.ends())) {
            let at = |from| (now >= from).then_some(now);
            self.requests.expire(at, || 0);
            self.accepts.expire(at, || 0);
        }
        let (requests, accepts) = (self.requests.total() as f64, self.accepts.total() as f64);
        ((requests - self.k * accepts) / (requests + 1.0)).max(0.0)
    }
}

impl<S, C> AdaptiveThrottle<S, C> {
    /// Returns the probability with which a request would be rejected now.
    #[must_use]
    pub fn probability(&self) -> f64 {
        self.shared.probability()
    }
}

impl<S, C, Req> Service<Req> for AdaptiveThrottle<S, C>
where
    S: Service<Req, Error: Into<BoxError>>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ThrottleFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.send(|service| service.call(request))
    }
}

impl<S, C: Clone> AdaptiveThrottle<S, C> {
    fn send<F>(&mut self, call: impl FnOnce(&mut S) -> F) -> ThrottleFuture<F, C> {
        let probability = self.shared.probability();
        self.shared.requests.add(1);
        // 53 bits: what an f64 holds.
        let drawn = (self.rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let state = if drawn < probability {
            let error = Throttled { probability };
            State::Rejected { error }
        } else {
            let sent = Request {
                shared: self.shared.clone(),
                answered: false,
            };
            State::Sent {
                future: call(&mut self.service),
                classify: self.classify.clone(),
                request: sent,
            }
        };
        ThrottleFuture { state }
    }
}

impl<S, C, Req> CallExcluding<Req> for AdaptiveThrottle<S, C>
where
    S: CallExcluding<Req, Error: Into<BoxError>>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Address = S::Address;
    type Trace = S::Trace;

    fn trace(&self) -> S::Trace {
        self.service.trace()
    }

    fn called(&self, future: &Self::Future, trace: &S::Trace) -> Vec<Endpoint<S::Address>> {
        match &future.state {
            State::Sent { future, .. } => self.service.called(future, trace),
            State::Rejected { .. } => Vec::new(),
        }
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<S::Address>) -> Self::Future {
        self.send(|service| service.call_excluding(request, tried))
    }
}

impl<F, C, T, E> Future for ThrottleFuture<F, C>
where
    F: Future<Output = Result<T, E>>,
    C: Classify<T, E>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Rejected { error } => Poll::Ready(Err((*error).into())),
            StateProj::Sent {
                future,
                classify,
                request,
            } => {
                let answer = ready!(future.poll(cx));
                request.answered = true;
                if classify.classify(answer.as_ref()) != Outcome::Failure {
                    request.shared.accepts.add(1);
                }
                Poll::Ready(answer.map_err(Into::into))
            }
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.requests.add(-1);
        }
    }
}

/// The clone is not ready, and draws numbers of its own.
impl<S: Clone, C: Clone> Clone for AdaptiveThrottle<S, C> {
    fn clone(&self) -> Self {
        // Relaxed: only the number must differ.
        let handle = self.shared.handles.fetch_add(1, Relaxed) + 1;
        Self {
            service: self.service.clone(),
            classify: self.classify.clone(),
            rng: Rng::new(self.shared.seed, handle),
            shared: self.shared.clone(),
        }
    }
}

impl Throttled {
    /// Returns the probability with which requests were rejected then.
    #[must_use]
    pub const fn probability(self) -> f64 {
        self.probability
    }
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.probability * 100.0;
        write!(
            f,
            "rejected locally, as {percent:.0} % of requests: the backends reject most"
        )
    }
}

impl Error for Throttled {}

impl<S: fmt::Debug, C> fmt::Debug for AdaptiveThrottle<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveThrottle")
            .field("service", &self.service)
            .field("probability", &self.probability())
            .finish_non_exhaustive()
    }
}

impl<F, C> fmt::Debug for ThrottleFuture<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rejected = matches!(self.state, State::Rejected { .. });
        f.debug_struct("ThrottleFuture")
            .field("rejected", &rejected)
            .finish_non_exhaustive()
    }
}
