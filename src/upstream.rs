//! The discovery below a layer that does work of its own.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::TryStream;
use pin_project_lite::pin_project;
use tower::{BoxError, discover::Discover};
use tracing::error;

use crate::{endpoint::Endpoint, guard::guarded};

/// Discovers endpoints: any tower [`Discover`] whose keys are [`Endpoint`]s.
///
/// Implemented for every such type, so you need not implement it. A balancer needs one directly
/// below it. So does each layer between discovery and the balancer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no discovery of endpoints",
    label = "a layer here needs discovery right below it",
    note = "the order, from the top: `FailoverLayer`, `BalanceLayer`, `OutlierLayer`, `each(tracker)`, `WatchLayer` or `fixed`, the factory",
    note = "a layer for one endpoint's service goes into `each`: `.layer(each(PeakEwmaLayer::default()))`",
    note = "`OutlierLayer`, `HealthCheckLayer`, `AuthorityLayer` and `SessionLayer` stand below the balancer, and not in `each`"
)]
pub trait DiscoverEndpoints:
    Discover<Key = Endpoint<Self::Address>, Service = Self::Member, Error = Self::Failure>
{
    /// The address that identifies an endpoint.
    type Address;

    /// The service that reaches an endpoint.
    type Member;

    /// The error of the discovery.
    type Failure: Into<BoxError>;
}

#[diagnostic::do_not_recommend]
impl<D, A> DiscoverEndpoints for D
where
    D: Discover<Key = Endpoint<A>, Error: Into<BoxError>>,
{
    type Address = A;
    type Member = D::Service;
    type Failure = D::Error;
}

pin_project! {
    /// The discovery below a layer whose own work continues after that discovery has ended.
    ///
    /// Checks, intervals and weights still matter to the endpoints that are left. So the end is
    /// passed on only if no endpoints are left. Otherwise the layer stays pending, and its own
    /// timers wake the task.
    #[derive(Debug)]
    pub(crate) struct Upstream<D> {
        #[pin]
        discover: D,
        has_ended: bool,
    }
}

impl<D> Upstream<D> {
    pub(crate) const fn new(discover: D) -> Self {
        Self {
            discover,
            has_ended: false,
        }
    }

    pub(crate) const fn get_ref(&self) -> &D {
        &self.discover
    }
}

impl<D: TryStream> Upstream<D> {
    /// Polls for the next change. Calls `has_endpoints` only once, when discovery ends.
    pub(crate) fn poll_change(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        has_endpoints: impl FnOnce() -> bool,
    ) -> Poll<Option<Result<D::Ok, D::Error>>> {
        let this = self.project();
        if *this.has_ended {
            return Poll::Pending;
        }
        let item = match guarded(|| this.discover.try_poll_next(cx)) {
            Ok(item) => ready!(item),
            Err(panic) => {
                error!(%panic, "discovery panicked: the set stays as it is from now on");
                None
            }
        };
        if item.is_none() {
            *this.has_ended = true;
            if has_endpoints() {
                return Poll::Pending;
            }
        }
        Poll::Ready(item)
    }
}
