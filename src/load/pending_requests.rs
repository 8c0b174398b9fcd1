use std::{
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tower::{
    Layer, Service,
    load::{CompleteOnResponse, Load, TrackCompletion},
};

use super::{Outcome, classify::ErrorsAreFailures, classify::Settle, track::TrackFuture};
use crate::metric::{InFlight, TotalInFlight};

/// Measures a service by its requests in flight.
///
/// Clones share the count. Cost: a request adds one atomic increment and one decrement, reading is one
/// load; 64 bytes of heap for each endpoint. With a [total](PendingRequestsLayer::with_total), a request adds a
/// second increment and decrement, of a counter that all endpoints share.
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
#[derive(Debug)]
pub struct PendingRequests<S, C = CompleteOnResponse, T = ()> {
    service: S,
    completion: C,
    requests: Arc<CacheLine<T>>,
}

/// Wraps services with [`PendingRequests`].
#[derive(Clone, Debug)]
pub struct PendingRequestsLayer<C = CompleteOnResponse, T = ()> {
    completion: C,
    total: T,
}

/// Counts the requests at all services of one layer and its clones, see [`PendingRequestsLayer::with_total`].
#[derive(Clone, Debug, Default)]
pub struct SharedTotal(Arc<CacheLine<()>>);

/// What a tracker adds its requests to, beside its own count: nothing, `()`, or a [`SharedTotal`]. Sealed.
pub trait Totals: Clone + sealed::Sealed {
    /// Keeps one request counted until it is dropped.
    type Guard;

    /// Counts a request.
    fn count(&self) -> Self::Guard;
}

/// Counts one request in flight until it is dropped.
///
/// Services hold the allocation by strong references and requests by weak ones, so that the weak count
/// *is* the number of requests in flight: one atomic operation both counts a request and keeps the
/// counter alive.
#[derive(Debug)]
pub struct PendingRequestsHandle<T: Totals = ()> {
    _request: Weak<CacheLine<T>>,
    _in_total: T::Guard,
}

/// One of the requests that a [`SharedTotal`] counts, in the same way.
#[derive(Debug)]
pub struct InTotal {
    _request: Weak<CacheLine<()>>,
}

/// Keeps the counts of two endpoints out of each other's cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct CacheLine<T>(T);

impl<S> PendingRequests<S> {
    /// Wraps a service whose requests are over when its response futures are.
    pub fn new(service: S) -> Self {
        PendingRequestsLayer::default().layer(service)
    }
}

impl<S, C, T> PendingRequests<S, C, T> {
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
            total: (),
        }
    }
}

impl<C, T> PendingRequestsLayer<C, T> {
    /// Sets what a request's end is. Default [`CompleteOnResponse`].
    #[must_use]
    pub fn completion<D>(self, completion: D) -> PendingRequestsLayer<D, T> {
        PendingRequestsLayer {
            completion,
            total: self.total,
        }
    }

    /// Counts the requests of all services that this layer and its clones wrap together, too.
    ///
    /// That is what [bounded loads](crate::hash::Bounded) are a share of: [`TotalInFlight`]. Use one layer for each
    /// balancer. Costs each request an atomic increment and decrement more, on a counter that all
    /// threads share.
    #[must_use]
    pub fn with_total(self) -> PendingRequestsLayer<C, SharedTotal> {
        PendingRequestsLayer {
            completion: self.completion,
            total: SharedTotal::default(),
        }
    }
}

impl<S, C: Clone, T: Totals> Layer<S> for PendingRequestsLayer<C, T> {
    type Service = PendingRequests<S, C, T>;

    fn layer(&self, service: S) -> Self::Service {
        PendingRequests {
            service,
            completion: self.completion.clone(),
            requests: Arc::new(CacheLine(self.total.clone())),
        }
    }
}

impl<S: Clone, C: Clone, T> Clone for PendingRequests<S, C, T> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            completion: self.completion.clone(),
            requests: self.requests.clone(),
        }
    }
}

impl<S, C, T> InFlight for PendingRequests<S, C, T> {
    #[inline]
    fn in_flight(&self) -> usize {
        Arc::weak_count(&self.requests)
    }
}

impl<S, C> TotalInFlight for PendingRequests<S, C, SharedTotal> {
    fn total_in_flight(&self) -> usize {
        let CacheLine(SharedTotal(total)) = &*self.requests;
        Arc::weak_count(total)
    }
}

impl<S, C, T> Load for PendingRequests<S, C, T> {
    /// The number of requests in flight.
    type Metric = usize;

    #[inline]
    fn load(&self) -> usize {
        self.in_flight()
    }
}

impl<S, C, T, Req> Service<Req> for PendingRequests<S, C, T>
where
    S: Service<Req>,
    C: TrackCompletion<PendingRequestsHandle<T>, S::Response>,
    T: Totals,
{
    type Response = C::Output;
    type Error = S::Error;
    type Future = TrackFuture<S::Future, C, PendingRequestsHandle<T>, ErrorsAreFailures>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // Before the call, so that a call that panics gives it back.
        let handle = PendingRequestsHandle {
            _request: Arc::downgrade(&self.requests),
            _in_total: self.requests.0.count(),
        };
        TrackFuture::new(
            self.service.call(request),
            handle,
            self.completion.clone(),
            ErrorsAreFailures,
        )
    }
}

impl<T: Totals> Settle for PendingRequestsHandle<T> {
    fn settle(&mut self, _: Outcome) {}
}

impl Totals for () {
    type Guard = ();

    #[inline]
    fn count(&self) {}
}

impl Totals for SharedTotal {
    type Guard = InTotal;

    #[inline]
    fn count(&self) -> InTotal {
        InTotal {
            _request: Arc::downgrade(&self.0),
        }
    }
}

mod sealed {
    #[allow(unnameable_types)] // so that nobody else implements it
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for super::SharedTotal {}
}
