//! The endpoints that a request has been sent to, and the traits that leave them out.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tower::Service;

use crate::endpoint::{Address, Endpoint};

/// The endpoints that one request has been sent to.
///
/// It travels with the tries of a request.
/// [`Balance::call_excluding`](crate::Balance::call_excluding) leaves out the endpoints in it, and
/// adds the one that it chooses. Clones share one list.
pub struct Tried<A = SocketAddr> {
    list: Arc<Mutex<Vec<Endpoint<A>>>>,
    when_all: WhenAll,
}

/// What happens to a request when no other endpoint is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenAll {
    Repeat,
    Fail,
}

/// Sends each request to one of many endpoints, and leaves out those it is told to.
///
/// [`Balance`](crate::Balance) implements it. [`Failover`](crate::failover::Failover) and
/// [`Hedge`](crate::failover::Hedge) need such a service below them, and implement it themselves.
/// Implement it for a layer of your own that stands between them: pass every call on to the service
/// below.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be told which endpoints to leave out",
    label = "no balancer for these requests",
    note = "the request must fit the balancer below, and the error must convert into `BoxError`",
    note = "for a layer of yours that stands between, implement `CallExcluding`"
)]
pub trait CallExcluding<Req>: Service<Req> + SendsElsewhere {
    /// The type of the endpoints' addresses.
    type Address: Address;

    /// Returns the endpoints that a call has been sent to.
    ///
    /// None while no endpoint is chosen, one as a rule, and several where the service tries again.
    /// `future` is the future that the call returned. It may have completed.
    fn called(&self, future: &Self::Future) -> Vec<Endpoint<Self::Address>>;

    /// Sends the request to an endpoint that is not in `tried`, if one is available.
    ///
    /// The endpoint is added to `tried` when it is called. If it is available but not ready, the
    /// request waits for it like any other request. As with [`call`](Service::call), the service
    /// must be ready.
    fn call_excluding(&mut self, request: Req, tried: &Tried<Self::Address>) -> Self::Future;

    /// Returns whether an endpoint that is not in `tried` is available.
    ///
    /// Asked only after a failure. Pass it on to the service below. Default: none is known of, so
    /// that a retry waits as long as the server asks.
    fn has_other(&self, tried: &Tried<Self::Address>) -> bool {
        let _ = tried;
        false
    }
}

/// Marks services that may stand below [`FailoverLayer`](crate::FailoverLayer) and
/// [`HedgeLayer`](crate::HedgeLayer).
///
/// These are balancers, and layers that pass exclusions on to one. Implement it together with
/// [`CallExcluding`]. It adds nothing to that trait, but a layer can require it before the type of
/// the request is known.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no balancer: it can't send a request to another endpoint",
    label = "a retry or a hedge needs a balancer right below it",
    note = "the order is `.layer(FailoverLayer::new(..))`, then `.layer(BalanceLayer::new(..))`",
    note = "in place of a timeout between the two, set `FailoverLayer::try_timeout`",
    note = "for other layers between them, put `http::TagTriedLayer` above those and `http::ExcludeTriedLayer` below"
)]
pub trait SendsElsewhere {}

impl<A> Tried<A> {
    /// Creates an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self {
            list: Arc::default(),
            when_all: WhenAll::Repeat,
        }
    }

    /// Returns a clone that forbids repeats.
    ///
    /// A call with it fails with [`AllTried`](crate::error::AllTried) rather than go to one of
    /// these endpoints again. The clone shares the list.
    #[must_use]
    pub fn strict(&self) -> Self {
        Self {
            list: self.list.clone(),
            when_all: WhenAll::Fail,
        }
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.when_all == WhenAll::Fail
    }

    /// Adds an endpoint.
    pub fn insert(&self, endpoint: Endpoint<A>) {
        self.list().push(endpoint);
    }

    /// Returns the endpoints in the order of the tries.
    ///
    /// An endpoint that was tried twice is listed twice. **O(n)**.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint<A>> {
        self.list().clone()
    }

    /// Returns the number of tries. **O(1)**.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list().len()
    }

    /// Returns whether there was no try yet. **O(1)**.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// Locks the list. Drop the guard soon.
    pub(crate) fn list(&self) -> MutexGuard<'_, Vec<Endpoint<A>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Clone for Tried<A> {
    fn clone(&self) -> Self {
        Self {
            list: self.list.clone(),
            ..*self
        }
    }
}

impl<A> Default for Tried<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: fmt::Display> fmt::Debug for Tried<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.list().iter().map(ToString::to_string))
            .finish()
    }
}
