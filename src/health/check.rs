use std::{
    cmp::Reverse,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream, stream::FuturesUnordered};
use pin_project_lite::pin_project;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, Sleep, Timeout};
use tower::{Layer, discover::Change};

use super::{
    patients::{Patients, Settings},
    traffic::Traffic,
};
use crate::{
    chance::entropy,
    endpoint::{Address, Endpoint},
};

/// Asks every endpoint, again and again, whether it is well.
///
/// A check is any `Fn(Endpoint<A>, S) -> impl Future<Output = Result<(), E>>`. It gets the endpoint's own service, and so
/// goes the way that requests go, from this layer on down: below the trackers it counts as no load. Checks of all endpoints run side by side on the driver's task, where
/// they must not block, and end with the balancer.
///
/// Three failures in a row make an endpoint unhealthy, two successes in a row healthy again; the very first success
/// counts at once. A check that takes longer than the timeout has failed, and so has one that panics.
///
/// ```
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed, health::HealthCheckLayer};
///
/// # #[derive(Clone)] struct Get(&'static str);
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let checks = HealthCheckLayer::new(|_: Endpoint<&'static str>, service| async move {
///     match ServiceExt::oneshot(service, Get("/healthz")).await {
///         Ok(200) => Ok(()),
///         Ok(status) => Err(format!("status {status}")),
///         Err(error) => Err(error),
///     }
/// });
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(checks.interval(Duration::from_secs(5)))
///     .layer(fixed(["a", "b"]))
///     .service(|_: &Endpoint<&'static str>| service_fn(|_: Get| async { Ok::<_, String>(200) }));
/// # client.oneshot(Get("/")).await?;
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[derive(Clone)]
pub struct HealthCheckLayer<C, T = ()> {
    check: C,
    traffic: T,
    settings: Settings,
    seed: Option<u64>,
}

/// How an endpoint stands until its first check is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UntilFirstCheck {
    /// It takes requests: for checks that seldom find anything.
    #[default]
    Available,
    /// It takes none: for endpoints that are announced before they are ready.
    Unhealthy,
}

pin_project! {
    /// Discovery whose endpoints are checked, made by [`HealthCheckLayer`].
    pub struct HealthCheckDiscover<D, C, F, A, S, T = ()> {
        #[pin]
        discover: D,
        #[pin]
        running: FuturesUnordered<Run<F>>,
        check: C,
        traffic: T,
        settings: Settings,
        patients: Patients<A, S>,
        timer: Option<Pin<Box<Sleep>>>,
        rng: SmallRng,
        has_ended: bool,
    }
}

pin_project! {
    /// One check under way.
    struct Run<F> {
        id: u64,
        #[pin]
        check: Timeout<F>,
    }
}

impl<C> HealthCheckLayer<C> {
    /// Checks by calling `check` with each endpoint and its service.
    pub const fn new(check: C) -> Self {
        Self {
            check,
            traffic: (),
            settings: Settings {
                interval: Duration::from_secs(10),
                edge_interval: None,
                timeout: Duration::from_secs(1),
                jitter: Duration::from_secs(1),
                failures: 3,
                successes: 2,
                concurrency: 64,
                until_first_check: UntilFirstCheck::Available,
                ends_ejection: false,
            },
            seed: None,
        }
    }
}

impl<C, T> HealthCheckLayer<C, T> {
    /// Sets the time from the end of one check to the next. Default 10 s.
    ///
    /// A shorter one finds faults sooner, and asks more of every endpoint, by every client.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn interval(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "the interval must not be zero");
        self.settings.interval = interval;
        self
    }

    /// Sets the interval while results speak against the present state. Default: the usual one.
    ///
    /// A short one decides within seconds, and costs nothing while all is well.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn edge_interval(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "the edge interval must not be zero");
        self.settings.edge_interval = Some(interval);
        self
    }

    /// Sets the interval for endpoints that no request was sent to since their last check. Default: the usual one.
    ///
    /// Costs each request the clone of an `Arc` and a look at a flag.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn idle_interval(self, interval: Duration) -> HealthCheckLayer<C, super::IdleInterval> {
        assert!(!interval.is_zero(), "the idle interval must not be zero");
        HealthCheckLayer {
            check: self.check,
            traffic: super::IdleInterval(interval),
            settings: self.settings,
            seed: self.seed,
        }
    }

    /// Sets how long a check may take. Default 1 s.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Sets the most that is added to every interval at random. Default 1 s, but never more than the interval.
    ///
    /// So that clients do not march in step.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.settings.jitter = jitter;
        self
    }

    /// Sets how many failures in a row make an endpoint unhealthy. Default 3.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn unhealthy_after(mut self, failures: u32) -> Self {
        assert_ne!(failures, 0, "no failure makes nobody unhealthy");
        self.settings.failures = failures;
        self
    }

    /// Sets how many successes in a row make an endpoint healthy again. Default 2; its first one ever counts at once.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn healthy_after(mut self, successes: u32) -> Self {
        assert_ne!(successes, 0, "no success makes nobody healthy");
        self.settings.successes = successes;
        self
    }

    /// Sets how many checks run at once. Default 64; the others wait for their turn.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn concurrency(mut self, checks: usize) -> Self {
        assert_ne!(checks, 0, "no check would ever run");
        self.settings.concurrency = checks;
        self
    }

    /// Sets how an endpoint stands until its first check is done. Default: available.
    #[must_use]
    pub const fn until_first_check(mut self, standing: UntilFirstCheck) -> Self {
        self.settings.until_first_check = standing;
        self
    }

    /// Has a successful check end an ejection by outlier detection. Default: it does not.
    ///
    /// For checks that go as deep as requests do. Probes decide then, as at an ejection's own end.
    #[must_use]
    pub const fn ends_ejection(mut self) -> Self {
        self.settings.ends_ejection = true;
        self
    }

    /// Draws jitter with a fixed seed, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl<D, C, F, A, S, T> Layer<D> for HealthCheckLayer<C, T>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    C: Fn(Endpoint<A>, S) -> F + Clone,
    T: Clone,
{
    type Service = HealthCheckDiscover<D, C, F, A, S, T>;

    fn layer(&self, discover: D) -> Self::Service {
        HealthCheckDiscover {
            discover,
            running: FuturesUnordered::new(),
            check: self.check.clone(),
            traffic: self.traffic.clone(),
            settings: self.settings,
            patients: Patients::new(),
            timer: None,
            rng: SmallRng::seed_from_u64(self.seed.unwrap_or_else(entropy)),
            has_ended: false,
        }
    }
}

impl<D, C, F, A, S, T, E> HealthCheckDiscover<D, C, F, A, S, T>
where
    C: Fn(Endpoint<A>, S) -> F,
    F: Future<Output = Result<(), E>>,
    E: fmt::Display,
    A: Address,
    S: Clone,
    T: Traffic<S>,
{
    /// Takes results, and starts the checks that are due. Registers the waker for the next of either.
    fn poll_checks(self: Pin<&mut Self>, cx: &mut Context<'_>) {
        let mut this = self.project();
        loop {
            // 1. Results.
            while let Poll::Ready(Some((id, result))) = this.running.as_mut().poll_next(cx) {
                this.patients.done(
                    id,
                    result,
                    this.settings,
                    this.traffic.idle_interval(),
                    this.rng,
                );
            }
            // 2. Who is due. With all places taken, the end of a check wakes.
            let now = Instant::now();
            let mut has_started = false;
            while this.running.len() < this.settings.concurrency {
                let Some(id) = this.patients.pop_due(now) else {
                    break;
                };
                let Some(patient) = this.patients.by_id.get(&id) else {
                    continue;
                };
                let (endpoint, service) = (patient.endpoint.clone(), &patient.service);
                let start = AssertUnwindSafe(|| (this.check)(endpoint, service.clone()));
                let Ok(check) = catch_unwind(start) else {
                    let result = Err(PANICKED.into());
                    let idle = this.traffic.idle_interval();
                    this.patients
                        .done(id, result, this.settings, idle, this.rng);
                    continue;
                };
                let check = tokio::time::timeout(this.settings.timeout, check);
                this.running.push(Run { id, check });
                has_started = true;
            }
            if has_started {
                continue;
            }
            // 3. Who is next.
            let next = this.patients.due.peek();
            let Some(&Reverse((at, _))) =
                next.filter(|_| this.running.len() < this.settings.concurrency)
            else {
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
}

impl<D, C, F, A, S, T, E> Stream for HealthCheckDiscover<D, C, F, A, S, T>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    C: Fn(Endpoint<A>, S) -> F,
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
        if *this.has_ended {
            return Poll::Pending;
        }
        let Some(change) = ready!(this.discover.try_poll_next(cx)?) else {
            *this.has_ended = true;
            let nobody = this.patients.by_id.is_empty();
            return if nobody {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        Poll::Ready(Some(Ok(match change {
            Change::Insert(endpoint, service) => {
                let (watched, has_traffic) = this.traffic.watch(service.clone());
                this.patients
                    .insert(endpoint.clone(), service, has_traffic, this.settings);
                // The first check is due at once: it is started now that there is a patient.
                self.poll_checks(cx);
                Change::Insert(endpoint, watched)
            }
            Change::Remove(endpoint) => {
                this.patients.remove(&endpoint);
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<F, E> Future for Run<F>
where
    F: Future<Output = Result<(), E>>,
    E: fmt::Display,
{
    type Output = (u64, Result<(), String>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // A check is foreign code on the driver's task: its panic is its own failure.
        let poll = catch_unwind(AssertUnwindSafe(|| {
            let result = ready!(this.check.poll(cx));
            Poll::Ready(match result {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("no answer in time".into()),
            })
        }));
        let result = match poll {
            Ok(poll) => ready!(poll),
            Err(_) => Err(PANICKED.into()),
        };
        Poll::Ready((*this.id, result))
    }
}

impl<C, T> fmt::Debug for HealthCheckLayer<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheckLayer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<D, C, F, A, S, T> fmt::Debug for HealthCheckDiscover<D, C, F, A, S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheckDiscover")
            .field("settings", &self.settings)
            .field("endpoints", &self.patients.by_id.len())
            .finish_non_exhaustive()
    }
}

const PANICKED: &str = "the check panicked";
