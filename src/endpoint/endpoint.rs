use std::{
    borrow::Borrow,
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{sync::Notify, time::Instant};
use tracing::info;

use super::{Ejection, IntoTarget, Status, Target};

/// The live handle of one target in a balancer.
///
/// All clones are the same endpoint: a change through one is visible through all. The balancer acts
/// on a change as soon as its driver runs. An endpoint belongs to one balancer, the last one that
/// it was inserted into. Endpoints are equal, and hash, by address.
///
/// Cost: a clone increments a reference count. Getters take a short lock. Picks take none, because
/// they read the snapshot that the driver published.
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
    /// Set by outlier detection and [`Endpoint::eject`].
    ejected: Option<Ejection>,
    /// Set by health checks and [`Endpoint::mark_unhealthy`].
    unhealthy: bool,
    /// Set while heartbeats are missing.
    silent: bool,
    /// The weight computed from the endpoint's own reports.
    reported: Option<f64>,
    /// Whether the balancer picks it although it is not available, because too few others are.
    revived: bool,
    /// When the status last changed.
    since: Instant,
    /// The driver to notify of a change.
    driver: Weak<Notify>,
}

impl<A> Endpoint<A> {
    /// Creates the live handle of a target; discovery sources of your own call this.
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

    /// Returns the address, which names the endpoint.
    #[must_use]
    pub fn address(&self) -> &A {
        &self.0.address
    }

    /// Returns the share of the traffic relative to other endpoints; 0 means draining.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.state().weight
    }

    /// Returns the failure domain, if discovery gave one.
    #[must_use]
    pub fn zone(&self) -> Option<Arc<str>> {
        self.state().zone.clone()
    }

    /// Returns the priority; lower values are preferred.
    #[must_use]
    pub fn priority(&self) -> u8 {
        self.state().priority
    }

    /// Returns the name that consistent hashing uses in place of the address, if there is one.
    #[must_use]
    pub fn hash_key(&self) -> Option<Arc<str>> {
        self.state().hash_key.clone()
    }

    /// Returns whether the endpoint may be picked, and if not, why.
    #[must_use]
    pub fn status(&self) -> Status {
        self.state().status()
    }

    /// Returns whether the endpoint is ejected, and not revived by a panic.
    pub(crate) fn is_kept_out(&self) -> bool {
        let state = self.state();
        state.ejected.is_some() && !state.revived
    }

    /// Returns whether the endpoint is ejected, revived or not, and whatever checks say.
    pub(crate) fn is_ejected(&self) -> bool {
        self.state().ejected.is_some()
    }

    /// Sets whether the balancer picks the endpoint although it is not available.
    pub(crate) fn set_revived(&self, revived: bool) {
        self.state().revived = revived;
    }

    /// Returns the weight computed from the endpoint's own reports, if they count.
    pub(crate) fn reported(&self) -> Option<f64> {
        self.state().reported
    }

    /// Sets the weight computed from the endpoint's own reports.
    pub(crate) fn set_reported(&self, weight: Option<f64>) {
        let mut state = self.state();
        if state.reported != weight {
            state.reported = weight;
            state.wake();
        }
    }

    /// Returns why the endpoint is ejected, and until when.
    ///
    /// Unlike [`status`](Self::status), it shows an ejection even if a check has failed as well.
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

    /// Sets weight, zone, priority and hash key to the target's; ignores its address.
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

    /// Makes every change from now on notify `driver`, in place of the previous driver.
    pub(crate) fn attach(&self, driver: &Arc<Notify>) {
        self.state().driver = Arc::downgrade(driver);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock does no harm: nothing under it panics halfway through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: fmt::Display> Endpoint<A> {
    /// Takes the endpoint out of the picks until `until`; the balancer then readmits it.
    ///
    /// A second ejection replaces the end and the reason of the first.
    pub fn eject(&self, until: Instant) {
        self.eject_because(until, "");
    }

    /// Ejects the endpoint as [`eject`](Self::eject) does, and records a reason to be shown.
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

    /// Sets whether the endpoint's heartbeats are missing, independently of health checks.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.change(|state| state.silent = silent);
    }

    /// Ends an ejection that is over at `now`, and returns weight and status.
    pub(crate) fn weight_and_status(&self, now: Instant) -> (u32, Status) {
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

    /// Changes the state; returns whether the status has changed.
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

/// Allows a lookup by address alone, because endpoint and address hash alike.
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
