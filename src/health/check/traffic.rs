use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::Service;

use crate::metric::forward_metrics;

/// Tells health checks which endpoints get requests.
///
/// `()` tells nothing; an [`IdleInterval`] does. The trait is sealed.
pub trait Traffic<S>: sealed::Sealed {
    /// The service that an endpoint's service is wrapped in.
    type Service;

    /// Wraps a service; returns it with the flag that its requests set, if there is one.
    fn watch(&self, service: S) -> (Self::Service, Option<Arc<AtomicBool>>);

    /// Returns the interval for endpoints without requests, if it differs from the usual one.
    fn idle_interval(&self) -> Option<Duration>;
}

/// The time between two checks of an endpoint that gets no requests.
#[derive(Clone, Copy, Debug)]
pub struct IdleInterval(pub(super) Duration);

/// A service that records whether it was called.
#[derive(Clone, Debug)]
pub struct Watched<S> {
    service: S,
    is_called: Arc<AtomicBool>,
}

impl<S> Traffic<S> for () {
    type Service = S;

    fn watch(&self, service: S) -> (S, Option<Arc<AtomicBool>>) {
        (service, None)
    }

    fn idle_interval(&self) -> Option<Duration> {
        None
    }
}

impl<S> Traffic<S> for IdleInterval {
    type Service = Watched<S>;

    fn watch(&self, service: S) -> (Watched<S>, Option<Arc<AtomicBool>>) {
        let is_called = Arc::new(AtomicBool::new(false));
        let watched = Watched {
            service,
            is_called: is_called.clone(),
        };
        (watched, Some(is_called))
    }

    fn idle_interval(&self) -> Option<Duration> {
        Some(self.0)
    }
}

impl<S: Service<Req>, Req> Service<Req> for Watched<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> S::Future {
        // Written at most about once between two checks, because all requests read this cache line.
        if !self.is_called.load(Relaxed) {
            self.is_called.store(true, Relaxed);
        }
        self.service.call(request)
    }
}

forward_metrics!([S] Watched<S>: Load, InFlight, TotalInFlight);

mod sealed {
    #[allow(unnameable_types)] // sealed
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for super::IdleInterval {}
}
