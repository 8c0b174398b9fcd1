use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tower::Service;

use crate::endpoint::{Address, Endpoint};

/// The endpoints that one request has been sent to.
///
/// It travels with the tries of a request: [`Balance::call_excluding`](crate::Balance::call_excluding) leaves out who is
/// in it, and adds whom it chose. Clones share one list.
pub struct Tried<A = SocketAddr> {
    list: Arc<Mutex<Vec<Endpoint<A>>>>,
    when_all: WhenAll,
}

/// What becomes of a request when no other endpoint is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhenAll {
    Repeat,
    Fail,
}

/// A service that sends each request to one of many endpoints, and can be told which ones to leave out.
///
/// [`Balance`](crate::Balance) is one; [`Failover`](crate::retry::Failover) and [`Hedge`](crate::retry::Hedge) need one
/// below them, and are ones themselves. Implement it for a layer of your own that stands between: pass
/// everything on to the service below.
pub trait CallExcluding<Req>: Service<Req> {
    /// What endpoints are named by.
    type Address: Address;

    /// What is kept of a call to tell its endpoint by; free to make.
    type Trace: Default;

    /// Returns the trace of the next call, an excluding one too: to be asked for when the service is ready, right before
    /// [`call`](Service::call).
    fn trace(&self) -> Self::Trace;

    /// Returns the endpoints that a call has gone to: none yet, as a rule one, or several of a service that tries again.
    ///
    /// `future` is what that call returned, and may be done.
    fn called(&self, future: &Self::Future, trace: &Self::Trace) -> Vec<Endpoint<Self::Address>>;

    /// Sends the request to an endpoint that is not in `tried` while another is available, and adds the one
    /// chosen to `tried` when it is called.
    ///
    /// One that is available and not ready is waited for, as by any request. As with [`call`](Service::call), the service must be ready.
    fn call_excluding(&mut self, request: Req, tried: &Tried<Self::Address>) -> Self::Future;
}

impl<A> Tried<A> {
    /// Starts with none.
    #[must_use]
    pub fn new() -> Self {
        Self {
            list: Arc::default(),
            when_all: WhenAll::Repeat,
        }
    }

    /// Returns a clone with which a call fails by [`AllTried`](crate::error::AllTried) rather than go to one of these again.
    #[must_use]
    pub fn strict(&self) -> Self {
        Self {
            list: self.list.clone(),
            when_all: WhenAll::Fail,
        }
    }

    pub(super) fn is_strict(&self) -> bool {
        self.when_all == WhenAll::Fail
    }

    /// Adds an endpoint.
    pub fn insert(&self, endpoint: Endpoint<A>) {
        self.list().push(endpoint);
    }

    /// Returns the endpoints in the order of the tries, one that was tried twice twice.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint<A>> {
        self.list().clone()
    }

    /// Returns how many tries there were. **O(1)**.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list().len()
    }

    /// Returns whether there was none. **O(1)**.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
    }

    /// Looks at the list, whose lock is held for no longer than this.
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
