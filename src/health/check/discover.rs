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
        loop {
            // 1. Results.
            let mut this = self.as_mut().project();
            while let Poll::Ready(Some((id, result))) = this.running.as_mut().poll_next(cx) {
                this.schedule.done(id, result);
            }
            // 2. The checks that are due. If as many run as may, the end of one wakes the task.
            if self.as_mut().start_due() {
                continue;
            }
            // 3. The timer for the next check. Pending: the timer has registered the waker.
            let this = self.as_mut().project();
            let has_place = this.running.len() < this.schedule.settings().concurrency;
            let Some(at) = this.schedule.next_due().filter(|_| has_place) else {
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
    }

    /// Starts the checks that are due, as far as `concurrency` allows; returns whether it started
    /// any.
    fn start_due(self: Pin<&mut Self>) -> bool {
        let this = self.project();
        let now = Instant::now();
        let mut has_started = false;
        while this.running.len() < this.schedule.settings().concurrency {
            let Some(id) = this.schedule.pop_due(now) else {
                break;
            };
            let Some((endpoint, service)) = this.schedule.get(id) else {
                continue;
            };
            let start = AssertUnwindSafe(|| (this.check)(endpoint.clone(), service.clone()));
            let Ok(check) = catch_unwind(start) else {
                this.schedule.done(id, Err(PANICKED.into()));
                continue;
            };
            let timeout = this.schedule.settings().timeout;
            this.running.push(Run::new(id, timeout, check));
            has_started = true;
        }
        has_started
    }
}

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
                // The first check is due at once.
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
