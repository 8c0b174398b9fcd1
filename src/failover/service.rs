use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower::{BoxError, Service};

use super::{
    CopyRequest, RetryPolicy, copy::ByClone, failover_future::FailoverFuture, state::FailoverState,
};
use crate::{
    endpoint::Endpoint,
    split_arc::SplitArc,
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// A service that tries requests again on another endpoint; see
/// [`FailoverLayer`](super::FailoverLayer).
pub struct Failover<S, P, Copier = ByClone> {
    service: S,
    shared: SplitArc<FailoverState<S, P, Copier>>,
}

impl<S, P, Copier> Failover<S, P, Copier> {
    pub(super) fn new(service: S, shared: FailoverState<S, P, Copier>) -> Self {
        Self {
            service,
            shared: SplitArc::new(Arc::new(shared)),
        }
    }
}

impl<S, P, Copier, Req> Service<Req> for Failover<S, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = FailoverFuture<S, Req, P, Copier>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        self.shared.allowance.first_try();
        let copy = self.shared.copy.copy(&request);
        let future = self.service.call(request);
        FailoverFuture::first(future, copy, self.shared.lend())
    }
}

impl<S: SendsElsewhere, P, Copier> SendsElsewhere for Failover<S, P, Copier> {}

impl<S, P, Copier, Req> CallExcluding<Req> for Failover<S, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    type Address = S::Address;

    fn called(&self, future: &Self::Future) -> Vec<Endpoint<S::Address>> {
        future.called()
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<S::Address>) -> Self::Future {
        if tried.is_empty() {
            self.shared.allowance.first_try();
        }
        let copy = self.shared.copy.copy(&request);
        let future = self.service.call_excluding(request, tried);
        FailoverFuture::excluding(future, tried.clone(), copy, self.shared.lend())
    }

    fn has_other(&self, tried: &Tried<S::Address>) -> bool {
        self.service.has_other(tried)
    }
}

/// The clone is not ready: each handle becomes ready by itself.
impl<S: Clone, P, Copier> Clone for Failover<S, P, Copier> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            shared: self.shared.share().0,
        }
    }
}

impl<S: fmt::Debug, P, Copier> fmt::Debug for Failover<S, P, Copier> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failover")
            .field("service", &self.service)
            .field("settings", &self.shared.settings)
            .field("allowance", &self.shared.allowance)
            .finish_non_exhaustive()
    }
}
