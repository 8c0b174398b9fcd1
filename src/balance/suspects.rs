//! Finds services that have failed for good, and asks for new ones.
//!
//! A service whose every `poll_ready` fails, such as a `Buffer` whose worker is gone, never works
//! again. Callers report members that failed to become ready. The driver then polls such a member
//! by itself, until it is ready once or has failed for long enough.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tower::Service;
use tracing::{debug, warn};

use super::members::Members;
use crate::{endpoint::Address, guard::guarded};

/// The members that callers have found not to become ready.
pub(super) struct Suspects<S>(Mutex<BTreeMap<u64, Reported<S>>>);

struct Reported<S> {
    poll: PollReady<S>,
    first: Instant,
    last: Instant,
    /// How often it has failed since the driver has looked.
    failures: u32,
}

/// Polls a service for the kind of request that the balancer is for; returns whether it is ready.
pub(super) type PollReady<S> = fn(&mut S, &mut Context<'_>) -> Poll<bool>;

/// What the driver knows of the suspects.
#[derive(Debug, Default)]
pub(super) struct Suspicions(BTreeMap<u64, Suspicion>);

#[derive(Clone, Copy, Debug)]
struct Suspicion {
    since: Instant,
    /// When it failed last, and how often it has failed.
    last: Instant,
    failures: u32,
    /// Whether another service has been asked for. Until it comes, there is nothing to look at.
    has_asked: bool,
}

impl<S> Suspects<S> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Reports members that failed to become ready. Wakes the driver for those that are new.
    #[cold]
    pub(super) fn report<Req>(&self, ids: impl IntoIterator<Item = u64>, driver: &Notify)
    where
        S: Service<Req>,
    {
        let now = Instant::now();
        let mut is_new = false;
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for id in ids {
            let entry = reported.entry(id).or_insert_with(|| {
                is_new = true;
                Reported {
                    poll: poll_ready::<S, Req>,
                    first: now,
                    last: now,
                    failures: 0,
                }
            });
            entry.failures += 1;
            entry.last = now;
        }
        drop(reported);
        if is_new {
            driver.notify_one();
        }
    }

    fn take(&self) -> Vec<(u64, Reported<S>)> {
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = reported.iter_mut().map(|(&id, entry)| {
            let taken = Reported { ..*entry };
            entry.failures = 0;
            (id, taken)
        });
        all.collect()
    }

    fn forget(&self, id: u64) {
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reported.remove(&id);
    }
}

impl Suspicions {
    /// Looks at the suspects. Returns when to look again; `None` if there are none.
    ///
    /// A member that is busy tells nothing.
    pub(super) fn look<A: Address, S: Clone>(
        &mut self,
        suspects: &Suspects<S>,
        members: &Members<A, S>,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Option<Duration> {
        for (id, reported) in suspects.take() {
            let Some((endpoint, service)) = members.get(id) else {
                self.forget(suspects, id);
                continue;
            };
            if self.0.get(&id).is_some_and(|suspicion| suspicion.has_asked) {
                continue;
            }
            let polled = guarded(|| (reported.poll)(&mut service.clone(), cx));
            let has_failed = match polled {
                Ok(Poll::Ready(true)) => {
                    self.forget(suspects, id);
                    continue;
                }
                Ok(Poll::Ready(false)) | Err(_) => true,
                Ok(Poll::Pending) => false,
            };
            let suspicion = self.0.entry(id).or_insert(Suspicion {
                since: reported.first,
                last: reported.last,
                failures: 0,
                has_asked: false,
            });
            suspicion.failures += reported.failures + u32::from(has_failed);
            suspicion.last = if has_failed { now } else { reported.last };
            if suspicion.is_certain() {
                warn!(%endpoint, failures = suspicion.failures, "its service has failed for good");
                endpoint.ask_for_another();
                suspicion.has_asked = true;
            } else if now.saturating_duration_since(suspicion.last) > FORGOTTEN_AFTER {
                debug!(%endpoint, "its service has not failed again");
                self.forget(suspects, id);
            }
        }
        let mut all = self.0.values();
        all.any(|suspicion| !suspicion.has_asked)
            .then_some(CERTAIN_AFTER)
    }

    fn forget<S>(&mut self, suspects: &Suspects<S>, id: u64) {
        self.0.remove(&id);
        suspects.forget(id);
    }
}

impl Suspicion {
    fn is_certain(&self) -> bool {
        self.failures >= 2 && self.last.duration_since(self.since) >= CERTAIN_AFTER
    }
}

fn poll_ready<S: Service<Req>, Req>(service: &mut S, cx: &mut Context<'_>) -> Poll<bool> {
    service.poll_ready(cx).map(|ready| ready.is_ok())
}

/// A service whose every poll has failed for so long has failed for good.
const CERTAIN_AFTER: Duration = Duration::from_millis(100);

/// Outlier detection hides a service while its endpoint is ejected. A first ejection is shorter.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
