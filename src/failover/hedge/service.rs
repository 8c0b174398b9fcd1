use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower::{BoxError, Service};

use super::{future::HedgeFuture, state::HedgeState};
use crate::{
    endpoint::Endpoint,
    failover::{ByClone, CopyRequest, RetryPolicy},
    split_arc::SplitArc,
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// A service that sends slow requests twice; see [`HedgeLayer`](super::HedgeLayer).
pub struct Hedge<S, P, Copier = ByClone> {
    service: S,
    shared: SplitArc<HedgeState<S, P, Copier>>,
}

impl<S, P, Copier> Hedge<S, P, Copier> {
    pub(super) fn new(service: S, shared: HedgeState<S, P, Copier>) -> Self {
        Self {
            service,
            shared: SplitArc::new(Arc::new(shared)),
        }
    }
}

impl<S, P, Copier, Req> Service<Req> for Hedge<S, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = HedgeFuture<S, Req, P, Copier>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.call_excluding(request, &Tried::new())
    }
}

impl<S: SendsElsewhere, P, Copier> SendsElsewhere for Hedge<S, P, Copier> {}

impl<S, P, Copier, Req> CallExcluding<Req> for Hedge<S, P, Copier>
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
        let known = tried.len();
        if known == 0 {
            self.shared.allowance.first_try();
            self.shared.share.deposit();
        }
        let is_idempotent = self.shared.policy.is_idempotent(&request);
        let copy = is_idempotent.then(|| self.shared.copy.copy(&request));
        // One list from the start, so that a layer below which tries again knows of the hedge.
        let future = self.service.call_excluding(request, tried);
        HedgeFuture::new(
            future,
            tried.clone(),
            known,
            copy.flatten(),
            self.shared.lend(),
        )
    }

    fn has_other(&self, tried: &Tried<S::Address>) -> bool {
        self.service.has_other(tried)
    }
}

/// The clone is not ready: each handle becomes ready by itself.
impl<S: Clone, P, Copier> Clone for Hedge<S, P, Copier> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            shared: self.shared.share().0,
        }
    }
}

impl<S: fmt::Debug, P, Copier> fmt::Debug for Hedge<S, P, Copier> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("service", &self.service)
            .field("delay", &self.shared.delay)
            .field("allowance", &self.shared.allowance)
            .finish_non_exhaustive()
    }
}
