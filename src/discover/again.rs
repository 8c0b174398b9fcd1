use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, Sleep};
use tracing::warn;

use crate::{
    endpoint::{Address, Asking, Endpoint},
    random::{entropy, random_part},
    timer,
};

/// The endpoints whose services have failed for good, and that get another one after a pause.
pub(super) struct MadeAgain<A> {
    asking: Arc<Asking<A>>,
    due: HashMap<Endpoint<A>, Instant>,
    /// How often each was made again, and when the last time is.
    history: HashMap<Endpoint<A>, (u32, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
    rng: SmallRng,
}

impl<A: Address> MadeAgain<A> {
    pub(super) fn new() -> Self {
        Self {
            asking: Arc::new(Asking::new()),
            due: HashMap::new(),
            history: HashMap::new(),
            timer: None,
            rng: SmallRng::seed_from_u64(entropy()),
        }
    }

    /// Lets the endpoint ask for another service.
    pub(super) fn adopt(&self, endpoint: &Endpoint<A>) {
        endpoint.made_by(&self.asking);
    }

    /// Returns whether an endpoint is left that may ask.
    pub(super) fn has_any(&self) -> bool {
        !self.due.is_empty() || Arc::weak_count(&self.asking) > 0
    }

    pub(super) fn forget(&mut self, endpoint: &Endpoint<A>) {
        self.due.remove(endpoint);
        self.history.remove(endpoint);
    }

    /// Returns an endpoint that is to get another service now. Pending: the timer of the next one,
    /// if there is one, has registered the waker.
    ///
    /// `is_listed` returns whether an endpoint is still there.
    pub(super) fn poll_next(
        &mut self,
        is_listed: impl Fn(&Endpoint<A>) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Endpoint<A>> {
        for endpoint in self.asking.take() {
            if is_listed(&endpoint) && !self.due.contains_key(&endpoint) {
                self.plan(endpoint);
            }
        }
        loop {
            let next = self.due.iter().min_by_key(|&(_, &at)| at);
            let Some((endpoint, at)) = next.map(|(endpoint, &at)| (endpoint.clone(), at)) else {
                self.timer = None;
                return Poll::Pending;
            };
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.due.remove(&endpoint);
                return Poll::Ready(endpoint);
            }
            self.timer = timer::start(left);
            let timer = self.timer.as_mut();
            if timer.is_none_or(|timer| timer.as_mut().poll(cx).is_pending()) {
                return Poll::Pending;
            }
        }
    }

    /// Sets when an endpoint gets another service: after a pause that doubles.
    fn plan(&mut self, endpoint: Endpoint<A>) {
        let now = Instant::now();
        let before = self.history.get(&endpoint);
        let lasted = before.map(|&(_, at)| now.saturating_duration_since(at));
        let times = match (before, lasted) {
            (Some(&(times, _)), Some(lasted)) if lasted < LASTS => times,
            _ => 0,
        };
        let pause = (SHORTEST_PAUSE * (1 << times.min(16))).min(LONGEST_PAUSE);
        let at = now + pause + random_part(pause / 4, &mut self.rng);
        self.history.insert(endpoint.clone(), (times + 1, at));
        warn!(%endpoint, ?pause, "another service will be made");
        self.due.insert(endpoint, at);
    }
}

/// Callers have waited for 100 ms already.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The next pause is the shortest again after a service that has lasted for so long.
const LASTS: Duration = Duration::from_secs(60);
