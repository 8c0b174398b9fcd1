use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{Layer, discover::Change};
use tracing::{info, warn};

use crate::endpoint::{Address, Endpoint};

/// Takes the heartbeats that backends push, and makes those unhealthy whose last one is too old.
///
/// A cheap handle whose clones are the same one, and a layer between discovery and the balancer: one for each balancer. An
/// endpoint that has just joined counts as having beaten then. The next beat makes it available again, as far
/// as heartbeats go: failed checks and ejections still count.
///
/// ```
/// use std::time::Duration;
/// use tower::ServiceBuilder;
/// use tower_lb::{BalanceLayer, Endpoint, RoundRobin, fixed, health::Heartbeats};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let heartbeats = Heartbeats::new(Duration::from_secs(15));
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(heartbeats.clone())
///     .layer(fixed(["a", "b"]))
///     .service(|_: &Endpoint<&'static str>| tower::service_fn(|()| async { Ok::<_, String>(()) }));
/// # tower::ServiceExt::oneshot(client, ()).await?;
/// // Wherever the beats come in:
/// heartbeats.beat(&"a");
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
pub struct Heartbeats<A> {
    ttl: Duration,
    pulses: Arc<Mutex<Pulses<A>>>,
}

pin_project! {
    /// Discovery whose endpoints are to send heartbeats, made by [`Heartbeats`].
    pub struct HeartbeatDiscover<D, A> {
        #[pin]
        discover: D,
        heartbeats: Heartbeats<A>,
        timer: Option<Pin<Box<Sleep>>>,
        has_ended: bool,
    }
}

struct Pulses<A> {
    by_endpoint: HashMap<Endpoint<A>, Pulse>,
    by_id: HashMap<u64, Endpoint<A>>,
    next_id: u64,
    /// When to look after whom: at the earliest that it may be too late. Some of them may be gone.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
}

#[derive(Debug)]
struct Pulse {
    id: u64,
    last: Instant,
    is_silent: bool,
}

impl<A: Address> Heartbeats<A> {
    /// Makes an endpoint unhealthy when its last heartbeat is older than `ttl`.
    ///
    /// A few times the interval at which backends beat, so that a lost one does no harm.
    #[must_use]
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            pulses: Arc::new(Mutex::new(Pulses {
                by_endpoint: HashMap::new(),
                by_id: HashMap::new(),
                next_id: 0,
                due: BinaryHeap::new(),
            })),
        }
    }

    /// Takes a heartbeat; says whether there is such an endpoint. A short lock, **O(1)**.
    pub fn beat(&self, address: &A) -> bool {
        let mut pulses = self.pulses();
        let Some(pulse) = pulses.by_endpoint.get_mut(address) else {
            return false;
        };
        pulse.last = Instant::now();
        if std::mem::take(&mut pulse.is_silent) {
            let (id, last) = (pulse.id, pulse.last);
            let endpoint = pulses.by_id[&id].clone();
            pulses.look_after(id, last, self.ttl);
            info!(%endpoint, "heartbeats are back");
            // Under the lock, as `look` does, so that the last word is that of who knows last. It wakes the driver,
            // which then sees when it is to look again.
            endpoint.set_silent(false);
        }
        true
    }

    /// Marks who is too late, and returns when to look again.
    fn look(&self, now: Instant) -> Option<Instant> {
        let mut pulses = self.pulses();
        loop {
            let &Reverse((at, id)) = pulses.due.peek()?;
            if at > now {
                return Some(at);
            }
            pulses.due.pop();
            let Some(endpoint) = pulses.by_id.get(&id).cloned() else {
                continue;
            };
            let Some(pulse) = pulses.by_endpoint.get_mut(&endpoint) else {
                continue;
            };
            let last = pulse.last;
            if now.saturating_duration_since(last) < self.ttl {
                pulses.look_after(id, last, self.ttl);
            } else {
                pulse.is_silent = true;
                warn!(%endpoint, ttl = ?self.ttl, "no heartbeat for too long: unhealthy");
                endpoint.set_silent(true);
            }
        }
    }

    fn pulses(&self) -> MutexGuard<'_, Pulses<A>> {
        // Nothing under this lock panics halfway through a change.
        self.pulses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Pulses<A> {
    fn insert(&mut self, endpoint: Endpoint<A>, now: Instant, ttl: Duration) {
        self.remove(&endpoint);
        let id = self.next_id;
        self.next_id += 1;
        let pulse = Pulse {
            id,
            last: now,
            is_silent: false,
        };
        // Whatever was said of a service that this one replaces.
        endpoint.set_silent(false);
        self.by_endpoint.insert(endpoint.clone(), pulse);
        self.by_id.insert(id, endpoint);
        self.look_after(id, now, ttl);
    }

    fn remove(&mut self, endpoint: &Endpoint<A>) {
        if let Some(pulse) = self.by_endpoint.remove(endpoint) {
            self.by_id.remove(&pulse.id);
        }
    }

    fn look_after(&mut self, id: u64, last: Instant, ttl: Duration) {
        // A ttl beyond the clock's end is never over.
        if let Some(at) = last.checked_add(ttl) {
            self.due.push(Reverse((at, id)));
        }
    }
}

impl<D, A, S> Layer<D> for Heartbeats<A>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
{
    type Service = HeartbeatDiscover<D, A>;

    fn layer(&self, discover: D) -> Self::Service {
        HeartbeatDiscover {
            discover,
            heartbeats: self.clone(),
            timer: None,
            has_ended: false,
        }
    }
}

impl<D, A, S> Stream for HeartbeatDiscover<D, A>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
{
    type Item = Result<Change<Endpoint<A>, S>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        // 1. What discovery says, before the timer is set for it.
        let mut item = Poll::Pending;
        if !*this.has_ended {
            item = this
                .discover
                .try_poll_next(cx)?
                .map(|change| change.map(Ok));
            let mut pulses = this.heartbeats.pulses();
            match &item {
                Poll::Ready(Some(Ok(Change::Insert(endpoint, _)))) => {
                    pulses.insert(endpoint.clone(), Instant::now(), this.heartbeats.ttl);
                }
                Poll::Ready(Some(Ok(Change::Remove(endpoint)))) => pulses.remove(endpoint),
                Poll::Ready(None) => *this.has_ended = true,
                _ => {}
            }
            if *this.has_ended && !pulses.by_id.is_empty() {
                item = Poll::Pending;
            }
        }
        // 2. Who is too late. Pending: the timer has registered the waker.
        while let Some(at) = this.heartbeats.look(Instant::now()) {
            let timer = this
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Ready(ready!(item))
    }
}

impl<A> Clone for Heartbeats<A> {
    fn clone(&self) -> Self {
        Self {
            ttl: self.ttl,
            pulses: self.pulses.clone(),
        }
    }
}

impl<A> fmt::Debug for Heartbeats<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeats")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

impl<D: fmt::Debug, A> fmt::Debug for HeartbeatDiscover<D, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeartbeatDiscover")
            .field("discover", &self.discover)
            .field("heartbeats", &self.heartbeats)
            .finish_non_exhaustive()
    }
}
