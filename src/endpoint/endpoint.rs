use std::{
    borrow::Borrow,
    fmt,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Asking, BreakerView, Census, Counts, Ejection, IntoTarget, Notice, Status, Target,
    census::Entries, notice::wake, state::State,
};

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
    state: Mutex<State<A>>,
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
                out: None,
                unhealthy: false,
                unknown: false,
                silent: false,
                reported: None,
                revived: false,
                since: Instant::now(),
                source: Weak::new(),
                is_made_again: false,
                driver: Weak::new(),
                census: Entries::default(),
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
    pub fn priority(&self) -> u16 {
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
        state.ejected().is_some() && !state.revived
    }

    /// Returns whether the endpoint is ejected, revived or not, and whatever checks say.
    pub(crate) fn is_ejected(&self) -> bool {
        self.state().ejected().is_some()
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
        let driver = {
            let mut state = self.state();
            let has_changed = state.reported != weight;
            state.reported = weight;
            state.driver_if(has_changed)
        };
        wake(driver);
    }

    /// Returns why the endpoint is ejected, and until when.
    ///
    /// Unlike [`status`](Self::status), it shows an ejection even if a check has failed as well.
    #[must_use]
    pub fn ejection(&self) -> Option<Ejection> {
        let ejection = self.state().ejection();
        ejection.filter(|ejection| ejection.until > Instant::now())
    }

    /// Returns when the current [`status`](Self::status) began.
    #[must_use]
    pub fn status_since(&self) -> Instant {
        self.state().since
    }

    /// Sets weight, zone, priority and hash key to the target's; ignores its address.
    pub fn set_attributes<B>(&self, target: &Target<B>) {
        let driver = {
            let mut state = self.state();
            let has_changed = state.weight != target.weight
                || state.zone != target.zone
                || state.priority != target.priority
                || state.hash_key != target.hash_key;
            state.weight = target.weight;
            state.zone.clone_from(&target.zone);
            state.priority = target.priority;
            state.hash_key.clone_from(&target.hash_key);
            state.update_census();
            state.driver_if(has_changed)
        };
        wake(driver);
    }

    /// Makes every change from now on notify `driver`, in place of the previous driver.
    pub(crate) fn attach(&self, driver: &Arc<Notify>) {
        self.state().driver = Arc::downgrade(driver);
    }

    /// Ejects the endpoint; the caller tells of it once it holds no lock.
    pub(crate) fn eject_untold(&self, until: Instant, reason: Arc<str>) -> Notice<A> {
        self.set_ejected(Ejection { until, reason }, true)
    }

    fn set_ejected(&self, ejection: Ejection, by_outliers: bool) -> Notice<A> {
        self.change(|state| {
            let out = state.out.get_or_insert_default();
            (out.ejected, out.by_outliers) = (Some(ejection), by_outliers);
        })
    }

    /// Ends an ejection by outlier detection, because a check has succeeded.
    pub(crate) fn readmit_checked(&self)
    where
        A: fmt::Display,
    {
        let readmit = |state: &mut State<A>| {
            if state.out.as_ref().is_some_and(|out| out.by_outliers) {
                state.readmit();
            }
        };
        self.change(readmit).tell();
    }

    /// Ends an ejection; the caller tells of it once it holds no lock.
    pub(crate) fn readmit_untold(&self) -> Notice<A> {
        self.change(State::readmit)
    }

    /// Ejects the endpoint because its server asks for it. Nothing but the end of the time ends it.
    pub(crate) fn rest_until(&self, until: Instant)
    where
        A: fmt::Display,
    {
        let later = |state: &mut State<A>| {
            let out = state.out.get_or_insert_default();
            out.rests = out.rests.max(Some(until));
        };
        self.change(later).tell();
    }

    /// Ends a time that the server has asked for.
    pub(crate) fn end_rest(&self)
    where
        A: fmt::Display,
    {
        let end = |state: &mut State<A>| {
            if let Some(out) = &mut state.out {
                out.rests = None;
            }
            state.out.take_if(|out| out.ejected.is_none());
        };
        self.change(end).tell();
    }

    /// Sets whether the endpoint's heartbeats are missing, independently of health checks.
    ///
    /// The caller tells of it once it holds no lock.
    pub(crate) fn set_silent(&self, silent: bool) -> Notice<A> {
        self.change(|state| state.silent = silent)
    }

    /// Counts the endpoint in `census` until [`leave_census`](Self::leave_census), under a number
    /// that nobody else uses.
    pub(crate) fn enter_census(&self, census: &Arc<Census>, number: u64, breaker: BreakerView) {
        let mut state = self.state();
        state.census.add(number, census, breaker);
        state.update_census();
    }

    pub(crate) fn leave_census(&self, number: u64) {
        self.state().census.remove(number);
    }

    /// Tells the census of a breaker's change.
    pub(crate) fn set_breaker(&self, number: u64, breaker: BreakerView) {
        let mut state = self.state();
        state.census.set_breaker(number, breaker);
        state.update_census();
    }

    /// Returns what the census counts without this endpoint; `None` if it has left. **O(1)**.
    pub(crate) fn others(&self, number: u64) -> Option<Counts> {
        self.state().census.others(number)
    }

    /// Sets whom the endpoint may ask for another service.
    pub(crate) fn made_by(&self, source: &Arc<Asking<A>>) {
        self.state().source = Arc::downgrade(source);
    }

    pub(crate) fn can_be_made_again(&self) -> bool {
        self.state().source.strong_count() > 0
    }

    /// Asks the source for another service. The source looks when it is polled.
    pub(crate) fn ask_for_another(&self) {
        let mut state = self.state();
        let source = state.source.upgrade();
        state.is_made_again |= source.is_some();
        drop(state);
        if let Some(source) = source {
            source.lock().push(self.clone());
        }
    }

    /// Returns whether the service is not the first one, or is about to be another one.
    pub(crate) fn is_made_again(&self) -> bool {
        self.state().is_made_again
    }

    fn change(&self, set: impl FnOnce(&mut State<A>)) -> Notice<A> {
        let mut state = self.state();
        let change = state.change(set);
        Notice {
            endpoint: self.clone(),
            driver: state.driver_if(change.is_some()),
            change,
        }
    }

    fn state(&self) -> MutexGuard<'_, State<A>> {
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
        self.set_ejected(Ejection { until, reason }, false).tell();
    }

    /// Ends an ejection. A failed check still counts.
    pub fn readmit(&self) {
        self.readmit_untold().tell();
    }

    /// Takes the endpoint out of the picks until [`mark_healthy`](Self::mark_healthy).
    pub fn mark_unhealthy(&self) {
        self.set_checked(true);
    }

    /// Withdraws [`mark_unhealthy`](Self::mark_unhealthy). An ejection still counts.
    pub fn mark_healthy(&self) {
        self.set_checked(false);
    }

    /// Takes the endpoint out of the picks until one of the two above.
    pub(crate) fn mark_unknown(&self) {
        let unknown = |state: &mut State<A>| (state.unhealthy, state.unknown) = (false, true);
        self.change(unknown).tell();
    }

    fn set_checked(&self, unhealthy: bool) {
        let checked = |state: &mut State<A>| (state.unhealthy, state.unknown) = (unhealthy, false);
        self.change(checked).tell();
    }

    /// Ends an ejection that is over at `now`, and returns weight and status.
    pub(crate) fn weight_and_status(&self, now: Instant) -> (u32, Status) {
        let mut state = self.state();
        let is_over = |ejection: Ejection| ejection.until <= now;
        let change = match state.ejection().is_some_and(is_over) {
            true => state.change(|state| state.out = None),
            false => None,
        };
        let weight_and_status = (state.weight, state.status());
        drop(state);
        // The driver itself asks: it needs no wake.
        let (endpoint, driver) = (self.clone(), None);
        let notice = Notice {
            endpoint,
            change,
            driver,
        };
        notice.tell();
        weight_and_status
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
        f.debug_struct("Endpoint")
            .field("address", &format_args!("{}", self.0.address))
            .field("weight", &self.weight())
            .field("zone", &self.zone())
            .field("priority", &self.priority())
            .field("status", &self.status())
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
