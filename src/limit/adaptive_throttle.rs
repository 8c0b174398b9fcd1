use std::{
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

use crate::{
    budget::Window,
    clock::{now, now_from},
    endpoint::Endpoint,
    error::Throttled,
    outcome::{Classify, ErrorsAreFailures, Outcome},
    random::{Rng, entropy},
    split_arc::{Part, SplitArc},
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// Rejects requests locally that the backends would reject.
///
/// It counts the requests of the last ten seconds, and how many of them were accepted. While the
/// backends accept at least one in K = 2, it rejects nothing. When they accept less, it rejects
/// requests at random; the backends then see K times what they accept:
///
/// ```text
/// probability = max(0, (requests - K x accepts) / (requests + 1))
/// ```
///
/// An answer that the classifier calls a [failure](Outcome::Failure) was not accepted; every other
/// answer was. If the backends tell overload from other errors, use a classifier that does so, too.
/// A request counts when it is decided: at its answer, or when it is rejected here. So a burst, or
/// a backend that takes long, is no reason to reject. A request that its caller drops does not
/// count. Above retries, this layer judges the final answer to each request. Below them, it also
/// stops retries.
///
/// At least one request a second is let through whatever the counts say. Once the backends work
/// again, nineteen in twenty requests pass within a minute.
///
/// Cost: one reading of the clock, two atomic operations and an `Arc`; no allocation, and no
/// waiting for a lock.
///
/// ```
/// use tower_lb::AdaptiveThrottleLayer;
///
/// let layer = AdaptiveThrottleLayer::default();
/// # let _: AdaptiveThrottleLayer = layer;
/// ```
///
/// Source: Beyer et al., "Site Reliability Engineering", 2016, chapter 21, "Client-Side
/// Throttling".
#[derive(Clone, Debug)]
pub struct AdaptiveThrottleLayer<K = ErrorsAreFailures> {
    k: f64,
    window: Duration,
    classify: K,
    seed: Option<u64>,
}

/// A service that rejects what its backends would reject; see [`AdaptiveThrottleLayer`].
pub struct AdaptiveThrottle<S, K = ErrorsAreFailures> {
    service: S,
    classify: K,
    shared: SplitArc<ThrottleState>,
    rng: Rng,
}

struct ThrottleState {
    k: f64,
    /// The requests and the accepts.
    counts: Window<2>,
    /// When a request is let through that would be rejected, unless another one is sent before. In
    /// ns.
    trial_at: AtomicU64,
    seed: u64,
    handles: AtomicU64,
}

pin_project! {
    /// The response future of an [`AdaptiveThrottle`].
    ///
    /// # Cancel safety
    ///
    /// A request that is dropped before it is done does not count.
    pub struct ThrottleFuture<F, K> {
        #[pin]
        state: State<F, K>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, K> {
        Sent { #[pin] future: F, classify: K, shared: Part<ThrottleState> },
        Rejected { error: Throttled },
    }
}

impl AdaptiveThrottleLayer {
    /// Starts with K = 2, a window of ten seconds, and every error as a rejection.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            k: 2.0,
            window: Duration::from_secs(10),
            classify: ErrorsAreFailures,
            seed: None,
        }
    }
}

impl<K> AdaptiveThrottleLayer<K> {
    /// Sets how many times the accepted requests the backends see. Default 2.
    ///
    /// A lower K rejects sooner and spares the backends. A higher K notices sooner that they work
    /// again.
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

    /// Sets how far back requests count. Default 10 s.
    ///
    /// After an outage the window is full of rejections. With two minutes, as in the book, it takes
    /// more than five minutes until nearly all requests pass again. With a shorter window, the few
    /// requests of a quiet client decide more by chance.
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

    /// Sets which answers are rejections: those that `classify` calls failures. Default: errors.
    ///
    /// `http::HttpStatus` and `http::GrpcStatus` take 429 and RESOURCE_EXHAUSTED for neutral. Set
    /// them to a failure if backends answer so at their limit.
    #[must_use]
    pub fn classify<D>(self, classify: D) -> AdaptiveThrottleLayer<D> {
        AdaptiveThrottleLayer {
            k: self.k,
            window: self.window,
            classify,
            seed: self.seed,
        }
    }

    /// Makes the choice of rejected requests reproducible.
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

impl<S, K: Clone> Layer<S> for AdaptiveThrottleLayer<K> {
    type Service = AdaptiveThrottle<S, K>;

    fn layer(&self, service: S) -> Self::Service {
        let seed = self.seed.unwrap_or_else(entropy);
        let window = u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX);
        let now = now();
        AdaptiveThrottle {
            service,
            classify: self.classify.clone(),
            shared: SplitArc::new(Arc::new(ThrottleState {
                k: self.k,
                counts: Window::new([0; 2], window, SLOTS, now),
                trial_at: AtomicU64::new(0),
                seed,
                handles: AtomicU64::new(0),
            })),
            rng: Rng::new(seed, 0),
        }
    }
}

impl ThrottleState {
    /// Returns the current probability of rejection.
    fn probability(&self) -> f64 {
        self.counts.expire(now_from, || [0; 2]);
        let [requests, accepts] = self.counts.totals().map(|total| total as f64);
        let probability = (requests - self.k * accepts) / (requests + 1.0);
        probability.clamp(0.0, 1.0)
    }

    /// Returns whether a request is sent. `drawn` is a random number from 0 to 1.
    fn admits(&self, drawn: f64, probability: f64) -> bool {
        // Usually so, and then the clock is not read again.
        if probability == 0.0 {
            return true;
        }
        let (now, trial_at) = (now(), self.trial_at.load(Relaxed));
        let next = now.saturating_add(TRIAL_INTERVAL);
        if drawn >= probability {
            self.trial_at.store(next, Relaxed);
            return true;
        }
        // Of several threads, one succeeds.
        let swap = || {
            self.trial_at
                .compare_exchange(trial_at, next, Relaxed, Relaxed)
        };
        now >= trial_at && swap().is_ok()
    }
}

impl<S, K> AdaptiveThrottle<S, K> {
    /// Returns the probability that a request would be rejected now.
    #[must_use]
    pub fn probability(&self) -> f64 {
        self.shared.probability()
    }
}

impl<S, K, Req> Service<Req> for AdaptiveThrottle<S, K>
where
    S: Service<Req, Error: Into<BoxError>>,
    K: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ThrottleFuture<S::Future, K>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.send(|service| service.call(request))
    }
}

impl<S, K: Clone> AdaptiveThrottle<S, K> {
    fn send<F>(&mut self, call: impl FnOnce(&mut S) -> F) -> ThrottleFuture<F, K> {
        let probability = self.shared.probability();
        // 53 bits: the precision of an `f64`.
        let drawn = (self.rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let state = if self.shared.admits(drawn, probability) {
            State::Sent {
                future: call(&mut self.service),
                classify: self.classify.clone(),
                shared: self.shared.lend(),
            }
        } else {
            self.shared.counts.add_to(REQUESTS, 1);
            let error = Throttled::new(probability);
            State::Rejected { error }
        };
        ThrottleFuture { state }
    }
}

impl<S: SendsElsewhere, K> SendsElsewhere for AdaptiveThrottle<S, K> {}

impl<S, K, Req> CallExcluding<Req> for AdaptiveThrottle<S, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>>,
    K: Classify<S::Response, S::Error> + Clone,
{
    type Address = S::Address;

    fn called(&self, future: &Self::Future) -> Vec<Endpoint<S::Address>> {
        match &future.state {
            State::Sent { future, .. } => self.service.called(future),
            State::Rejected { .. } => Vec::new(),
        }
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<S::Address>) -> Self::Future {
        self.send(|service| service.call_excluding(request, tried))
    }

    fn has_other(&self, tried: &Tried<S::Address>) -> bool {
        self.service.has_other(tried)
    }
}

impl<F, K, T, E> Future for ThrottleFuture<F, K>
where
    F: Future<Output = Result<T, E>>,
    K: Classify<T, E>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Rejected { error } => Poll::Ready(Err((*error).into())),
            StateProj::Sent {
                future,
                classify,
                shared,
            } => {
                let answer = ready!(future.poll(cx));
                // Before the request: of a healthy backend, no thread ever sees more requests than
                // accepts.
                if classify.classify(answer.as_ref()) != Outcome::Failure {
                    shared.counts.add_to(ACCEPTS, 1);
                }
                shared.counts.add_to(REQUESTS, 1);
                Poll::Ready(answer.map_err(Into::into))
            }
        }
    }
}

/// The clone is not ready, and draws random numbers of its own.
impl<S: Clone, K: Clone> Clone for AdaptiveThrottle<S, K> {
    fn clone(&self) -> Self {
        // Relaxed: the numbers only need to differ.
        let handle = self.shared.handles.fetch_add(1, Relaxed) + 1;
        Self {
            service: self.service.clone(),
            classify: self.classify.clone(),
            rng: Rng::new(self.shared.seed, handle),
            shared: self.shared.share().0,
        }
    }
}

impl<S: fmt::Debug, K> fmt::Debug for AdaptiveThrottle<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveThrottle")
            .field("service", &self.service)
            .field("probability", &self.probability())
            .finish_non_exhaustive()
    }
}

impl<F, K> fmt::Debug for ThrottleFuture<F, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rejected = matches!(self.state, State::Rejected { .. });
        f.debug_struct("ThrottleFuture")
            .field("rejected", &rejected)
            .finish_non_exhaustive()
    }
}

const REQUESTS: usize = 0;
const ACCEPTS: usize = 1;

/// The counts are exact to a hundredth of the window. With fewer slots, backends that accept so
/// many requests in each second would be throttled for too little.
const SLOTS: usize = 100;

/// In ns. One request a second is a small load, and finds out that the backends work again.
const TRIAL_INTERVAL: u64 = 1_000_000_000;
