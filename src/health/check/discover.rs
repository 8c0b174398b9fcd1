use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, TryStream, stream::FuturesUnordered};
use pin_project_lite::pin_project;
use rand::rngs::SmallRng;
use tokio::time::{Instant, Sleep};
use tower::discover::Change;
use tracing::error;

use super::{
    run::{PANICKED, Run},
    schedule::Schedule,
    settings::CheckSettings,
    traffic::Traffic,
};
use crate::{
    endpoint::{Address, Endpoint},
    guard::guarded,
    upstream::Upstream,
};

pin_project! {
    /// Discovery that checks its endpoints, made by [`HealthCheckLayer`](super::HealthCheckLayer).
    pub struct HealthCheckDiscover<D, Check, F, A, S, T = ()> {
        #[pin]
        upstream: Upstream<D>,
        #[pin]
        running: FuturesUnordered<Run<F>>,
        check: Check,
        traffic: T,
        schedule: Schedule<A, S>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<D, Check, F, A, S, T> HealthCheckDiscover<D, Check, F, A, S, T> {
    pub(super) fn new(
        discover: D,
        check: Check,
        traffic: T,
        settings: CheckSettings,
        rng: SmallRng,
    ) -> Self
    where
        T: Traffic<S>,
    {
        Self {
            upstream: Upstream::new(discover),
            running: FuturesUnordered::new(),
            check,
            schedule: Schedule::new(settings, traffic.idle_interval(), rng),
            traffic,
            timer: None,
        }
    }
}

impl<D, Check, F, A, S, T, E> HealthCheckDiscover<D, Check, F, A, S, T>
where
    Check: Fn(Endpoint<A>, S) -> F,
    F: Future<Output = Result<(), E>>,
    E: fmt::Display,
    A: Address,
    S: Clone,
{
    /// Records results and starts the checks that are due. Registers the waker for the next result
    /// or check.
    fn poll_checks(mut self: Pin<&mut Self>, cx: &mut Context<'_>) {
        for _ in 0..AT_ONCE {
            // 1. A result.
            let mut this = self.as_mut().project();
            if let Poll::Ready(Some((id, result))) = this.running.as_mut().poll_next(cx) {
                this.schedule.done(id, result);
                continue;
            }
            // 2. A check that is due. If as many run as may, the end of one wakes the task.
            if this.running.len() >= this.schedule.concurrency() {
                return;
            }
            if let Some(id) = this.schedule.pop_due(Instant::now()) {
                self.as_mut().start(id);
                continue;
            }
            // 3. The timer for the next check. Pending: the timer has registered the waker.
            let Some(at) = this.schedule.next_due() else {
                return;
            };
            let timer = this
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
        }
        // For the sake of other tasks.
        cx.waker().wake_by_ref();
    }

    /// Starts a check of the endpoint with this number, unless it has left.
    fn start(self: Pin<&mut Self>, id: u64) {
        let this = self.project();
        let Some((endpoint, service)) = this.schedule.get(id) else {
            return;
        };
        let start = AssertUnwindSafe(|| (this.check)(endpoint.clone(), service.clone()));
        match catch_unwind(start) {
            Ok(check) => {
                let timeout = this.schedule.settings().timeout;
                this.running.push(Run::new(id, timeout, check));
            }
            Err(_) => this.schedule.done(id, Err(PANICKED.into())),
        }
    }
}

/// How many results and starts of checks one poll handles at most.
const AT_ONCE: u32 = 256;

impl<D, Check, F, A, S, T, E> Stream for HealthCheckDiscover<D, Check, F, A, S, T>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    Check: Fn(Endpoint<A>, S) -> F,
    F: Future<Output = Result<(), E>>,
    E: fmt::Display,
    A: Address,
    S: Clone,
    T: Traffic<S>,
{
    type Item = Result<Change<Endpoint<A>, T::Service>, D::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.as_mut().poll_checks(cx);
        let this = self.as_mut().project();
        let schedule = this.schedule;
        let item = this.upstream.poll_change(cx, || !schedule.is_empty());
        let Some(change) = ready!(item?) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(Ok(match change {
            Change::Insert(endpoint, service) => {
                let checked = match guarded(|| service.clone()) {
                    Ok(checked) => checked,
                    Err(panic) => {
                        error!(%endpoint, %panic, "the service panicked when it was cloned: left out");
                        return Poll::Ready(Some(Ok(Change::Remove(endpoint))));
                    }
                };
                let (watched, has_traffic) = this.traffic.watch(service);
                schedule.insert(endpoint.clone(), checked, has_traffic);
                // The first check may be due at once.
                self.poll_checks(cx);
                Change::Insert(endpoint, watched)
            }
            Change::Remove(endpoint) => {
                schedule.remove(&endpoint);
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<D, Check, F, A, S, T> fmt::Debug for HealthCheckDiscover<D, Check, F, A, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheckDiscover")
            .field("settings", self.schedule.settings())
            .field("endpoints", &self.schedule.len())
            .finish_non_exhaustive()
    }
}
