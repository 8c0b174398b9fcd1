use std::{
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use crossbeam_utils::CachePadded;
use tower::{
    Layer, Service,
    load::{CompleteOnResponse, Load, TrackCompletion},
};

use super::track::TrackFuture;
use crate::{
    metric::{InFlight, TotalInFlight},
    outcome::{ErrorsAreFailures, Outcome, Settle},
};

/// Measures a service by its requests in flight.
///
/// Clones share the count.
///
/// Cost: one atomic increment and one decrement for each request, one load for each reading, and
/// 128 bytes of heap for each endpoint. With a [total](PendingRequestsLayer::with_total), an
/// endpoint takes 256 bytes, and each request adds a second increment and decrement, of a counter
/// that all endpoints share.
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
    /// Padded, because the counts of two endpoints must not share a cache line.
    requests: Arc<CachePadded<T>>,
}

/// Wraps services with [`PendingRequests`].
#[derive(Clone, Debug)]
pub struct PendingRequestsLayer<C = CompleteOnResponse, T = ()> {
    completion: C,
    total: T,
}

/// Counts the requests at all services of one layer and its clones.
///
/// Made by [`PendingRequestsLayer::with_total`].
#[derive(Clone, Debug, Default)]
pub struct SharedTotal(Arc<CachePadded<()>>);

/// Decides whether a tracker also counts its requests in a total.
///
/// Implemented for `()`, which is no total, and for [`SharedTotal`]. Sealed.
pub trait Totals: Clone + sealed::Sealed {
    /// Keeps one request counted until it is dropped.
    type Guard;

    /// Counts a request.
    fn count(&self) -> Self::Guard;
}

/// Counts one request in flight until it is dropped.
///
/// Services hold strong references to the allocation and requests hold weak ones. So the weak count
/// *is* the number of requests in flight: one atomic operation both counts a request and keeps the
/// counter alive.
#[derive(Debug)]
pub struct PendingRequestsHandle<T: Totals = ()> {
    _request: Weak<CachePadded<T>>,
    _in_total: T::Guard,
}

/// Counts one request in a [`SharedTotal`] until it is dropped.
///
/// It is a weak reference, as in [`PendingRequestsHandle`].
#[derive(Debug)]
pub struct InTotal {
    _request: Weak<CachePadded<()>>,
}

impl<S> PendingRequests<S> {
    /// Wraps a service; a request is over when its response future is done.
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

// Only for the default completion, so that the type of `default()` can be inferred.
impl Default for PendingRequestsLayer {
    fn default() -> Self {
        Self {
            completion: CompleteOnResponse::default(),
            total: (),
        }
    }
}

impl<C, T> PendingRequestsLayer<C, T> {
    /// Sets when a request counts as over. Default [`CompleteOnResponse`].
    #[must_use]
    pub fn completion<D>(self, completion: D) -> PendingRequestsLayer<D, T> {
        PendingRequestsLayer {
            completion,
            total: self.total,
        }
    }

    /// Also counts the requests of all services that this layer and its clones wrap.
    ///
    /// This is the [`TotalInFlight`] of which [bounded loads](crate::hash::Bounded) are a share.
    /// Use one layer for each balancer. Each request costs an atomic increment and decrement more,
    /// on a counter that all threads share.
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
            requests: Arc::new(CachePadded::new(self.total.clone())),
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
        let SharedTotal(total) = &**self.requests;
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
        // Made before the call, so that a call that panics gives the count back.
        let handle = PendingRequestsHandle {
            _request: Arc::downgrade(&self.requests),
            _in_total: self.requests.count(),
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
    #[allow(unnameable_types)] // sealed
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for super::SharedTotal {}
}
