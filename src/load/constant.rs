use std::task::{Context, Poll};

use tower::{Layer, Service, load::Load};

use crate::metric::forward_metrics;

/// Gives a service a load that never changes.
///
/// For tests, and for costs that are known beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Constant<S, M> {
    service: S,
    load: M,
}

/// Wraps services with [`Constant`].
#[derive(Clone, Copy, Debug)]
pub struct ConstantLayer<M> {
    load: M,
}

impl<S, M> Constant<S, M> {
    /// Wraps a service whose load is always `load`.
    pub const fn new(service: S, load: M) -> Self {
        Self { service, load }
    }

    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }
}

impl<M> ConstantLayer<M> {
    /// Gives every wrapped service the load `load`.
    #[must_use]
    pub const fn new(load: M) -> Self {
        Self { load }
    }
}

impl<S, M: Clone> Layer<S> for ConstantLayer<M> {
    type Service = Constant<S, M>;

    fn layer(&self, service: S) -> Self::Service {
        Constant::new(service, self.load.clone())
    }
}

impl<S, M: Clone + PartialOrd> Load for Constant<S, M> {
    type Metric = M;

    #[inline]
    fn load(&self) -> M {
        self.load.clone()
    }
}

forward_metrics!([S, M] Constant<S, M>: InFlight, TotalInFlight);

impl<S, M, Req> Service<Req> for Constant<S, M>
where
    S: Service<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.service.call(request)
    }
}
