use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    atomic::{Acquire, ArcSwap, AtomicU64, Guard, Release},
    endpoint::Endpoint,
    error::{NoEndpoints, Unavailable},
    health::SlowStart,
    policy::Member,
};

/// What all handles of a balancer share with its driver.
pub(super) struct Shared<A, S, P, T> {
    current: CacheLine<Current<A, S, T>>,
    pub(super) policy: P,
    pub(super) config: Config,
    /// Wakes the handles that wait for another snapshot.
    pub(super) published: Arc<Notify>,
    /// Wakes the driver.
    pub(super) driver: Arc<Notify>,
    /// Those who left last, for the names of those at whom requests have failed.
    departed: Mutex<VecDeque<(u64, Endpoint<A>)>>,
}

/// What every request reads and only a publication writes.
struct Current<A, S, T> {
    snapshot: ArcSwap<Snapshot<A, S, T>>,
    /// The newest snapshot's version, where a look at the snapshot itself would cost too much.
    version: AtomicU64,
}

/// Keeps what is read away from the reference counts, which every clone of a handle writes.
#[repr(align(64))]
struct CacheLine<T>(T);

/// The immutable list of members that picks are made from.
pub(super) struct Snapshot<A, S, T> {
    pub(super) version: u64,
    /// In the order of their ids.
    pub(super) members: Box<[Member<A, S>]>,
    pub(super) table: T,
    pub(super) standing: Standing,
}

/// Whether there is anything to pick.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// Discovery has not reported yet.
    Unreported,
    Empty(NoEndpoints),
    Closed(Unavailable),
    Open,
}

/// What the builder of a balancer decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    pub(super) when_empty: WhenEmpty,
    pub(super) in_panic: InPanic,
    /// A smaller share of available members is a panic; so is none at all.
    pub(super) panic_threshold: f64,
    pub(super) slow_start: Option<SlowStart>,
}

/// What a call gets while no endpoint takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenEmpty {
    Fail,
    Wait,
}

/// What is done when too few members are available.
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
            standing: Standing::Unreported,
        };
        Self {
            current: CacheLine(Current {
                snapshot: ArcSwap::from_pointee(snapshot),
                version: AtomicU64::new(0),
            }),
            policy,
            config,
            published: Arc::default(),
            driver: Arc::default(),
            departed: Mutex::default(),
        }
    }

    /// Returns the newest snapshot. What is returned is to be dropped soon: not kept, nor awaited over.
    #[inline]
    pub(super) fn snapshot(&self) -> Guard<Arc<Snapshot<A, S, T>>> {
        self.current.0.snapshot.load()
    }

    /// Makes `snapshot` the one that picks are made from; returns the one before.
    pub(super) fn publish(&self, snapshot: Snapshot<A, S, T>) -> Arc<Snapshot<A, S, T>> {
        let version = snapshot.version;
        let current = &self.current.0;
        let previous = current.snapshot.swap(Arc::new(snapshot));
        // Release; pairs with the Acquire in `is_current`: who sees the version finds the snapshot.
        // loom: `loom_who_sees_a_version_finds_its_snapshot`
        current.version.store(version, Release);
        self.published.notify_waiters();
        previous
    }

    /// Returns the endpoint of the member with this id, also where it has left of late. **O(log n)** for a member.
    pub(super) fn endpoint(&self, id: u64) -> Option<Endpoint<A>> {
        let snapshot = self.snapshot();
        if let Ok(position) = snapshot.members.binary_search_by_key(&id, |m| m.id) {
            return Some(snapshot.members[position].endpoint().clone());
        }
        let departed = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = departed.iter().find(|(departed, _)| *departed == id);
        found.map(|(_, endpoint)| endpoint.clone())
    }

    /// Remembers the names of those who leave.
    pub(super) fn remember(&self, departed: impl IntoIterator<Item = (u64, Endpoint<A>)>) {
        let mut remembered = self.departed.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.extend(departed);
        let surplus = remembered.len().saturating_sub(REMEMBERED);
        remembered.drain(..surplus);
    }

    /// Returns whether `version` is still the newest snapshot's.
    #[inline]
    pub(super) fn is_current(&self, version: u64) -> bool {
        self.current.0.version.load(Acquire) == version
    }
}

impl<A, S, P, T> Drop for Shared<A, S, P, T> {
    fn drop(&mut self) {
        // The last handle is gone: the driver looks, and ends. loom: `loom_the_driver_ends_with_the_last_handle`
        self.driver.notify_one();
    }
}

impl<A, S, T> Snapshot<A, S, T> {
    /// Returns where the member with this id is, if it is still a candidate. **O(log n)**.
    pub(super) fn candidate(&self, id: u64) -> Option<usize> {
        let position = self.members.binary_search_by_key(&id, |m| m.id).ok()?;
        self.members[position].is_candidate().then_some(position)
    }
}

impl<A, S, P: fmt::Debug, T> fmt::Debug for Shared<A, S, P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("Shared")
            .field("policy", &self.policy)
            .field("config", &self.config)
            .field("version", &snapshot.version)
            .field("standing", &snapshot.standing)
            .field("members", &snapshot.members.len())
            .finish_non_exhaustive()
    }
}

/// As many as may leave at once while requests are under way at them; more have no name in an error.
const REMEMBERED: usize = 256;
