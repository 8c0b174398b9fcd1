use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::{Service, load::Load};

use crate::metric::{InFlight, TotalInFlight};

/// Tells health checks which endpoints get requests: not at all, `()`, or by an [`IdleInterval`]. Sealed.
pub trait Traffic<S>: sealed::Sealed {
    /// What becomes of an endpoint's service.
    type Service;

    /// Wraps a service, with the flag that its requests set.
    fn watch(&self, service: S) -> (Self::Service, Option<Arc<AtomicBool>>);

    /// Returns the time between two checks of an endpoint that gets no requests, if it is another one.
    fn idle_interval(&self) -> Option<Duration>;
}

/// The time between two checks of an endpoint that gets no requests.
#[derive(Clone, Copy, Debug)]
pub struct IdleInterval(pub(super) Duration);

/// A service that says whether it was called.
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
        // Written only once between two checks, for all requests read it.
        if !self.is_called.load(Relaxed) {
            self.is_called.store(true, Relaxed);
        }
        self.service.call(request)
    }
}

impl<S: Load> Load for Watched<S> {
    type Metric = S::Metric;

    #[inline]
    fn load(&self) -> S::Metric {
        self.service.load()
    }
}

impl<S: InFlight> InFlight for Watched<S> {
    #[inline]
    fn in_flight(&self) -> usize {
        self.service.in_flight()
    }
}

impl<S: TotalInFlight> TotalInFlight for Watched<S> {
    #[inline]
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

mod sealed {
    #[allow(unnameable_types)] // so that nobody else implements it
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for super::IdleInterval {}
}
