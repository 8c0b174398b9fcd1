use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{Layer, discover::Change};
use tracing::{info, warn};

use crate::{
    afterwards::Afterwards,
    endpoint::{Address, Endpoint, EndpointMap, Removed},
    health::due::DueTimes,
    upstream::{DiscoverEndpoints, Upstream},
};

/// Makes an endpoint unhealthy when the heartbeats that its backend pushes stop.
///
/// A cheap handle: clones share the same state. It is also a layer between discovery and the
/// balancer. Use one for each balancer.
///
/// An endpoint that has just joined counts as having sent a heartbeat at that moment. After a
/// silence, the next heartbeat withdraws the objection of this layer. The endpoint stays
/// unavailable while a failed check or an ejection still counts against it.
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
pub struct Heartbeats<A = std::net::SocketAddr> {
    ttl: Duration,
    endpoints: Arc<Mutex<Expected<A>>>,
}

pin_project! {
    /// Discovery whose endpoints must send heartbeats, made by [`Heartbeats`].
    pub struct HeartbeatDiscover<D, A = std::net::SocketAddr> {
        #[pin]
        upstream: Upstream<D>,
        heartbeats: Heartbeats<A>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

/// The endpoints that must send heartbeats.
struct Expected<A> {
    map: EndpointMap<A, Beats>,
    /// When to look at each endpoint next: the earliest moment at which its heartbeat can be late.
    due: DueTimes,
}

/// The last heartbeat of one endpoint.
#[derive(Debug)]
struct Beats {
    last: Instant,
    is_silent: bool,
}

impl<A: Address> Heartbeats<A> {
    /// Makes an endpoint unhealthy when its last heartbeat is older than `ttl`.
    ///
    /// Choose a few times the interval at which backends send heartbeats. Then a lost heartbeat
    /// does no harm.
    #[must_use]
    pub fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            endpoints: Arc::new(Mutex::new(Expected {
                map: EndpointMap::default(),
                due: DueTimes::default(),
            })),
        }
    }

    /// Records a heartbeat; returns whether the endpoint is known.
    ///
    /// Takes a lock for a short time. Cost: **O(1)**.
    pub fn beat(&self, address: &A) -> bool {
        self.locked(|expected, afterwards| {
            let Some(id) = expected.map.id(address) else {
                return false;
            };
            let Some((endpoint, beats)) = expected.map.get_mut(id) else {
                return false;
            };
            beats.last = Instant::now();
            if std::mem::take(&mut beats.is_silent) {
                let (endpoint, last) = (endpoint.clone(), beats.last);
                // Under the lock, as in `look`: the two calls of `set_silent` then happen in the
                // order of the decisions. Its notice wakes the driver, which sets its timer for the
                // new entry.
                let notice = endpoint.set_silent(false);
                expected.look_after(id, last, self.ttl);
                afterwards.add(move || {
                    info!(%endpoint, "heartbeats are back");
                    notice.tell();
                });
            }
            true
        })
    }

    /// Makes the endpoints unhealthy whose heartbeats are late; returns when to look again.
    fn look(&self, now: Instant) -> Option<Instant> {
        let ttl = self.ttl;
        self.locked(|expected, afterwards| {
            loop {
                let Some(id) = expected.due.pop(now) else {
                    return expected.due.next();
                };
                let Some((endpoint, beats)) = expected.map.get_mut(id) else {
                    continue;
                };
                let last = beats.last;
                if now.saturating_duration_since(last) < ttl {
                    expected.look_after(id, last, ttl);
                } else {
                    beats.is_silent = true;
                    let endpoint = endpoint.clone();
                    let notice = endpoint.set_silent(true);
                    afterwards.add(move || {
                        warn!(%endpoint, ?ttl, "no heartbeat for too long: unhealthy");
                        notice.tell();
                    });
                }
            }
        })
    }

    /// Changes what is expected, and then tells of it.
    fn locked<T>(&self, change: impl FnOnce(&mut Expected<A>, &mut Afterwards) -> T) -> T {
        let mut afterwards = Afterwards::default();
        let result = change(&mut self.expected(), &mut afterwards);
        afterwards.run();
        result
    }

    fn expected(&self) -> MutexGuard<'_, Expected<A>> {
        // Nothing under this lock panics halfway through a change.
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Address> Expected<A> {
    fn insert(&mut self, endpoint: Endpoint<A>, now: Instant, ttl: Duration) {
        let beats = Beats {
            last: now,
            is_silent: false,
        };
        let (id, _) = self.map.insert(endpoint, beats);
        self.look_after(id, now, ttl);
    }

    fn remove(&mut self, endpoint: &Endpoint<A>) -> Option<Removed<A, Beats>> {
        let removed = self.map.remove(endpoint);
        let map = &self.map;
        self.due.compact(map.len(), |id| map.get(id).is_some());
        removed
    }

    fn look_after(&mut self, id: u64, last: Instant, ttl: Duration) {
        // A `ttl` that the clock cannot represent never ends.
        if let Some(at) = last.checked_add(ttl) {
            self.due.push(at, id);
        }
    }
}

impl<D, A> Layer<D> for Heartbeats<A>
where
    D: DiscoverEndpoints<Address = A>,
{
    type Service = HeartbeatDiscover<D, A>;

    fn layer(&self, discover: D) -> Self::Service {
        HeartbeatDiscover {
            upstream: Upstream::new(discover),
            heartbeats: self.clone(),
            timer: None,
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
        // 1. The change from discovery. It comes first, because it may change when the timer must
        // fire.
        let heartbeats = this.heartbeats;
        let has_endpoints = || !heartbeats.expected().map.is_empty();
        let item = this.upstream.poll_change(cx, has_endpoints);
        match &item {
            Poll::Ready(Some(Ok(Change::Insert(endpoint, _)))) => {
                heartbeats.locked(|expected, afterwards| {
                    // The service that this one replaces may have been silent.
                    let notice = endpoint.set_silent(false);
                    expected.insert(endpoint.clone(), Instant::now(), heartbeats.ttl);
                    afterwards.add(move || notice.tell());
                });
            }
            Poll::Ready(Some(Ok(Change::Remove(endpoint)))) => {
                let removed = heartbeats.expected().remove(endpoint);
                drop(removed);
            }
            _ => {}
        }
        // 2. The endpoints whose heartbeats are late. Pending: the timer has registered the waker.
        while let Some(at) = heartbeats.look(Instant::now()) {
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
        item
    }
}

impl<A> Clone for Heartbeats<A> {
    fn clone(&self) -> Self {
        Self {
            ttl: self.ttl,
            endpoints: self.endpoints.clone(),
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
            .field("discover", self.upstream.get_ref())
            .field("heartbeats", &self.heartbeats)
            .finish_non_exhaustive()
    }
}
