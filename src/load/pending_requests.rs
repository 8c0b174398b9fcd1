use std::{
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tower::{
    Layer, Service,
    load::{CompleteOnResponse, Load, TrackCompletion},
};

use super::{
    Outcome,
    classify::ErrorsAreFailures,
    track::{Handle, TrackFuture},
};
use crate::metric::InFlight;

/// Measures a service by its requests in flight.
///
/// Clones share the count. Cost: a request adds one atomic increment and one decrement, reading is one
/// load; 64 bytes of heap for each endpoint.
///
/// ```
/// use tower::{Service, ServiceExt, service_fn};
/// use tower_lb::{InFlight, PendingRequests};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let mut service = PendingRequests::new(service_fn(|n: u32| async move { Ok::<_, String>(n + 1) }));
/// let answer = service.ready().await?.call(1);
/// assert_eq!(service.in_flight(), 1);
/// assert_eq!(answer.await?, 2);
/// assert_eq!(service.in_flight(), 0);
/// # Ok::<_, String>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PendingRequests<S, C = CompleteOnResponse> {
    service: S,
    completion: C,
    requests: Arc<CacheLine>,
}

/// Wraps services with [`PendingRequests`].
#[derive(Clone, Debug)]
pub struct PendingRequestsLayer<C = CompleteOnResponse> {
    completion: C,
}

/// Counts one request in flight until it is dropped.
///
/// Services hold the allocation by strong references and requests by weak ones, so that the weak count
/// *is* the number of requests in flight: one atomic operation both counts a request and keeps the
/// counter alive.
#[derive(Debug)]
pub struct PendingRequestsHandle {
    _request: Weak<CacheLine>,
}

/// Keeps the counts of two endpoints out of each other's cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct CacheLine;

impl<S> PendingRequests<S> {
    /// Wraps a service whose requests are over when its response futures are.
    pub fn new(service: S) -> Self {
        PendingRequestsLayer::default().layer(service)
    }
}

impl<S, C> PendingRequests<S, C> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }
}

// For the default completion alone, so that `default()` infers.
impl Default for PendingRequestsLayer {
    fn default() -> Self {
        Self {
            completion: CompleteOnResponse::default(),
        }
    }
}

impl<C> PendingRequestsLayer<C> {
    /// Sets what a request's end is. Default [`CompleteOnResponse`].
    #[must_use]
    pub fn completion<D>(self, completion: D) -> PendingRequestsLayer<D> {
        PendingRequestsLayer { completion }
    }
}

impl<S, C: Clone> Layer<S> for PendingRequestsLayer<C> {
    type Service = PendingRequests<S, C>;

    fn layer(&self, service: S) -> Self::Service {
        PendingRequests {
            service,
            completion: self.completion.clone(),
            requests: Arc::default(),
        }
    }
}

impl<S, C> InFlight for PendingRequests<S, C> {
    #[inline]
    fn in_flight(&self) -> usize {
        Arc::weak_count(&self.requests)
    }
}

impl<S, C> Load for PendingRequests<S, C> {
    /// The number of requests in flight.
    type Metric = usize;

    #[inline]
    fn load(&self) -> usize {
        self.in_flight()
    }
}

impl<S, C, Req> Service<Req> for PendingRequests<S, C>
where
    S: Service<Req>,
    C: TrackCompletion<PendingRequestsHandle, S::Response>,
{
    type Response = C::Output;
    type Error = S::Error;
    type Future = TrackFuture<S::Future, C, PendingRequestsHandle, ErrorsAreFailures>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // Before the call, so that a call that panics gives it back.
        let handle = PendingRequestsHandle {
            _request: Arc::downgrade(&self.requests),
        };
        TrackFuture::new(
            self.service.call(request),
            handle,
            self.completion.clone(),
            ErrorsAreFailures,
        )
    }
}

impl Handle for PendingRequestsHandle {
    fn settle(&mut self, _: Outcome) {}
}
