use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, Sleep},
};
use tower::{BoxError, discover::Discover};
use tracing::{debug, error};

use super::{
    arrivals::Arrivals,
    feed::Feed,
    members::Members,
    publish::{Publisher, earlier},
    shared::{Availability, Shared, Snapshot},
    suspects::Suspicions,
};
use crate::{
    endpoint::{Address, Endpoint},
    error::NotDriven,
    guard::{drop_each_guarded, drop_guarded, guarded},
    member::Member,
    policy::{Candidates, Policy},
    timer,
};

/// Runs a balancer: takes in discovery and status changes, and publishes snapshots.
///
/// This future completes when the last handle of its balancer is gone. It then drops discovery and
/// every service. While it is not polled, the balancer keeps the set of members that it has. If it
/// is dropped while handles live, every call fails with [`NotDriven`](crate::NotDriven).
///
/// Foreign code runs guarded: a factory or a layer that panics costs one endpoint, a policy's table
/// or a source that panics leaves the set as it is. Each is an event at `error`.
///
/// Cost: one snapshot for all changes that are ready at once. A snapshot costs **O(n)** and the
/// policy's table. No request pays for it. One that takes long is followed by a pause of four times
/// as long, so that a set that changes all the time leaves the thread to others.
#[must_use = "a driver does nothing unless polled"]
pub struct Driver<D, P, S, Req, A = std::net::SocketAddr>
where
    P: Policy<A, S, Req>,
{
    feed: Feed<D>,
    shared: Weak<Shared<A, S, P, P::Table>>,
    members: Members<A, S>,
    signal: Arc<Notify>,
    signalled: Pin<Box<OwnedNotified>>,
    /// Runs until the first ejection ends, shares are to grow or the policy wants a new table.
    next_change: Option<Pin<Box<Sleep>>>,
    /// Items of discovery since the last publication. Once there are `worth` of them, they are
    /// published even if discovery has more.
    items: usize,
    worth: usize,
    is_stale: bool,
    /// Until when no snapshot is published, because the last one took long, and the timer for it.
    pause: Option<(Instant, Option<Pin<Box<Sleep>>>)>,
    publisher: Publisher<A>,
    suspicions: Suspicions,
    suspected: Pin<Box<OwnedNotified>>,
    /// Runs until the suspects are looked at again.
    suspicion_timer: Option<Pin<Box<Sleep>>>,
    /// Snapshots that a pick may still be reading. Dropped here, off the path of requests.
    retired: Vec<Arc<Snapshot<A, S, P::Table>>>,
    retries: usize,
}

impl<D, P, S, Req, A> Driver<D, P, S, Req, A>
where
    P: Policy<A, S, Req>,
{
    pub(super) fn new(discover: D, shared: &Arc<Shared<A, S, P, P::Table>>) -> Self {
        Self {
            feed: Feed::new(discover),
            shared: Arc::downgrade(shared),
            members: Members::default(),
            signal: shared.driver.clone(),
            signalled: Box::pin(shared.driver.clone().notified_owned()),
            next_change: None,
            items: 0,
            worth: ITEMS_A_POLL,
            is_stale: false,
            pause: None,
            publisher: Publisher::default(),
            suspicions: Suspicions::default(),
            suspected: Box::pin(shared.suspected.clone().notified_owned()),
            suspicion_timer: None,
            retired: Vec::new(),
            retries: 0,
        }
    }
}

impl<D, P, S, Req, A> Driver<D, P, S, Req, A>
where
    D: Discover<Key = Endpoint<A>, Service = S, Error: Into<BoxError>>,
    P: Policy<A, S, Req>,
    S: Clone,
    A: Address,
{
    /// Takes in what discovery has ready, up to a limit. Ready if there may be more at once.
    fn poll_discovery(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ITEMS_A_POLL {
            let had_reported = self.feed.has_reported();
            let change = ready!(self.feed.poll(cx));
            self.items += 1;
            // Of an empty set, callers are told why it is empty.
            self.is_stale |= change.is_some() || !had_reported || self.members.is_empty();
            if let Some(change) = change {
                self.members.apply(change, &self.signal);
            }
        }
        Poll::Ready(())
    }

    /// Publishes the members as they stand at `now`.
    fn publish(&mut self, shared: &Shared<A, S, P, P::Table>, now: Instant) {
        let no_endpoints = self.feed.no_endpoints();
        let draft = self
            .publisher
            .draft(&self.members, &shared.config, no_endpoints, now);
        let members: Box<[Member<A, S>]> = draft.members.into();
        let previous = Arc::clone(&shared.snapshot());
        let candidates = Candidates::new(&members);
        let built = guarded(|| {
            let table = shared.policy.table(candidates, Some(&previous.table));
            let refresh_at = shared.policy.refresh_at(&table);
            (table, refresh_at)
        });
        self.is_stale = false;
        self.items = 0;
        self.worth = ITEMS_A_POLL.max(2 * self.members.len());
        let (table, refresh_at) = match built {
            Ok(built) => built,
            Err(panic) => {
                error!(%panic, "the policy's table panicked: picks go on with the one before");
                self.next_change = timer::start(TABLE_PAUSE);
                drop_each_guarded(members);
                return;
            }
        };
        let refresh_at = refresh_at.map(|at| at.max(now + SOONEST_REFRESH));
        let next_change = earlier(draft.next_change, refresh_at);
        debug!(members = members.len(), "publishing a snapshot");
        let version = previous.version + 1;
        let arrivals = previous
            .arrivals
            .followed_by(version, &previous.members, &members);
        drop(previous);
        // Before the new snapshot drops them: a look-up by id must find them in one place or the
        // other.
        shared.remember(self.members.take_departed());
        let previous = shared.publish(Snapshot {
            version,
            members,
            table,
            availability: draft.availability,
            arrivals,
        });
        self.retired.push(previous);
        self.next_change = next_change.map(|at| Box::pin(tokio::time::sleep_until(at)));
    }

    /// Looks at the members that failed to become ready. If some may have failed for good, the
    /// timer has registered the waker.
    fn look_at_suspects(&mut self, shared: &Shared<A, S, P, P::Table>, cx: &mut Context<'_>) {
        while self.suspected.as_mut().poll(cx).is_ready() {
            self.suspected = Box::pin(shared.suspected.clone().notified_owned());
        }
        let timer = self.suspicion_timer.as_mut();
        if timer.is_some_and(|timer| timer.as_mut().poll(cx).is_pending()) {
            return;
        }
        let now = Instant::now();
        let next = self
            .suspicions
            .look(&shared.suspects, &self.members, cx, now);
        self.suspicion_timer = next.and_then(timer::start);
        if let Some(timer) = &mut self.suspicion_timer {
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Returns whether the last publication is too recent for the next one. If so, the timer has
    /// registered the waker.
    fn is_pausing(&mut self, cx: &mut Context<'_>) -> bool {
        // By the clock: the caller of `Balance::pair` may poll the driver where no timer fires.
        let timer = match &mut self.pause {
            Some((until, Some(timer))) if Instant::now() < *until => timer,
            _ => {
                self.pause = None;
                return false;
            }
        };
        if timer.as_mut().poll(cx).is_ready() {
            self.pause = None;
        }
        self.pause.is_some()
    }

    /// Drops the snapshots that no pick reads any more. Returns whether some are left.
    fn drop_retired(&mut self) -> bool {
        // Only the newest snapshot is ever cloned: once the count here is one, it stays one.
        let (kept, read) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retired = kept;
        drop_guarded(read);
        self.retries = if self.retired.is_empty() {
            0
        } else {
            self.retries + 1
        };
        if self.retries > RETRIES_FOR_READERS {
            // A reader was interrupted in the middle of a pick. Let the reader drop its snapshot.
            drop_guarded(std::mem::take(&mut self.retired));
            self.retries = 0;
        }
        !self.retired.is_empty()
    }
}

impl<D, P, S, Req, A> Future for Driver<D, P, S, Req, A>
where
    D: Discover<Key = Endpoint<A>, Service = S, Error: Into<BoxError>>,
    P: Policy<A, S, Req>,
    S: Clone,
    A: Address,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // 1. Without handles there is nothing to drive. The drop of the last one has woken this
        // task.
        let Some(shared) = this.shared.upgrade() else {
            // Dropped here, because the caller may keep the driver after its end.
            this.feed.end();
            drop_guarded(std::mem::take(&mut this.members));
            drop_guarded(std::mem::take(&mut this.retired));
            return Poll::Ready(());
        };
        // 2. Changes of the endpoints' own state, and the timer.
        while this.signalled.as_mut().poll(cx).is_ready() {
            this.is_stale = true;
            this.signalled = Box::pin(this.signal.clone().notified_owned());
        }
        if let Some(sleep) = &mut this.next_change {
            if sleep.as_mut().poll(cx).is_ready() {
                this.next_change = None;
                this.is_stale = true;
            }
        }
        // 3. Services that may have failed for good.
        this.look_at_suspects(&shared, cx);
        // 4. Discovery. A source that always has more is interrupted for the sake of other tasks.
        // What it has yielded is published once there is enough of it.
        let more = this.poll_discovery(cx).is_ready();
        // Before discovery has reported, callers wait: a set that is not known yet is not empty.
        let is_due = this.is_stale && (!more || this.items >= this.worth);
        if is_due && this.feed.has_reported() && !this.is_pausing(cx) {
            let start = Instant::now();
            this.publish(&shared, start);
            let pause = pause_after(start.elapsed());
            this.pause = pause.map(|pause| (Instant::now() + pause, timer::start(pause)));
            // A new timer does not wake this task before its first poll.
            if let Some(sleep) = &mut this.next_change {
                if sleep.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        if this.drop_retired() || more {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<D, P, S, Req, A> Drop for Driver<D, P, S, Req, A>
where
    P: Policy<A, S, Req>,
{
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        shared.set_undriven();
        // This drop may be part of a panic, and the table is foreign code. A second panic would
        // abort the process, so it is caught.
        let table = guarded(|| shared.policy.table(Candidates::new(&[]), None));
        if let Ok(table) = table {
            let version = shared.snapshot().version + 1;
            let previous = shared.publish(Snapshot {
                version,
                members: Box::default(),
                table,
                availability: Availability::Undriven,
                arrivals: Arrivals::default(),
            });
            drop_guarded(previous);
        } else {
            // At least those who wait are told.
            shared.published.notify_waiters();
        }
        error!("{NotDriven}");
    }
}

// Discovery is boxed; nothing else is pinned.
impl<D, P, S, Req, A> Unpin for Driver<D, P, S, Req, A> where P: Policy<A, S, Req> {}

impl<D, P, S, Req, A> fmt::Debug for Driver<D, P, S, Req, A>
where
    P: Policy<A, S, Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("members", &self.members.len())
            .field("has_reported", &self.feed.has_reported())
            .field("is_in_panic", &self.publisher.is_in_panic())
            .finish_non_exhaustive()
    }
}

/// Returns the pause after a publication that took this long; `None` if it is not worth a timer.
///
/// However many changes come, publishing takes a fifth of one thread at most.
fn pause_after(took: Duration) -> Option<Duration> {
    let pause = took.saturating_mul(PAUSES);
    (pause >= SHORTEST_PAUSE).then_some(pause)
}

/// A publication that took t is followed by a pause of 4 t.
const PAUSES: u32 = 4;

/// tokio's timers have a resolution of a millisecond.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

/// A longer run would keep other tasks of this worker waiting for more than some 100 us.
const ITEMS_A_POLL: usize = 1024;

/// A pick takes well under a microsecond. A reader that is still there after this many polls has
/// been interrupted.
const RETRIES_FOR_READERS: usize = 16;

/// A policy that always wants a new table must not keep the driver busy.
const SOONEST_REFRESH: Duration = Duration::from_millis(1);

/// How soon a table that panicked is tried again.
const TABLE_PAUSE: Duration = Duration::from_secs(1);
