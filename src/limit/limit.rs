use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower::{BoxError, Layer, Service};

use crate::{
    endpoint::Endpoint,
    error::LimitReached,
    metric::InFlight,
    split_arc::{Part, SplitArc},
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// Rejects requests above a number in flight, with an error that names the limit.
///
/// It is for requests that must not wait. For other limits, use tower's own layers; the
/// [module's table](super) lists them.
///
/// A request counts from its call until its future is done or dropped. Clones of the service share
/// the count. Cost: two atomic operations and an `Arc`; no allocation.
///
/// ```
/// use tower_lb::LimitLayer;
///
/// let layer = LimitLayer::new(1000).named("payments");
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
pub struct LimitLayer {
    max: usize,
    name: Option<Arc<str>>,
}

/// A service that takes a limited number of requests at once; see [`LimitLayer`].
pub struct Limit<S> {
    service: S,
    shared: SplitArc<LimitState>,
}

#[derive(Debug)]
struct LimitState {
    in_flight: AtomicUsize,
    limit: LimitReached,
}

pin_project! {
    /// The response future of a [`Limit`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it before it is done makes room for another request.
    #[derive(Debug)]
    pub struct LimitFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<F> {
        Sent { #[pin] future: F, permit: Option<Permit> },
        Rejected { error: LimitReached },
    }
}

#[derive(Debug)]
struct Permit(Part<LimitState>);

impl LimitLayer {
    /// Takes at most `max` requests at once; 0 rejects all.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { max, name: None }
    }

    /// Sets the name of the limit, which the error contains.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, service: S) -> Limit<S> {
        let limit = LimitReached::new(self.max, self.name.clone());
        Limit {
            service,
            shared: SplitArc::new(Arc::new(LimitState {
                in_flight: AtomicUsize::new(0),
                limit,
            })),
        }
    }
}

impl LimitState {
    /// Counts a request if there is room. Returns whether there is.
    fn admits(&self) -> bool {
        // Relaxed: one number that publishes nothing.
        let admitted = self.in_flight.fetch_update(Relaxed, Relaxed, |in_flight| {
            (in_flight < self.limit.max()).then(|| in_flight + 1)
        });
        admitted.is_ok()
    }
}

impl<S, Req> Service<Req> for Limit<S>
where
    S: Service<Req, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = LimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.send(|service| service.call(request))
    }
}

impl<S> Limit<S> {
    fn send<F>(&mut self, call: impl FnOnce(&mut S) -> F) -> LimitFuture<F> {
        let state = match self.shared.admits() {
            true => {
                // Made before the call, so that a call that panics makes room again.
                let permit = Some(Permit(self.shared.lend()));
                let future = call(&mut self.service);
                State::Sent { future, permit }
            }
            false => State::Rejected {
                error: self.shared.limit.clone(),
            },
        };
        LimitFuture { state }
    }
}

impl<S: SendsElsewhere> SendsElsewhere for Limit<S> {}

impl<S, Req> CallExcluding<Req> for Limit<S>
where
    S: CallExcluding<Req, Error: Into<BoxError>>,
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

impl<F, T, E> Future for LimitFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Rejected { error } => Poll::Ready(Err(error.clone().into())),
            StateProj::Sent { future, permit } => {
                let answer = future.poll(cx);
                if answer.is_ready() {
                    // Before the caller sees the answer, so that its next request finds room.
                    *permit = None;
                }
                answer.map_err(Into::into)
            }
        }
    }
}

impl<S> InFlight for Limit<S> {
    fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// The clone is not ready: each handle becomes ready by itself.
impl<S: Clone> Clone for Limit<S> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            shared: self.shared.share().0,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Limit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("service", &self.service)
            .field("in_flight", &self.in_flight())
            .field("limit", &self.shared.limit)
            .finish()
    }
}
