use std::{
    cmp::Ordering,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower::{Layer, Service, load::Load};

use crate::{
    atomic::{Acquire, AtomicU64, Relaxed, Release},
    clock::{self, PickClock},
    metric::{Cost, forward_metrics},
};

/// Measures a service by the requests that its server reports to have in hand.
///
/// One client of many learns little about a server from its own requests. This tracker adds the
/// load that the server reports with each response, as long as the report can still be true:
///
/// ```text
/// own + mean + (reported - mean) * e^(-age / decay)
/// ```
///
/// *own* is the load of the wrapped service: the requests in flight from here. *reported* is the
/// last report and *age* its age. *mean* is a moving mean over about 32 of the last reports from
/// all endpoints. So a report counts in full when it comes and fades to the mean, the best guess
/// for a server that has not reported lately. Without any reports the load is the service's own.
///
/// A report counts as at most ten times the median of the layer's reports (at least as ten
/// requests), so that one server that reports nonsense does not shift the mean. Loads that differ
/// by less than half a request count as equal.
///
/// The table shows what this is worth, for 100 servers at 90 % of their capacity and a report in
/// each response. The numbers are mean times in the system, in units of a request's mean service
/// time.
///
/// | clients | policy | own requests alone | reports that fade | reports that do not fade |
/// |---|---|---|---|---|
/// | 100 | [`P2c`](crate::P2c) | 7.0 | 6.1 | 7.8 |
/// | 100 | [`LeastLoaded`](crate::LeastLoaded) | 7.2 | 2.7 | 3.2 |
/// | 10 | [`P2c`](crate::P2c) | 4.2 | 3.8 | 4.7 |
/// | 10 | [`LeastLoaded`](crate::LeastLoaded) | 3.7 | 1.7 | 1.6 |
/// | 1 | [`P2c`](crate::P2c) | 2.65 | 2.68 | 2.70 |
///
/// A server that fails fast has few requests in hand, so it attracts more. Use outlier detection as
/// well.
///
/// Cost: a response with a report costs one reading of the clock and three atomic stores, one of
/// them to a line that all endpoints share. There is no lock and no allocation. Every request also
/// clones an `Arc`. A pick reads the clock once.
pub struct Reported<S, F> {
    service: S,
    read: F,
    server: Arc<Server>,
}

/// Wraps services with [`Reported`], around a tracker of requests in flight.
///
/// ```
/// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::*;
/// use tower_lb::report::ReportedLayer;
///
/// struct Answer { in_hand: u32 }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// # let connect = |endpoint: &Endpoint<&'static str>| {
/// #     let in_hand = if *endpoint.address() == "idle" { 1 } else { 20 };
/// #     service_fn(move |()| async move { Ok::<_, std::io::Error>(Answer { in_hand }) })
/// # };
/// let read = |answer: &Answer| Some(f64::from(answer.in_hand));
/// let mut client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(LeastLoaded::default()))
///     .layer(each(
///         ServiceBuilder::new()
///             .layer(ReportedLayer::new(read))
///             .layer(PendingRequestsLayer::default()),
///     ))
///     .layer(fixed(["idle", "busy"]))
///     .service(connect);
/// # for _ in 0..10 { client.ready().await?.call(()).await?; }
/// # assert_eq!(client.ready().await?.call(()).await?.in_hand, 1);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// With the feature `http`, `http::load_number` reads a number from a header of your own.
/// `http::load_metric` reads a metric from ORCA's header. All services of one layer and its clones
/// share the mean.
#[derive(Clone)]
pub struct ReportedLayer<F> {
    read: F,
    decay: Duration,
    all: Arc<Reports>,
}

/// The last report of one server, and what is needed to use it.
#[derive(Debug)]
struct Server {
    report: LastReport,
    decay_nanos: f64,
    all: Arc<Reports>,
}

/// The last reported number and its time.
#[derive(Debug, Default)]
pub(super) struct LastReport {
    /// The number's bits.
    load: AtomicU64,
    /// In ns; 0 before the first report.
    reported_at: AtomicU64,
}

/// What is typical of the reports of all servers of one layer.
#[derive(Debug)]
struct Reports {
    /// The bits of the mean; NaN before the first report.
    mean: AtomicU64,
    /// The bits of the median; NaN before the first report.
    median: AtomicU64,
}

/// A reading of [`Reported`], whose value depends on the time of the comparison.
///
/// A comparison without a [`PickClock`] reads the clock.
#[derive(Clone, Copy, Debug)]
pub struct ReportedLoad<M> {
    own: M,
    mean: f64,
    report: Option<(f64, u64)>,
    decay_nanos: f64,
}

pin_project! {
    /// The response future of a [`Reported`].
    pub struct ReportedFuture<T, F> {
        #[pin]
        future: T,
        read: F,
        server: Arc<Server>,
    }
}

impl<F> ReportedLayer<F> {
    /// Reads the reports with `read`, from each response.
    ///
    /// `read` returns how many requests the server has in hand, or `None` if the response has no
    /// report. A number that is negative, NaN or more than 2^32 is ignored.
    pub fn new<Res>(read: F) -> Self
    where
        F: Fn(&Res) -> Option<f64>,
    {
        Self {
            read,
            decay: Duration::from_millis(200),
            all: Arc::default(),
        }
    }

    /// Sets the time in which a report's difference from the mean falls to 1/e. Default 200 ms.
    ///
    /// Choose two to ten times the duration of a request, because that is how long a queue lasts.
    /// With much more, picks follow reports that are long out of date. With much less, reports have
    /// no effect.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn decay(mut self, decay: Duration) -> Self {
        assert!(!decay.is_zero(), "the decay must not be zero");
        self.decay = decay;
        self
    }
}

impl<S, F: Clone> Layer<S> for ReportedLayer<F> {
    type Service = Reported<S, F>;

    fn layer(&self, service: S) -> Self::Service {
        Reported {
            service,
            read: self.read.clone(),
            server: Arc::new(Server {
                report: LastReport::default(),
                decay_nanos: self.decay.as_secs_f64() * 1e9,
                all: self.all.clone(),
            }),
        }
    }
}

impl Server {
    fn take(&self, load: f64) {
        if (0.0..=MOST).contains(&load) {
            let load = self.all.take(load);
            self.report.set(load, clock::now());
        }
    }
}

impl LastReport {
    pub(super) fn set(&self, load: f64, now: u64) {
        self.load.store(load.to_bits(), Relaxed);
        // Release; pairs with the Acquire in `get`: a thread that sees this time does not see an
        // earlier report. It may see a later report with this time. That report counts for less
        // than it could, which does no harm.
        self.reported_at.store(now, Release); // loom: `loom_a_report_is_never_older_than_its_time`
    }

    pub(super) fn get(&self) -> Option<(f64, u64)> {
        let reported_at = self.reported_at.load(Acquire);
        let load = f64::from_bits(self.load.load(Relaxed));
        (reported_at != 0).then_some((load, reported_at))
    }
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            mean: AtomicU64::new(f64::NAN.to_bits()),
            median: AtomicU64::new(f64::NAN.to_bits()),
        }
    }
}

impl Reports {
    /// Returns the mean, or zero before the first report.
    fn mean(&self) -> f64 {
        f64::from_bits(self.mean.load(Relaxed)).max(0.0)
    }

    /// Takes a report in; returns what it counts as.
    // Relaxed, without a compare-and-swap: of two reports at once, one may be missed. The figures
    // are as good without it.
    fn take(&self, load: f64) -> f64 {
        let median = next_median(f64::from_bits(self.median.load(Relaxed)), load);
        self.median.store(median.to_bits(), Relaxed);
        let most = MOST_MEDIANS * median.max(1.0);
        let load = load.min(most);
        let mean = f64::from_bits(self.mean.load(Relaxed));
        let next = if mean.is_nan() {
            load
        } else {
            // The mean may stem from a first report that the median has since left behind.
            let mean = mean.min(most);
            mean + (load - mean) / SAMPLES
        };
        self.mean.store(next.to_bits(), Relaxed);
        load
    }
}

/// Returns the estimate of a median after one more sample: an eighth higher or lower.
///
/// A sample moves it by as much whatever its size, so half of the samples end up on either side.
/// From a million, which was the first sample, it is down at the other servers' three after a
/// hundred samples. NaN stands for no sample yet.
fn next_median(median: f64, sample: f64) -> f64 {
    if median.is_nan() {
        sample
    } else if sample < median {
        (median * (7.0 / 8.0)).max(sample)
    } else {
        (median + median.max(1.0) / 8.0).min(sample)
    }
}

impl<S, F> Reported<S, F> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }
}

impl<S, F> Load for Reported<S, F>
where
    S: Load<Metric: Cost>,
{
    /// The load, in requests.
    type Metric = ReportedLoad<S::Metric>;

    fn load(&self) -> Self::Metric {
        ReportedLoad {
            own: self.service.load(),
            mean: self.server.all.mean(),
            report: self.server.report.get(),
            decay_nanos: self.server.decay_nanos,
        }
    }
}

impl<M: Cost> ReportedLoad<M> {
    fn cost_when(&self, own: f64, now: u64) -> f64 {
        let beyond = self.report.map_or(0.0, |(load, reported_at)| {
            // If the clock went back, the report counts as just made.
            let age_nanos = now.saturating_sub(reported_at) as f64;
            (load - self.mean) * (-age_nanos / self.decay_nanos).exp()
        });
        own + (self.mean + beyond).max(0.0)
    }
}

impl<M: Cost> Cost for ReportedLoad<M> {
    const TIMED: bool = true;

    fn cost(&self) -> f64 {
        self.cost_when(self.own.cost(), clock::now())
    }

    fn cost_at(&self, weight: f64, clock: &PickClock) -> f64 {
        self.cost_when(self.own.cost_at(1.0, clock), clock.nanos()) / weight
    }

    /// Half a request: reports that differ by less are of the same number of requests, and differ
    /// in age alone.
    fn most_equal_to(least: f64) -> f64 {
        least + 0.5
    }

    #[inline]
    fn advance_clock(&self, clock: &PickClock) {
        self.own.advance_clock(clock);
    }
}

impl<M: Cost> PartialOrd for ReportedLoad<M> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let now = clock::now();
        let cost = |load: &Self| load.cost_when(load.own.cost(), now);
        cost(self).partial_cmp(&cost(other))
    }
}

impl<M: Cost> PartialEq for ReportedLoad<M> {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl<S, F, Req> Service<Req> for Reported<S, F>
where
    S: Service<Req>,
    F: Fn(&S::Response) -> Option<f64> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ReportedFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ReportedFuture {
            future: self.service.call(request),
            read: self.read.clone(),
            server: self.server.clone(),
        }
    }
}

impl<T, F, Res, E> Future for ReportedFuture<T, F>
where
    T: Future<Output = Result<Res, E>>,
    F: Fn(&Res) -> Option<f64>,
{
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        if let Some(load) = answer.as_ref().ok().and_then(this.read) {
            this.server.take(load);
        }
        Poll::Ready(answer)
    }
}

impl<S: Clone, F: Clone> Clone for Reported<S, F> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            read: self.read.clone(),
            server: self.server.clone(),
        }
    }
}

forward_metrics!([S, F] Reported<S, F>: InFlight, TotalInFlight);

impl<F> fmt::Debug for ReportedLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedLayer")
            .field("decay", &self.decay)
            .field("mean", &self.all.mean())
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Reported<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reported")
            .field("service", &self.service)
            .field("report", &self.server.report.get().map(|(load, _)| load))
            .finish_non_exhaustive()
    }
}

impl<T, F> fmt::Debug for ReportedFuture<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedFuture").finish_non_exhaustive()
    }
}

/// How many reports the mean covers: enough to be steady, few enough to follow the total load.
const SAMPLES: f64 = 32.0;

/// A server that has ten times the requests of the median is to be avoided anyway.
const MOST_MEDIANS: f64 = 10.0;

/// The most requests in hand that a report may name. No server has more.
const MOST: f64 = (1_u64 << 32) as f64;
