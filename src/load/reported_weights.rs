use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{
    Layer, Service,
    discover::{Change, Discover},
};

use super::{
    Load, Report,
    report::{Clocks, WeightByReports},
};
use crate::{
    endpoint::{Address, Endpoint},
    metric::{InFlight, TotalInFlight},
};

/// Gives endpoints the weights that their own reports amount to.
///
/// Every response is read for a [`Report`]. An endpoint's weight becomes the requests a second that it would do at full
/// load, less a penalty for its errors:
///
/// ```text
/// weight = qps / (utilization + eps / qps * error_penalty)
/// ```
///
/// times the weight that discovery gave it, and relative to those of the others. Every policy that looks at weights follows:
/// [`WeightedRoundRobin`](crate::WeightedRoundRobin), as in gRPC, and [`P2c`](crate::P2c), which draws by weight and compares loads in
/// proportion to it; hashing does not. An endpoint without reports has the mean weight of the others; with fewer than two
/// that report, all weights are what discovery says. No report counts for more than ten times the median, or less than a hundredth.
/// A server that starts anew at its old address keeps the weight that it had, until it reports.
///
/// Defaults, gRPC's: reports count 10 s after an endpoint's first (blackout), for 180 s each (expiry); weights are set
/// every second; the penalty is 1.
///
/// ```
/// use tower_lb::load::{Report, ReportedWeightsLayer};
///
/// # struct Answer { busy: f64, served: f64 }
/// let layer = ReportedWeightsLayer::new(|answer: &Answer| Some(Report::new(answer.busy, answer.served)));
/// # let _ = layer;
/// ```
///
/// For loads that servers report, beside or in place of weights, there is [`ReportedLayer`](super::ReportedLayer).
///
/// With the feature `http`, `http::load_report` reads ORCA's header. Cost of a request: a short lock where its response has a
/// report.
///
/// Source: [gRFC A58](https://github.com/grpc/proposal/blob/master/A58-client-side-weighted-round-robin-lb-policy.md).
#[derive(Clone)]
pub struct ReportedWeightsLayer<F> {
    read: F,
    clocks: Clocks,
    update: Duration,
}

/// A service whose responses are read for reports, made by [`ReportedWeightsLayer`].
pub struct ReportedWeights<S, A, F> {
    service: S,
    slot: Arc<Slot<A>>,
    read: F,
}

pin_project! {
    /// Discovery whose services are read for reports, made by [`ReportedWeightsLayer`].
    pub struct ReportedWeightsDiscover<D, A, F> {
        #[pin]
        discover: D,
        read: F,
        clocks: Clocks,
        update: Duration,
        slots: HashMap<Endpoint<A>, Arc<Slot<A>>>,
        timer: Option<Pin<Box<Sleep>>>,
        has_ended: bool,
    }
}

pin_project! {
    /// The response future of a [`ReportedWeights`].
    pub struct ReportedWeightsFuture<T, A, F> {
        #[pin]
        future: T,
        slot: Arc<Slot<A>>,
        read: F,
    }
}

struct Slot<A> {
    endpoint: Endpoint<A>,
    clocks: Clocks,
    weight: Mutex<WeightByReports>,
}

impl<F> ReportedWeightsLayer<F> {
    /// Reads reports with `read`, with the defaults.
    pub const fn new<Res>(read: F) -> Self
    where
        F: Fn(&Res) -> Option<Report>,
    {
        Self {
            read,
            clocks: Clocks {
                blackout: Duration::from_secs(10),
                expiry: Duration::from_secs(180),
                error_penalty: 1.0,
            },
            update: Duration::from_secs(1),
        }
    }

    /// Sets how long after an endpoint's first report they begin to count. Default 10 s.
    #[must_use]
    pub const fn blackout(mut self, blackout: Duration) -> Self {
        self.clocks.blackout = blackout;
        self
    }

    /// Sets how long the last report counts. Default 180 s: a stale one is worse than none.
    #[must_use]
    pub const fn expiry(mut self, expiry: Duration) -> Self {
        self.clocks.expiry = expiry;
        self
    }

    /// Sets how often weights are set. Default 1 s; each time costs a new snapshot, **O(n)**.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn update(mut self, period: Duration) -> Self {
        assert!(!period.is_zero(), "the period must not be zero");
        self.update = period;
        self
    }

    /// Sets how much the share of errors counts beside the utilization. Default 1.
    ///
    /// # Panics
    ///
    /// If it is negative or not finite.
    #[must_use]
    #[track_caller]
    pub fn error_penalty(mut self, penalty: f64) -> Self {
        assert!(
            penalty >= 0.0 && penalty.is_finite(),
            "the penalty must not be negative"
        );
        self.clocks.error_penalty = penalty;
        self
    }
}

impl<D, A, F: Clone> Layer<D> for ReportedWeightsLayer<F>
where
    D: Discover<Key = Endpoint<A>>,
{
    type Service = ReportedWeightsDiscover<D, A, F>;

    fn layer(&self, discover: D) -> Self::Service {
        ReportedWeightsDiscover {
            discover,
            read: self.read.clone(),
            clocks: self.clocks,
            update: self.update,
            slots: HashMap::new(),
            timer: None,
            has_ended: false,
        }
    }
}

impl<D, A, S, F> Stream for ReportedWeightsDiscover<D, A, F>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
    F: Clone,
{
    type Item = Result<Change<Endpoint<A>, ReportedWeights<S, A, F>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        // 1. The weights, every so often. Pending: the timer has registered the waker.
        let update = *this.update;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(update)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            this.slots.values().for_each(|slot| slot.set_weight(now));
            timer.as_mut().reset(now + update);
        }
        // 2. What discovery says. When it has ended, weights are set for those who are there.
        if *this.has_ended {
            return Poll::Pending;
        }
        let Some(change) = ready!(this.discover.try_poll_next(cx)?) else {
            *this.has_ended = true;
            return if this.slots.is_empty() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        Poll::Ready(Some(Ok(match change {
            Change::Insert(endpoint, service) => {
                let slot = Arc::new(Slot {
                    endpoint: endpoint.clone(),
                    clocks: *this.clocks,
                    weight: Mutex::default(),
                });
                // The key of the handle that is there now.
                this.slots.remove(&endpoint);
                this.slots.insert(endpoint.clone(), slot.clone());
                let read = this.read.clone();
                Change::Insert(
                    endpoint,
                    ReportedWeights {
                        service,
                        slot,
                        read,
                    },
                )
            }
            Change::Remove(endpoint) => {
                this.slots.remove(&endpoint);
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<A> Slot<A> {
    fn report(&self, report: &Report) {
        let mut weight = self.weight.lock().unwrap_or_else(PoisonError::into_inner);
        weight.report(report, &self.clocks, Instant::now());
    }

    fn set_weight(&self, now: Instant) {
        let mut weight = self.weight.lock().unwrap_or_else(PoisonError::into_inner);
        self.endpoint.set_reported(weight.get(&self.clocks, now));
    }
}

impl<S, A, F> ReportedWeights<S, A, F> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }
}

impl<S, A, F, Req> Service<Req> for ReportedWeights<S, A, F>
where
    S: Service<Req>,
    F: Fn(&S::Response) -> Option<Report> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ReportedWeightsFuture<S::Future, A, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ReportedWeightsFuture {
            future: self.service.call(request),
            slot: self.slot.clone(),
            read: self.read.clone(),
        }
    }
}

impl<T, A, F, Res, E> Future for ReportedWeightsFuture<T, A, F>
where
    T: Future<Output = Result<Res, E>>,
    F: Fn(&Res) -> Option<Report>,
{
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        if let Ok(response) = &answer {
            if let Some(report) = (this.read)(response) {
                this.slot.report(&report);
            }
        }
        Poll::Ready(answer)
    }
}

impl<S: Clone, A, F: Clone> Clone for ReportedWeights<S, A, F> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            slot: self.slot.clone(),
            read: self.read.clone(),
        }
    }
}

impl<S: Load, A, F> Load for ReportedWeights<S, A, F> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.service.load()
    }
}

impl<S: InFlight, A, F> InFlight for ReportedWeights<S, A, F> {
    fn in_flight(&self) -> usize {
        self.service.in_flight()
    }
}

impl<S: TotalInFlight, A, F> TotalInFlight for ReportedWeights<S, A, F> {
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

impl<F> fmt::Debug for ReportedWeightsLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedWeightsLayer")
            .field("clocks", &self.clocks)
            .field("update", &self.update)
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, A: fmt::Display, F> fmt::Debug for ReportedWeights<S, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedWeights")
            .field("service", &self.service)
            .field("endpoint", &self.slot.endpoint)
            .finish_non_exhaustive()
    }
}

impl<D: fmt::Debug, A, F> fmt::Debug for ReportedWeightsDiscover<D, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedWeightsDiscover")
            .field("discover", &self.discover)
            .field("endpoints", &self.slots.len())
            .finish_non_exhaustive()
    }
}

impl<T, A, F> fmt::Debug for ReportedWeightsFuture<T, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedWeightsFuture")
            .finish_non_exhaustive()
    }
}
