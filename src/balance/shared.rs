use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;

use super::{arrivals::Arrivals, reserved::Wish, slow_start::SlowStart, suspects::Suspects};
use crate::{
    atomic::{Acquire, ArcSwap, AtomicU64, Guard, Release},
    endpoint::Endpoint,
    error::{NoEndpoints, Unavailable},
    guard::drop_each_guarded,
    member::Member,
};

/// The state that all handles of a balancer share with its driver.
pub(super) struct Shared<A, S, P, T> {
    /// Padded: requests read this, and every clone writes the reference counts, which must not be
    /// on the same cache line.
    current: CachePadded<Current<A, S, T>>,
    pub(super) policy: P,
    pub(super) config: Config,
    /// Wakes the handles that wait for another snapshot.
    pub(super) published: Arc<Notify>,
    /// Wakes the driver.
    pub(super) driver: Arc<Notify>,
    /// The members that left last, to name the endpoints of requests that fail after that.
    departed: Mutex<VecDeque<(u64, Endpoint<A>)>>,
    /// Wakes the driver to look at the suspects. Nothing is published for that.
    pub(super) suspected: Arc<Notify>,
    /// The members that failed to become ready.
    pub(super) suspects: Suspects<S>,
    /// Set once the driver is gone. Relaxed: the snapshot that says so is published apart.
    is_undriven: AtomicBool,
}

/// The part that every request reads and only a publication writes.
struct Current<A, S, T> {
    snapshot: ArcSwap<Snapshot<A, S, T>>,
    /// The newest snapshot's version, which is cheaper to read than the snapshot itself.
    version: AtomicU64,
}

/// The immutable list of members that picks are made from.
pub(super) struct Snapshot<A, S, T> {
    pub(super) version: u64,
    /// In the order of their ids.
    pub(super) members: Box<[Member<A, S>]>,
    pub(super) table: T,
    pub(super) availability: Availability,
    pub(super) arrivals: Arrivals,
}

/// Whether there is anything to pick.
#[derive(Clone, Debug)]
pub(super) enum Availability {
    /// Discovery has not reported yet.
    Unreported,
    /// The driver is gone.
    Undriven,
    Empty(NoEndpoints),
    Closed(Unavailable),
    Open,
}

/// The settings of a balancer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    pub(super) when_empty: WhenEmpty,
    pub(super) in_panic: InPanic,
    /// A smaller share of available members is a panic. No available member is always one.
    pub(super) panic_threshold: f64,
    pub(super) slow_start: Option<SlowStart>,
}

/// What a call gets while no endpoint takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenEmpty {
    Fail,
    Wait,
}

/// What the balancer does when too few members are available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InPanic {
    TryAll,
    Fail,
}

impl<A, S, P, T> Shared<A, S, P, T> {
    pub(super) fn new(policy: P, table: T, config: Config) -> Self {
        let snapshot = Snapshot {
            version: 0,
            members: Box::default(),
            table,
            availability: Availability::Unreported,
            arrivals: Arrivals::default(),
        };
        Self {
            current: CachePadded::new(Current {
                snapshot: ArcSwap::from_pointee(snapshot),
                version: AtomicU64::new(0),
            }),
            policy,
            config,
            published: Arc::default(),
            driver: Arc::default(),
            departed: Mutex::default(),
            suspected: Arc::default(),
            suspects: Suspects::new(),
            is_undriven: AtomicBool::new(false),
        }
    }

    /// Returns the newest snapshot. Drop the guard soon: do not store it or hold it over an await.
    #[inline]
    pub(super) fn snapshot(&self) -> Guard<Arc<Snapshot<A, S, T>>> {
        self.current.snapshot.load()
    }

    /// Makes `snapshot` the newest one, for picks to use. Returns the previous one.
    pub(super) fn publish(&self, snapshot: Snapshot<A, S, T>) -> Arc<Snapshot<A, S, T>> {
        let version = snapshot.version;
        let current = &self.current;
        let previous = current.snapshot.swap(Arc::new(snapshot));
        // Release; pairs with the Acquire in `is_current`: a thread that sees the version finds the
        // snapshot.
        // loom: `loom_who_sees_a_version_finds_its_snapshot`
        current.version.store(version, Release);
        self.published.notify_waiters();
        previous
    }

    /// Returns the endpoint of the member with this id, or of one that has left recently. **O(log
    /// n)** for a member.
    pub(super) fn endpoint(&self, id: u64) -> Option<Endpoint<A>> {
        let snapshot = self.snapshot();
        if let Ok(position) = snapshot.members.binary_search_by_key(&id, |m| m.id) {
            return Some(snapshot.members[position].endpoint().clone());
        }
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = departed.iter().find(|(departed, _)| *departed == id);
        found.map(|(_, endpoint)| endpoint.clone())
    }

    /// Remembers the endpoints of members that leave, up to [`REMEMBERED`] of them.
    pub(super) fn remember(&self, departed: impl IntoIterator<Item = (u64, Endpoint<A>)>) {
        let mut remembered = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.extend(departed);
        let surplus = remembered.len().saturating_sub(REMEMBERED);
        let forgotten: Vec<_> = remembered.drain(..surplus).collect();
        // The drop of an address is foreign code, which no lock must be held for.
        drop(remembered);
        drop(forgotten);
    }

    pub(super) fn set_undriven(&self) {
        self.is_undriven.store(true, Relaxed);
    }

    pub(super) fn is_driven(&self) -> bool {
        !self.is_undriven.load(Relaxed)
    }

    /// Returns whether `version` is still the newest snapshot's.
    #[inline]
    pub(super) fn is_current(&self, version: u64) -> bool {
        self.current.version.load(Acquire) == version
    }
}

impl<A, S, P, T> Drop for Shared<A, S, P, T> {
    fn drop(&mut self) {
        // Wakes the driver, which finds that the last handle is gone, and ends. loom:
        // `loom_the_driver_ends_with_the_last_handle`
        self.driver.notify_one();
    }
}

/// Services are foreign code, and so is their drop.
impl<A, S, T> Drop for Snapshot<A, S, T> {
    fn drop(&mut self) {
        drop_each_guarded(std::mem::take(&mut self.members));
    }
}

impl<A, S, T> Snapshot<A, S, T> {
    /// Returns the position of the member, if it may still be called. **O(log n)**.
    pub(super) fn position(&self, wish: Wish) -> Option<usize> {
        let id = wish.id();
        let position = self.members.binary_search_by_key(&id, |m| m.id).ok()?;
        let member = &self.members[position];
        let may_be_called = member.candidate || (member.drains && wish.is_even_draining());
        may_be_called.then_some(position)
    }
}

impl<A, S, P: fmt::Debug, T> fmt::Debug for Shared<A, S, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("Shared")
            .field("policy", &self.policy)
            .field("config", &self.config)
            .field("version", &snapshot.version)
            .field("availability", &snapshot.availability)
            .field("members", &snapshot.members.len())
            .finish_non_exhaustive()
    }
}

/// How many departed members are remembered. If more leave at once while requests to them are under
/// way, the first of them can't be named in errors.
const REMEMBERED: usize = 256;
