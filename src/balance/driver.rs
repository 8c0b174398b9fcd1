use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, Sleep},
};
use tower::{
    BoxError,
    discover::{Change, Discover},
};
use tracing::{debug, info, warn};

use super::{
    reported::follow_reports,
    shared::{InPanic, Shared, Snapshot, Standing},
    warmth::Warmths,
};
use crate::{
    endpoint::{Address, Endpoint, Status},
    error::{NoEndpoints, Unavailable},
    policy::{Member, Policy},
};

/// The one task of a balancer: takes discovery and status changes in, puts snapshots out.
///
/// A future that ends when the last handle of its balancer is gone, and then lets go of discovery and every
/// service. While it is not polled the balancer keeps the set that it has; dropped before discovery's first report, it leaves the
/// balancer with no endpoints.
///
/// Cost: a snapshot is published once all changes at hand are taken in; it costs O(n) and what the
/// policy's table costs, off the request path.
#[must_use = "a driver does nothing unless polled"]
pub struct Driver<D, P, S, Req, A>
where
    P: Policy<A, S, Req>,
{
    /// `None` once it has ended: it is not polled again.
    discover: Option<Pin<Box<D>>>,
    shared: Weak<Shared<A, S, P, P::Table>>,
    members: Roll<A, S>,
    signal: Arc<Notify>,
    signalled: Pin<Box<OwnedNotified>>,
    /// Runs until the first ejection ends, or shares are to grow.
    next_change: Option<Pin<Box<Sleep>>>,
    reported: bool,
    /// Items of discovery since the last publication, and how many make one worth while.
    items: usize,
    worth: usize,
    stale: bool,
    in_panic: bool,
    /// Used in slow start alone.
    warmths: Warmths,
    last_error: Option<Arc<BoxError>>,
    /// Snapshots that a pick may be reading still: dropped here, not on a request's path.
    retired: Vec<Arc<Snapshot<A, S, P::Table>>>,
    retries: usize,
}

/// Who is a member: in the order of joining, and by address.
struct Roll<A, S> {
    members: BTreeMap<u64, (Endpoint<A>, S)>,
    /// Who has left since the last publication.
    departed: Vec<(u64, Endpoint<A>)>,
    ids: HashMap<Endpoint<A>, u64>,
    /// Those whose weight was 0 when the last snapshot was made.
    draining: HashSet<Endpoint<A>>,
    next_id: u64,
}

impl<D, P, S, Req, A> Driver<D, P, S, Req, A>
where
    P: Policy<A, S, Req>,
{
    pub(super) fn new(discover: D, shared: &Arc<Shared<A, S, P, P::Table>>) -> Self {
        Self {
            discover: Some(Box::pin(discover)),
            shared: Arc::downgrade(shared),
            members: Roll::default(),
            signal: shared.driver.clone(),
            signalled: Box::pin(shared.driver.clone().notified_owned()),
            next_change: None,
            reported: false,
            items: 0,
            worth: ITEMS_A_POLL,
            stale: false,
            in_panic: false,
            warmths: Warmths::default(),
            last_error: None,
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
    /// Takes in what discovery has; says whether there may be more at once.
    fn poll_discovery(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..ITEMS_A_POLL {
            let Some(discover) = &mut self.discover else {
                return Poll::Pending;
            };
            let Poll::Ready(item) = discover.as_mut().poll_discover(cx) else {
                return Poll::Pending;
            };
            self.stale |= !self.reported;
            self.reported = true;
            self.items += 1;
            match item {
                None => {
                    debug!("discovery ended: the set stays as it is");
                    self.discover = None;
                }
                Some(Err(error)) => self.take_error(error.into()),
                Some(Ok(change)) => {
                    self.last_error = None;
                    self.stale = true;
                    self.members.take(change, &self.signal);
                }
            }
        }
        Poll::Ready(())
    }

    fn take_error(&mut self, error: BoxError) {
        // A set that is known to be empty is said by an error, for a change cannot say it.
        if error.is::<NoEndpoints>() {
            self.stale |= self.last_error.take().is_some() && self.members.is_empty();
            return;
        }
        // Only the first in a row: a source may fail as often as it is asked.
        if self.last_error.is_none() {
            warn!(%error, "discovery failed: the set stays as it is");
        }
        self.stale |= self.members.is_empty();
        self.last_error = Some(Arc::new(error));
    }

    /// Publishes the members as they stand at `now`.
    fn publish(&mut self, shared: &Shared<A, S, P, P::Table>, now: Instant) {
        let mut next_change: Option<Instant> = None;
        let mut available = 0;
        let mut taking = 0;
        let mut members: Vec<Member<A, S>> = Vec::with_capacity(self.members.len());
        for (&id, (endpoint, service)) in &self.members.members {
            let (weight, status) = endpoint.standing(now);
            if weight == 0 && self.members.draining.insert(endpoint.clone()) {
                info!(%endpoint, "draining: no new requests");
            }
            let are_some_draining = !self.members.draining.is_empty();
            if weight > 0 && are_some_draining && self.members.draining.remove(endpoint) {
                info!(%endpoint, "no longer draining");
            }
            if let Status::Ejected { until } = status {
                next_change = Some(next_change.map_or(until, |end| end.min(until)));
            }
            let is_available = status == Status::Available && weight > 0;
            taking += usize::from(weight > 0);
            available += usize::from(is_available);
            members.push(Member {
                endpoint: endpoint.clone(),
                service: service.clone(),
                id,
                weight,
                share: weight,
                candidate: is_available,
            });
        }
        if let Some(slow_start) = &shared.config.slow_start {
            if let Some(tick) = self.warmths.warm_up(slow_start, &mut members, now) {
                let next = now + tick;
                next_change = Some(next_change.map_or(next, |end| end.min(next)));
            }
        }
        follow_reports(&mut members);
        let standing = self.judge(shared, available, taking, &mut members);
        if self.in_panic {
            // Those who have just come back are the well ones: they need not stand back for the others.
            for member in &mut members {
                member.share = member.weight;
            }
        }
        let previous = Arc::clone(&shared.snapshot());
        let table = shared.policy.table(&members, Some(&previous.table));
        debug!(members = members.len(), available, "publishing a snapshot");
        let version = previous.version + 1;
        drop(previous);
        // Before they are gone from the snapshot.
        shared.remember(self.members.departed.drain(..));
        let previous = shared.publish(Snapshot {
            version,
            members: members.into(),
            table,
            standing,
        });
        self.retired.push(previous);
        self.next_change = next_change.map(|at| Box::pin(tokio::time::sleep_until(at)));
        self.stale = false;
        self.items = 0;
        self.worth = ITEMS_A_POLL.max(2 * self.members.len());
    }

    /// Decides whether there is anything to pick, and revives members in a panic.
    fn judge(
        &mut self,
        shared: &Shared<A, S, P, P::Table>,
        available: usize,
        taking: usize,
        members: &mut [Member<A, S>],
    ) -> Standing {
        let share = available as f64 / taking as f64;
        let panic = taking > 0 && (available == 0 || share < shared.config.panic_threshold);
        if panic != self.in_panic {
            self.in_panic = panic;
            members
                .iter()
                .for_each(|member| member.endpoint.set_revived(false));
            if panic {
                let action = shared.config.in_panic;
                warn!(
                    available,
                    of = taking,
                    ?action,
                    "too few endpoints are available: panic"
                );
            } else {
                info!(
                    available,
                    of = taking,
                    "enough endpoints are available again"
                );
            }
        }
        if taking == 0 {
            return Standing::Empty(NoEndpoints::because(members.len(), self.last_error.clone()));
        }
        if panic && shared.config.in_panic == InPanic::Fail {
            return Standing::Closed(Unavailable::new(available, taking));
        }
        if panic {
            for member in members {
                let revived = !member.candidate && member.weight > 0;
                member.endpoint.set_revived(revived);
                member.candidate |= revived;
            }
        }
        Standing::Open
    }

    /// Drops the snapshots that no pick reads any more; says whether some are left.
    fn drop_retired(&mut self) -> bool {
        // Nothing clones a snapshot that is not the newest: a count of one stays one.
        self.retired
            .retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retries = if self.retired.is_empty() {
            0
        } else {
            self.retries + 1
        };
        if self.retries > RETRIES_FOR_READERS {
            // A reader was interrupted in the middle of a pick: let it drop them.
            self.retired.clear();
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
        // 1. Without handles there is nobody to drive for; the last one's drop has woken this task.
        let Some(shared) = this.shared.upgrade() else {
            // Also where the caller keeps the driver.
            this.discover = None;
            this.members = Roll::default();
            this.retired.clear();
            return Poll::Ready(());
        };
        // 2. What endpoints say of themselves, and the ends of ejections.
        while this.signalled.as_mut().poll(cx).is_ready() {
            this.stale = true;
            this.signalled = Box::pin(this.signal.clone().notified_owned());
        }
        if let Some(sleep) = &mut this.next_change {
            if sleep.as_mut().poll(cx).is_ready() {
                this.next_change = None;
                this.stale = true;
            }
        }
        // 3. What discovery says. A source that always has more is interrupted, for other tasks' sake, and
        // what it said is published once it is worth the while.
        let more = this.poll_discovery(cx).is_ready();
        if this.stale && (!more || this.items >= this.worth) {
            this.publish(&shared, Instant::now());
            // A new timer has to be polled to wake this task.
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

impl<A: Address, S> Roll<A, S> {
    fn take(&mut self, change: Change<Endpoint<A>, S>, signal: &Arc<Notify>) {
        match change {
            Change::Insert(endpoint, service) => {
                endpoint.attach(signal);
                let id = self.next_id;
                self.next_id += 1;
                match self.ids.remove(&endpoint) {
                    Some(id) => {
                        self.depart(id);
                        info!(%endpoint, "endpoint's service replaced");
                    }
                    None => info!(%endpoint, "endpoint joined"),
                }
                self.ids.insert(endpoint.clone(), id);
                self.members.insert(id, (endpoint, service));
            }
            Change::Remove(endpoint) => {
                if let Some(id) = self.ids.remove(&endpoint) {
                    self.depart(id);
                    self.draining.remove(&endpoint);
                    info!(%endpoint, "endpoint left");
                }
            }
        }
    }
}

// Not derived, for that would ask for an `A` and an `S` that have defaults.
impl<A, S> Default for Roll<A, S> {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            departed: Vec::new(),
            ids: HashMap::new(),
            draining: HashSet::new(),
            next_id: 0,
        }
    }
}

impl<A, S> Roll<A, S> {
    fn depart(&mut self, id: u64) {
        if let Some((endpoint, _)) = self.members.remove(&id) {
            self.departed.push((id, endpoint));
        }
    }

    fn len(&self) -> usize {
        self.members.len()
    }

    fn is_empty(&self) -> bool {
        self.members.is_empty()
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
        if !matches!(shared.snapshot().standing, Standing::Unreported) {
            return;
        }
        // Nobody will ever report: those who wait for it are told. The drop may be a panic's, and the table
        // foreign code.
        let table = || shared.policy.table(&[], None);
        if let Ok(table) = std::panic::catch_unwind(AssertUnwindSafe(table)) {
            shared.publish(Snapshot {
                version: 1,
                members: Box::default(),
                table,
                standing: Standing::Empty(NoEndpoints::new()),
            });
        }
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
            .field("reported", &self.reported)
            .field("in_panic", &self.in_panic)
            .finish_non_exhaustive()
    }
}

/// A longer run would keep other tasks of this worker waiting for more than some 100 us.
const ITEMS_A_POLL: usize = 1024;

/// A pick takes well under a microsecond; so many polls later it has been interrupted.
const RETRIES_FOR_READERS: usize = 16;
