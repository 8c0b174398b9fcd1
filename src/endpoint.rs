//! What is balanced over: targets as discovery names them, and the live endpoints made from them.
//!
//! A [`Target`] is plain data: an address with a weight, a zone and a priority. An [`Endpoint`] is the
//! live handle of one target in a balancer: every stage of the stack holds the same one, so that a
//! status set by a health check is the status that the balancer sees.

use std::{
    borrow::Borrow,
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{sync::Notify, time::Instant};
use tracing::info;

/// Names a backend: anything that can be compared, hashed and printed.
///
/// Implemented for every such type; there is nothing to write.
pub trait Address: Eq + Hash + fmt::Display + Send + Sync + 'static {}

impl<A: Eq + Hash + fmt::Display + Send + Sync + 'static> Address for A {}

/// Describes one backend, as discovery sees it.
///
/// ```
/// use tower_lb::Target;
///
/// let target = Target::new("10.0.0.7:80").weight(3).zone("eu-1a").priority(1);
/// assert_eq!(target.weight, 3);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target<A = SocketAddr> {
    /// Where the backend is. Two targets with the same address are the same backend.
    pub address: A,
    /// Its share of the traffic relative to the others. Default 1; 0 drains: no new requests.
    pub weight: u32,
    /// The failure domain that the backend runs in. Default none.
    pub zone: Option<Arc<str>>,
    /// Lower values are preferred by whatever looks at priorities. Default 0.
    pub priority: u8,
    /// What consistent hashing knows the backend by. Default: its address as text.
    pub hash_key: Option<Arc<str>>,
}

impl<A> Target<A> {
    /// Names a backend of weight 1, in no zone, of priority 0.
    #[must_use]
    pub const fn new(address: A) -> Self {
        Self {
            address,
            weight: 1,
            zone: None,
            priority: 0,
            hash_key: None,
        }
    }

    /// Sets the share of the traffic relative to the others; 0 drains the backend.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the failure domain that the backend runs in.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the priority; lower values are preferred.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// Sets what consistent hashing knows the backend by, in place of its address as text.
    ///
    /// A name that outlives the address, that of a stateful set's pod, say, keeps its keys when the backend
    /// moves. Of backends with one name, one has all the keys: the available one with the least address.
    #[must_use]
    pub fn hash_key(mut self, hash_key: impl Into<Arc<str>>) -> Self {
        self.hash_key = Some(hash_key.into());
        self
    }
}

/// Turns what a discovery source lists into a [`Target`].
///
/// Implement it for the type that your own registry client returns, and a
/// `watch::Receiver<Vec<YourType>>` feeds a balancer.
pub trait IntoTarget {
    /// What names the backend.
    type Address;

    /// Converts into the target.
    fn into_target(self) -> Target<Self::Address>;
}

impl<A> IntoTarget for Target<A> {
    type Address = A;

    fn into_target(self) -> Self {
        self
    }
}

impl<A> IntoTarget for (A, u32) {
    type Address = A;

    /// The second field is the weight.
    fn into_target(self) -> Target<A> {
        Target::new(self.0).weight(self.1)
    }
}

macro_rules! addresses {
    ($($address:ty),*) => {$(
        impl IntoTarget for $address {
            type Address = Self;

            fn into_target(self) -> Target<Self> {
                Target::new(self)
            }
        }
    )*};
}

addresses!(SocketAddr, String, &'static str, Arc<str>, usize);

/// Tells whether an endpoint may be picked, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Status {
    /// Nothing is known against it.
    #[default]
    Available,
    /// Not picked until then, for what its answers showed. A failed check is told before this.
    Ejected {
        /// When it is picked again.
        until: Instant,
    },
    /// Not picked until it is marked healthy, for a failed check or missing heartbeats.
    Unhealthy,
}

/// Tells why an endpoint is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ejection {
    /// When it is picked again.
    pub until: Instant,
    /// What spoke against it, with figures; empty where nothing was said.
    pub reason: Arc<str>,
}

/// The live handle of one target in a balancer.
///
/// Every clone is the same endpoint: what is set on one is seen by all, and the balancer acts on it
/// as soon as its driver runs. An endpoint belongs to one balancer, the one that it was inserted into
/// last. Endpoints are equal, and hash, by address.
///
/// Cost: a clone is one reference count. Getters take a short lock; no request does, for picks read
/// what the driver published.
pub struct Endpoint<A = SocketAddr>(Arc<Inner<A>>);

struct Inner<A> {
    address: A,
    state: Mutex<State>,
}

struct State {
    weight: u32,
    zone: Option<Arc<str>>,
    priority: u8,
    hash_key: Option<Arc<str>>,
    /// What outlier detection says.
    ejected: Option<Ejection>,
    /// What health checks say.
    unhealthy: bool,
    /// What missing heartbeats say.
    silent: bool,
    /// The weight that its own reports amount to.
    reported: Option<f64>,
    /// Whether the balancer picks it whatever is said against it, for too few others are available.
    revived: bool,
    /// When the status last became another one.
    since: Instant,
    /// The driver to tell of a change.
    driver: Weak<Notify>,
}

impl<A> Endpoint<A> {
    /// Makes the live handle of a target; discovery sources of your own call this.
    #[must_use]
    pub fn new(target: impl IntoTarget<Address = A>) -> Self {
        let target = target.into_target();
        Self(Arc::new(Inner {
            address: target.address,
            state: Mutex::new(State {
                weight: target.weight,
                zone: target.zone,
                priority: target.priority,
                hash_key: target.hash_key,
                ejected: None,
                unhealthy: false,
                silent: false,
                reported: None,
                revived: false,
                since: Instant::now(),
                driver: Weak::new(),
            }),
        }))
    }

    /// Returns what names the endpoint.
    #[must_use]
    pub fn address(&self) -> &A {
        &self.0.address
    }

    /// Returns the share of the traffic relative to the others; 0 means draining.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.state().weight
    }

    /// Returns the failure domain, where discovery gave one.
    #[must_use]
    pub fn zone(&self) -> Option<Arc<str>> {
        self.state().zone.clone()
    }

    /// Returns the priority; lower values are preferred.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.state().priority
    }

    /// Returns what consistent hashing knows the endpoint by, where that is not its address.
    #[must_use]
    pub fn hash_key(&self) -> Option<Arc<str>> {
        self.state().hash_key.clone()
    }

    /// Returns whether the endpoint may be picked, and if not, why.
    #[must_use]
    pub fn status(&self) -> Status {
        self.state().status()
    }

    /// Returns whether the endpoint is ejected, and the balancer means it.
    pub(crate) fn is_kept_out(&self) -> bool {
        let state = self.state();
        state.ejected.is_some() && !state.revived
    }

    /// Returns whether the endpoint is ejected, whatever else is said against it.
    pub(crate) fn is_ejected(&self) -> bool {
        self.state().ejected.is_some()
    }

    /// Says whether the balancer picks the endpoint whatever is said against it.
    pub(crate) fn set_revived(&self, revived: bool) {
        self.state().revived = revived;
    }

    /// Returns the weight that the endpoint's own reports amount to, where they count.
    pub(crate) fn reported(&self) -> Option<f64> {
        self.state().reported
    }

    /// Sets the weight that the endpoint's own reports amount to.
    pub(crate) fn set_reported(&self, weight: Option<f64>) {
        let mut state = self.state();
        if state.reported != weight {
            state.reported = weight;
            state.wake();
        }
    }

    /// Returns why the endpoint is ejected and until when, also where a failed check hides it in the status.
    #[must_use]
    pub fn ejection(&self) -> Option<Ejection> {
        let ejected = self.state().ejected.clone();
        ejected.filter(|ejection| ejection.until > Instant::now())
    }

    /// Returns when the current [`status`](Self::status) began.
    #[must_use]
    pub fn status_since(&self) -> Instant {
        self.state().since
    }

    /// Sets weight, zone, priority and hash key to the target's; its address is not looked at.
    pub fn set_attributes<B>(&self, target: &Target<B>) {
        let mut state = self.state();
        if state.weight == target.weight
            && state.zone == target.zone
            && state.priority == target.priority
            && state.hash_key == target.hash_key
        {
            return;
        }
        state.weight = target.weight;
        state.zone.clone_from(&target.zone);
        state.priority = target.priority;
        state.hash_key.clone_from(&target.hash_key);
        state.wake();
    }

    /// Has `driver` notified of every change from now on, in place of the one before.
    pub(crate) fn attach(&self, driver: &Arc<Notify>) {
        self.state().driver = Arc::downgrade(driver);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics halfway through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: fmt::Display> Endpoint<A> {
    /// Takes the endpoint out of the picks until `until`; the balancer readmits it by itself then.
    ///
    /// A second ejection replaces the first one's end.
    pub fn eject(&self, until: Instant) {
        self.eject_because(until, "");
    }

    /// Takes the endpoint out of the picks as [`eject`](Self::eject) does, with a reason for those who look at it.
    pub fn eject_because(&self, until: Instant, reason: impl Into<Arc<str>>) {
        let reason = reason.into();
        self.change(|state| state.ejected = Some(Ejection { until, reason }));
    }

    /// Ends an ejection. A failed check still counts.
    pub fn readmit(&self) {
        self.change(|state| state.ejected = None);
    }

    /// Takes the endpoint out of the picks until [`mark_healthy`](Self::mark_healthy).
    pub fn mark_unhealthy(&self) {
        self.change(|state| state.unhealthy = true);
    }

    /// Withdraws [`mark_unhealthy`](Self::mark_unhealthy). An ejection still counts.
    pub fn mark_healthy(&self) {
        self.change(|state| state.unhealthy = false);
    }

    /// Says whether the endpoint's heartbeats are missing, apart from what checks say.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.change(|state| state.silent = silent);
    }

    /// Returns weight and status at `now`, having ended an ejection whose time has come.
    pub(crate) fn standing(&self, now: Instant) -> (u32, Status) {
        let mut state = self.state();
        if state
            .ejected
            .as_ref()
            .is_some_and(|ejection| ejection.until <= now)
        {
            self.apply(&mut state, |state| state.ejected = None);
        }
        (state.weight, state.status())
    }

    fn change(&self, set: impl FnOnce(&mut State)) {
        let mut state = self.state();
        if self.apply(&mut state, set) {
            state.wake();
        }
    }

    /// Changes the state; says whether the status is another one now.
    fn apply(&self, state: &mut State, set: impl FnOnce(&mut State)) -> bool {
        let before = state.status();
        set(state);
        let after = state.status();
        if after == before {
            return false;
        }
        state.since = Instant::now();
        info!(endpoint = %self, from = ?before, to = ?after, "status changed");
        true
    }
}

impl State {
    fn status(&self) -> Status {
        match &self.ejected {
            _ if self.unhealthy || self.silent => Status::Unhealthy,
            Some(ejection) => Status::Ejected {
                until: ejection.until,
            },
            None => Status::Available,
        }
    }

    fn wake(&self) {
        if let Some(driver) = self.driver.upgrade() {
            driver.notify_one();
        }
    }
}

impl<A> Clone for Endpoint<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: PartialEq> PartialEq for Endpoint<A> {
    fn eq(&self, other: &Self) -> bool {
        self.0.address == other.0.address
    }
}

impl<A: Eq> Eq for Endpoint<A> {}

impl<A: Hash> Hash for Endpoint<A> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.address.hash(state);
    }
}

/// Looks an endpoint up by its address alone: both hash alike.
impl<A> Borrow<A> for Endpoint<A> {
    fn borrow(&self) -> &A {
        &self.0.address
    }
}

impl<A: fmt::Display> fmt::Display for Endpoint<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.address.fmt(f)
    }
}

impl<A: fmt::Display> fmt::Debug for Endpoint<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Endpoint")
            .field("address", &format_args!("{}", self.0.address))
            .field("weight", &state.weight)
            .field("zone", &state.zone)
            .field("priority", &state.priority)
            .field("status", &state.status())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn everything_that_names_a_backend_is_a_target() {
        let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
        assert_eq!(address.into_target(), Target::new(address));
        assert_eq!("a".into_target(), Target::new("a"));
        assert_eq!(String::from("a").into_target(), Target::new("a".into()));
        assert_eq!(7_usize.into_target(), Target::new(7));
        assert_eq!(("a", 3).into_target(), Target::new("a").weight(3));
        assert_eq!(
            Target::new("a").zone("z").into_target(),
            Target::new("a").zone("z")
        );
    }

    #[test]
    fn equality_is_the_address_alone() {
        let light = Endpoint::new(("a", 1));
        let heavy = Endpoint::new(("a", 9));
        assert_eq!(light, heavy);
        assert_ne!(light, Endpoint::new(("b", 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn ejection_and_checks_object_separately() {
        let endpoint = Endpoint::new("a");
        let until = Instant::now() + Duration::from_secs(30);
        endpoint.eject(until);
        assert_eq!(endpoint.status(), Status::Ejected { until });
        endpoint.mark_unhealthy();
        assert_eq!(endpoint.status(), Status::Unhealthy);
        endpoint.readmit();
        assert_eq!(endpoint.status(), Status::Unhealthy);
        endpoint.mark_healthy();
        assert_eq!(endpoint.status(), Status::Available);
    }

    #[tokio::test(start_paused = true)]
    async fn status_since_moves_only_with_the_status() {
        let endpoint = Endpoint::new("a");
        let born = endpoint.status_since();
        tokio::time::advance(Duration::from_secs(1)).await;
        endpoint.mark_healthy();
        assert_eq!(endpoint.status_since(), born);
        endpoint.mark_unhealthy();
        assert_eq!(endpoint.status_since(), born + Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_change_wakes_the_driver_and_no_change_does_not() {
        let endpoint = Endpoint::new("a");
        let driver = Arc::new(Notify::new());
        endpoint.attach(&driver);
        endpoint.mark_healthy();
        endpoint.set_attributes(&Target::new("a"));
        let mut notified = tokio_test::task::spawn(driver.notified());
        tokio_test::assert_pending!(notified.poll());
        endpoint.set_attributes(&Target::new("a").weight(0));
        assert!(notified.is_woken());
        assert_eq!(endpoint.weight(), 0);
    }
}
