use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use tower::load::Load;

use super::shared::Shared;
use crate::{
    endpoint::Endpoint,
    member::Member,
    metric::{Cost, InFlight},
};

/// Lists the members of a balancer, even if the balancer is boxed or moved away.
///
/// Made by [`Balance::watcher`](super::Balance::watcher). It does not keep the balancer alive. Once
/// all of the balancer's handles are gone, the list is empty.
///
/// ```
/// # use std::net::SocketAddr;
/// # use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
/// # use tower_lb::*;
/// use tower_lb::balance::Watcher;
///
/// /// A client that a struct of yours can hold, and the window on its members.
/// struct Users {
///     client: BoxCloneSyncService<String, String, BoxError>,
///     members: Watcher,
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// # let connect = |_: &Endpoint| service_fn(|name: String| async move { Ok::<_, std::io::Error>(name) });
/// # let address = SocketAddr::from(([10, 0, 0, 1], 80));
/// let balance = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(fixed([address]))
///     .service(connect);
/// let users = Users { members: balance.watcher(), client: BoxCloneSyncService::new(balance) };
/// # users.client.clone().oneshot("ann".to_owned()).await?;
/// for member in users.members.members() {
///     let endpoint = member.endpoint();
///     println!("{endpoint} {:?} since {:?}", endpoint.status(), endpoint.status_since());
///     println!("  weight {}, in flight {:?}", member.weight(), member.in_flight());
/// }
/// # assert_eq!(users.members.members().len(), 1);
/// # drop(users.client);
/// # assert!(users.members.members().is_empty());
/// # Ok::<_, BoxError>(()) })?;
/// # Ok::<_, BoxError>(())
/// ```
pub struct Watcher<A = SocketAddr>(Arc<dyn Members<A>>);

/// A member as a [`Watcher`] lists it, for example for a dashboard.
pub struct MemberView<A = SocketAddr> {
    endpoint: Endpoint<A>,
    weight: u32,
    is_candidate: bool,
    is_available: bool,
    in_flight: Option<usize>,
    load: Option<f64>,
}

/// A balancer's members, whatever the types of its services and its policy.
trait Members<A>: Send + Sync {
    fn members(&self) -> Vec<MemberView<A>>;
}

struct Watched<A, S, P, T> {
    shared: Weak<Shared<A, S, P, T>>,
    measure: fn(&S) -> Measured,
}

/// What a member's tracker measures: requests in flight, and the load. `None` without a tracker.
type Measured = (Option<usize>, Option<f64>);

impl<A> Watcher<A> {
    pub(super) fn new<S, P, T>(
        shared: &Arc<Shared<A, S, P, T>>,
        measure: fn(&S) -> Measured,
    ) -> Self
    where
        A: Send + Sync + 'static,
        S: Send + Sync + 'static,
        P: Send + Sync + 'static,
        T: Send + Sync + 'static,
    {
        Self(Arc::new(Watched {
            shared: Arc::downgrade(shared),
            measure,
        }))
    }

    /// Lists the current members. **O(n)**.
    #[must_use]
    pub fn members(&self) -> Vec<MemberView<A>> {
        self.0.members()
    }
}

/// Reads what the service's tracker measures.
pub(super) fn tracked<S>(service: &S) -> Measured
where
    S: InFlight + Load<Metric: Cost>,
{
    (Some(service.in_flight()), Some(service.load().cost()))
}

/// Reads nothing, for services without a tracker.
pub(super) const fn untracked<S>(_: &S) -> Measured {
    (None, None)
}

impl<A, S, P, T> Members<A> for Watched<A, S, P, T>
where
    A: Send + Sync,
    S: Send + Sync,
    P: Send + Sync,
    T: Send + Sync,
{
    fn members(&self) -> Vec<MemberView<A>> {
        let Some(shared) = self.shared.upgrade() else {
            return Vec::new();
        };
        let snapshot = shared.snapshot();
        let view = |member: &Member<A, S>| {
            let (in_flight, load) = (self.measure)(member.service());
            MemberView {
                endpoint: member.endpoint().clone(),
                weight: member.weight(),
                is_candidate: member.is_candidate(),
                is_available: member.is_available(),
                in_flight,
                load,
            }
        };
        snapshot.members.iter().map(view).collect()
    }
}

impl<A> MemberView<A> {
    /// Returns the endpoint, with its status and the time of its last change.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint<A> {
        &self.endpoint
    }

    /// Returns the weight relative to the other members; 0 means draining.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns whether the member may be picked.
    #[must_use]
    pub const fn is_candidate(&self) -> bool {
        self.is_candidate
    }

    /// Returns whether the member takes requests and is neither ejected nor unhealthy.
    ///
    /// In a panic, members that are not available are candidates too.
    #[must_use]
    pub const fn is_available(&self) -> bool {
        self.is_available
    }

    /// Returns the number of in-flight requests; `None` without a tracker.
    #[must_use]
    pub const fn in_flight(&self) -> Option<usize> {
        self.in_flight
    }

    /// Returns the load as a number, see [`Cost`]; `None` without a tracker.
    #[must_use]
    pub const fn load(&self) -> Option<f64> {
        self.load
    }
}

impl<A> Clone for Watcher<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: fmt::Display> fmt::Debug for Watcher<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.members()).finish()
    }
}

impl<A: fmt::Display> fmt::Debug for MemberView<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberView")
            .field("endpoint", &self.endpoint)
            .field("weight", &self.weight)
            .field("is_candidate", &self.is_candidate)
            .field("is_available", &self.is_available)
            .field("in_flight", &self.in_flight)
            .field("load", &self.load)
            .finish()
    }
}
