use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{Layer, Service, discover::Change};

use super::{
    LoadReport,
    load_report::{ReportClocks, WeightByReports},
};
use crate::{
    endpoint::{Address, Endpoint, EndpointMap},
    metric::forward_metrics,
    upstream::{DiscoverEndpoints, Upstream},
};

/// Gives endpoints weights that follow from the reports of their servers.
///
/// The layer reads a [`LoadReport`] from every response. An endpoint's weight is the requests a
/// second that it could answer at full load, less a penalty for its errors:
///
/// ```text
/// weight = qps / (utilization + eps / qps * error_penalty)
/// ```
///
/// This is multiplied by the weight that discovery gave the endpoint, and counts relative to the
/// other endpoints. Every policy that reads weights follows it:
/// [`WeightedRoundRobin`](crate::WeightedRoundRobin), as in gRPC, and [`P2c`](crate::P2c), which
/// draws by weight and compares loads in proportion to it. Hashing does not follow it.
///
/// An endpoint without reports has the mean weight of the others. With fewer than two endpoints
/// that report, all weights are those of discovery. No report counts for more than ten times the
/// median or less than a hundredth of it. A server that restarts at its old address keeps its
/// weight until it reports again or its last report expires.
///
/// The defaults are gRPC's: reports count from 10 s after an endpoint's first (blackout), for 180 s
/// each (expiry). Weights are set every second. The error penalty is 1.
///
/// ```
/// use tower_lb::report::{LoadReport, ReportedWeightsLayer};
///
/// # struct Answer { busy: f64, served: f64 }
/// let layer = ReportedWeightsLayer::new(|answer: &Answer| Some(LoadReport::new(answer.busy, answer.served)));
/// # let _ = layer;
/// ```
///
/// If servers report loads, use [`ReportedLayer`](super::ReportedLayer), in addition or instead.
///
/// With the feature `http`, `http::load_report` reads ORCA's header.
///
/// Cost: a response with a report takes a lock for an instant. Every request also clones an `Arc`.
///
/// Source: [gRFC
/// A58](https://github.com/grpc/proposal/blob/master/A58-client-side-weighted-round-robin-lb-policy.md).
#[derive(Clone)]
pub struct ReportedWeightsLayer<F> {
    read: F,
    clocks: ReportClocks,
    update: Duration,
}

/// A service that reads reports from its responses, made by [`ReportedWeightsLayer`].
pub struct ReportedWeights<S, A, F> {
    service: S,
    weight: Arc<Weight<A>>,
    read: F,
}

pin_project! {
    /// Discovery whose services read reports, made by [`ReportedWeightsLayer`].
    pub struct ReportedWeightsDiscover<D, A, F> {
        #[pin]
        upstream: Upstream<D>,
        read: F,
        clocks: ReportClocks,
        update: Duration,
        weights: EndpointMap<A, Arc<Weight<A>>>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

pin_project! {
    /// The response future of a [`ReportedWeights`].
    pub struct ReportedWeightsFuture<T, A, F> {
        #[pin]
        future: T,
        weight: Arc<Weight<A>>,
        read: F,
    }
}

struct Weight<A> {
    endpoint: Endpoint<A>,
    clocks: ReportClocks,
    by_reports: Mutex<WeightByReports>,
}

impl<F> ReportedWeightsLayer<F> {
    /// Reads the reports with `read`, from each response. Uses the default settings.
    pub const fn new<Res>(read: F) -> Self
    where
        F: Fn(&Res) -> Option<LoadReport>,
    {
        Self {
            read,
            clocks: ReportClocks {
                blackout: Duration::from_secs(10),
                expiry: Duration::from_secs(180),
                error_penalty: 1.0,
            },
            update: Duration::from_secs(1),
        }
    }

    /// Sets how long after its first report an endpoint's reports begin to count. Default 10 s.
    #[must_use]
    pub const fn blackout(mut self, blackout: Duration) -> Self {
        self.clocks.blackout = blackout;
        self
    }

    /// Sets how long a report counts. Default 180 s. A stale report is worse than none.
    #[must_use]
    pub const fn expiry(mut self, expiry: Duration) -> Self {
        self.clocks.expiry = expiry;
        self
    }

    /// Sets how often weights are updated. Default 1 s. An update costs a new snapshot, **O(n)**.
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

    /// Sets how much the share of errors counts, relative to the utilization. Default 1.
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

impl<D: DiscoverEndpoints, F: Clone> Layer<D> for ReportedWeightsLayer<F> {
    type Service = ReportedWeightsDiscover<D, D::Address, F>;

    fn layer(&self, discover: D) -> Self::Service {
        ReportedWeightsDiscover {
            upstream: Upstream::new(discover),
            read: self.read.clone(),
            clocks: self.clocks,
            update: self.update,
            weights: EndpointMap::default(),
            timer: None,
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
        // 1. Set the weights when the timer is due. Pending: the timer has registered the waker.
        let update = *this.update;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(update)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            this.weights
                .iter()
                .for_each(|(_, _, weight)| weight.set(now));
            timer.as_mut().reset(now + update);
        }
        // 2. Pass on the changes of discovery.
        let weights = this.weights;
        let item = this.upstream.poll_change(cx, || !weights.is_empty());
        let Some(change) = ready!(item?) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(Ok(match change {
            Change::Insert(endpoint, service) => {
                let weight = Arc::new(Weight {
                    endpoint: endpoint.clone(),
                    clocks: *this.clocks,
                    by_reports: Mutex::default(),
                });
                weights.insert(endpoint.clone(), weight.clone());
                let read = this.read.clone();
                let service = ReportedWeights {
                    service,
                    weight,
                    read,
                };
                Change::Insert(endpoint, service)
            }
            Change::Remove(endpoint) => {
                weights.remove(&endpoint);
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<A> Weight<A> {
    fn report(&self, report: &LoadReport) {
        let mut weight = self
            .by_reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        weight.report(report, &self.clocks, Instant::now());
    }

    fn set(&self, now: Instant) {
        let mut weight = self
            .by_reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let reported = weight.get(&self.clocks, now);
        // The endpoint wakes the driver, and no wake comes under a lock.
        drop(weight);
        self.endpoint.set_reported(reported);
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
    F: Fn(&S::Response) -> Option<LoadReport> + Clone,
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
            weight: self.weight.clone(),
            read: self.read.clone(),
        }
    }
}

impl<T, A, F, Res, E> Future for ReportedWeightsFuture<T, A, F>
where
    T: Future<Output = Result<Res, E>>,
    F: Fn(&Res) -> Option<LoadReport>,
{
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = self.project();
        let answer = ready!(this.future.poll(cx));
        if let Ok(response) = &answer {
            if let Some(report) = (this.read)(response) {
                this.weight.report(&report);
            }
        }
        Poll::Ready(answer)
    }
}

impl<S: Clone, A, F: Clone> Clone for ReportedWeights<S, A, F> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            weight: self.weight.clone(),
            read: self.read.clone(),
        }
    }
}

forward_metrics!([S, A, F] ReportedWeights<S, A, F>: Load, InFlight, TotalInFlight);

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
            .field("endpoint", &self.weight.endpoint)
            .finish_non_exhaustive()
    }
}

impl<D: fmt::Debug, A, F> fmt::Debug for ReportedWeightsDiscover<D, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedWeightsDiscover")
            .field("discover", self.upstream.get_ref())
            .field("endpoints", &self.weights.len())
            .finish_non_exhaustive()
    }
}

impl<T, A, F> fmt::Debug for ReportedWeightsFuture<T, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportedWeightsFuture")
            .finish_non_exhaustive()
    }
}
