use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, Sleep};
use tower::{
    Layer, Service,
    discover::{Change, Discover},
    load::Load,
};

use super::{
    detectors::{Detectors, FailurePercentage, SlowLatency, SuccessRate},
    ejection::Rule,
    fleet::Fleet,
    host::{HostSettings, Ticket, Trial},
};
use crate::{
    chance::entropy,
    endpoint::{Address, Endpoint},
    load::{Classify, ErrorsAreFailures, Outcome},
    metric::{InFlight, TotalInFlight},
};

/// Ejects endpoints for what their answers show, and lets them come back.
///
/// Every response is classified; a failed `poll_ready` is a failure, a call that its caller gave up says nothing unless
/// [`cancelled_after`](Self::cancelled_after) is set. [Detectors](super#which-detector-catches-what) judge at once or at the
/// end of each interval. When an ejection is over, single requests go through as probes and decide by their
/// own outcomes: success readmits, failure ejects for longer.
///
/// An endpoint is ejected for 30 s times the number of ejections that follow one another, at most 300 s; each quiet interval
/// takes one off that number. At most a tenth of the endpoints are ejected at once, but one always may be
/// where there are two or more; never the last one that is available. Every verdict is a `tracing` event.
///
/// Cost: a healthy request pays one clone of an `Arc` for its service and one for its future, and one atomic
/// increment while a detector by the interval is on; no allocation, no lock, no clock reading.
///
/// Source: Envoy, outlier detection; gRFC A50; Finagle, failure accrual, for the probes.
///
/// ```
/// use std::time::Duration;
/// use tower_lb::health::{OutlierLayer, SlowLatency};
///
/// let layer = OutlierLayer::default()
///     .consecutive_failures(3)
///     .success_rate(None)
///     .slow_latency(SlowLatency::default())
///     .max_ejected(0.3);
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
pub struct OutlierLayer<K = ErrorsAreFailures> {
    rule: Rule,
    interval: Duration,
    consecutive_failures: Option<u32>,
    detectors: Detectors,
    cancelled_after: Option<Duration>,
    classify: K,
    seed: Option<u64>,
}

/// A service whose outcomes are watched, made by [`OutlierLayer`].
///
/// Not ready while its endpoint is ejected, or on trial with all probes under way: the balancer passes over it. One
/// that has revived it, in a panic, sends it requests all the same.
pub struct Outlier<S, A: Address, K = ErrorsAreFailures> {
    service: S,
    ticket: Arc<Ticket<A>>,
    classify: K,
}

pin_project! {
    /// Discovery whose services are watched, made by [`OutlierLayer`].
    pub struct OutlierDiscover<D, A: Address, K = ErrorsAreFailures> {
        #[pin]
        discover: D,
        fleet: Arc<Fleet<A>>,
        classify: K,
        interval: Duration,
        timer: Option<Pin<Box<Sleep>>>,
        has_ended: bool,
    }
}

pin_project! {
    /// The response future of an [`Outlier`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is done, it counts as a cancelled call, and gives a probe back.
    pub struct OutlierFuture<F, A: Address, K> {
        #[pin]
        future: F,
        classify: K,
        record: Record<A>,
    }
}

/// Reports one request's outcome, at the latest when it is dropped.
struct Record<A: Address> {
    /// `None` once it has reported.
    ticket: Option<Arc<Ticket<A>>>,
    /// In ns; 0: not to be known.
    started: u64,
}

impl Default for OutlierLayer {
    fn default() -> Self {
        Self {
            rule: Rule {
                base: Duration::from_secs(30),
                longest: Duration::from_secs(300),
                jitter: Duration::ZERO,
                max_ejected: 0.1,
                probes: 1,
            },
            interval: Duration::from_secs(10),
            consecutive_failures: Some(5),
            detectors: Detectors {
                success_rate: Some(SuccessRate::default()),
                failure_percentage: Some(FailurePercentage::default()),
                slow_latency: None,
            },
            cancelled_after: None,
            classify: ErrorsAreFailures::default(),
            seed: None,
        }
    }
}

impl<K> OutlierLayer<K> {
    /// Sets what tells failures from successes. Default [`ErrorsAreFailures`].
    #[must_use]
    pub fn classify<L>(self, classify: L) -> OutlierLayer<L> {
        OutlierLayer {
            rule: self.rule,
            interval: self.interval,
            consecutive_failures: self.consecutive_failures,
            detectors: self.detectors,
            cancelled_after: self.cancelled_after,
            classify,
            seed: self.seed,
        }
    }

    /// Sets how many failures in a row eject at once; `None` turns this detector off. Default 5.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn consecutive_failures(mut self, failures: impl Into<Option<u32>>) -> Self {
        let failures = failures.into();
        assert_ne!(failures, Some(0), "no failure is no reason to eject");
        self.consecutive_failures = failures;
        self
    }

    /// Sets the detector by the share of successes; `None` turns it off. Default on.
    #[must_use]
    pub fn success_rate(mut self, detector: impl Into<Option<SuccessRate>>) -> Self {
        self.detectors.success_rate = detector.into();
        self
    }

    /// Sets the detector by the share of failures; `None` turns it off. Default on.
    #[must_use]
    pub fn failure_percentage(mut self, detector: impl Into<Option<FailurePercentage>>) -> Self {
        self.detectors.failure_percentage = detector.into();
        self
    }

    /// Sets the detector by latency; `None` turns it off. Default off.
    ///
    /// It reads the clock twice for one request in 16.
    #[must_use]
    pub fn slow_latency(mut self, detector: impl Into<Option<SlowLatency>>) -> Self {
        self.detectors.slow_latency = detector.into();
        self
    }

    /// Sets the time between judgements of what was counted. Default 10 s.
    ///
    /// A longer one gathers more requests and decides later.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn interval(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "the interval must not be zero");
        self.interval = interval;
        self
    }

    /// Sets the length of a first ejection; the next ones are twice, three times as long. Default 30 s.
    #[must_use]
    pub const fn base_ejection(mut self, length: Duration) -> Self {
        self.rule.base = length;
        self
    }

    /// Sets the length of the longest ejection, and how long a probe may take. Default 300 s.
    #[must_use]
    pub const fn max_ejection(mut self, length: Duration) -> Self {
        self.rule.longest = length;
        self
    }

    /// Sets the most that is added at random to every ejection, so that not all come back at once. Default 0.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.rule.jitter = jitter;
        self
    }

    /// Sets the largest share of endpoints that may be ejected at once, rounded down. Default .1.
    ///
    /// One always may be where there are two or more, but never the last one that is available.
    ///
    /// # Panics
    ///
    /// If it is not in 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn max_ejected(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "the ejected are a share in 0 to 1, not {share}"
        );
        self.rule.max_ejected = share;
        self
    }

    /// Sets how many requests go through when an ejection is over, and must succeed. Default 1.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn probes(mut self, probes: u32) -> Self {
        assert_ne!(probes, 0, "without probes nobody would come back");
        self.rule.probes = probes;
        self
    }

    /// Takes calls for failures that their callers give up after so long. Default: they say nothing.
    ///
    /// For endpoints that hang: nothing else is ever heard of them. Costs a clock reading for every request. A
    /// duration near the callers' own timeout takes slowness that they would have borne for no fault.
    #[must_use]
    pub const fn cancelled_after(mut self, duration: Duration) -> Self {
        self.cancelled_after = Some(duration);
        self
    }

    /// Draws jitter with a fixed seed, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    fn fleet<A: Address>(&self) -> Fleet<A> {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let settings = HostSettings {
            rule: self.rule,
            consecutive_failures: self.consecutive_failures.unwrap_or(0),
            need_tallies: self.detectors.need_tallies(),
            need_start: self.cancelled_after.is_some() || self.detectors.slow_latency.is_some(),
            cancelled_after: self.cancelled_after.map_or(0, |after| nanos(after).max(1)),
        };
        let rng = SmallRng::seed_from_u64(self.seed.unwrap_or_else(entropy));
        Fleet::new(self.detectors, settings, rng)
    }
}

impl<D, A, K> Layer<D> for OutlierLayer<K>
where
    D: Discover<Key = Endpoint<A>>,
    A: Address,
    K: Clone,
{
    type Service = OutlierDiscover<D, A, K>;

    fn layer(&self, discover: D) -> Self::Service {
        OutlierDiscover {
            discover,
            fleet: Arc::new(self.fleet()),
            classify: self.classify.clone(),
            interval: self.interval,
            timer: None,
            has_ended: false,
        }
    }
}

impl<D, A, S, K> Stream for OutlierDiscover<D, A, K>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
    K: Clone,
{
    type Item = Result<Change<Endpoint<A>, Outlier<S, A, K>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        // 1. The end of an interval. Pending: the timer has registered the waker.
        let interval = *this.interval;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            this.fleet.sweep(now);
            timer.as_mut().reset(now + interval);
        }
        // 2. What discovery says. When it has ended, intervals go on for those who are there.
        if *this.has_ended {
            return Poll::Pending;
        }
        let Some(change) = ready!(this.discover.try_poll_next(cx)?) else {
            *this.has_ended = true;
            return if this.fleet.is_empty() {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        Poll::Ready(Some(Ok(match change {
            Change::Insert(endpoint, service) => {
                let outlier = Outlier {
                    service,
                    ticket: this.fleet.insert(&endpoint),
                    classify: this.classify.clone(),
                };
                Change::Insert(endpoint, outlier)
            }
            Change::Remove(endpoint) => {
                this.fleet.remove(&endpoint);
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<S, A: Address, K> Outlier<S, A, K> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }

    /// Waits until a request may go through.
    #[cold]
    #[inline(never)]
    fn poll_admission(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(Ticket::OnTrial { trial, .. }) = Arc::get_mut(&mut self.ticket) {
                match trial {
                    Trial::Probe(_) => return Poll::Ready(()),
                    Trial::Wait(changed) => ready!(changed.as_mut().poll(cx)),
                }
            }
            let free = Ticket::free(&self.ticket);
            let Some(trial) = Ticket::admit(&free) else {
                self.ticket = free;
                return Poll::Ready(());
            };
            self.ticket = Arc::new(Ticket::OnTrial { free, trial });
        }
    }
}

impl<S, A, K, Req> Service<Req> for Outlier<S, A, K>
where
    S: Service<Req>,
    A: Address,
    K: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = OutlierFuture<S::Future, A, K>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // 1. Permission. Pending: the waker is registered with the end of a probe.
        if !self.ticket.is_closed() {
            ready!(self.poll_admission(cx));
        }
        // 2. The service itself. Pending: it has registered the waker.
        let readiness = ready!(self.service.poll_ready(cx));
        if readiness.is_err() {
            Ticket::end(Ticket::take(&mut self.ticket), Some(false));
        }
        Poll::Ready(readiness)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // Before the call, so that a call that panics gives a probe back.
        let record = Record {
            started: self.ticket.start(),
            ticket: Some(Ticket::take(&mut self.ticket)),
        };
        OutlierFuture {
            future: self.service.call(request),
            classify: self.classify.clone(),
            record,
        }
    }
}

impl<F, A, K, T, E> Future for OutlierFuture<F, A, K>
where
    F: Future<Output = Result<T, E>>,
    A: Address,
    K: Classify<T, E>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.future.poll(cx));
        let outcome = this.classify.classify(result.as_ref());
        this.record.end(outcome);
        Poll::Ready(result)
    }
}

impl<A: Address> Record<A> {
    #[inline]
    fn end(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            match &*ticket {
                Ticket::Free(host) if outcome == Outcome::Success => host.succeed(self.started),
                _ => Ticket::end(ticket, outcome.is_success()),
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn cancel(&self, ticket: Arc<Ticket<A>>) {
        let is_failure = ticket.host().is_too_long(self.started);
        Ticket::end(ticket, is_failure.then_some(false));
    }
}

impl<A: Address> Drop for Record<A> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.cancel(ticket);
        }
    }
}

/// The clone has no probe: that is one handle's.
impl<S: Clone, A: Address, K: Clone> Clone for Outlier<S, A, K> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            ticket: Ticket::free(&self.ticket),
            classify: self.classify.clone(),
        }
    }
}

impl<S: Load, A: Address, K> Load for Outlier<S, A, K> {
    type Metric = S::Metric;

    #[inline]
    fn load(&self) -> S::Metric {
        self.service.load()
    }
}

impl<S: InFlight, A: Address, K> InFlight for Outlier<S, A, K> {
    #[inline]
    fn in_flight(&self) -> usize {
        self.service.in_flight()
    }
}

impl<S: TotalInFlight, A: Address, K> TotalInFlight for Outlier<S, A, K> {
    #[inline]
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

impl<S: fmt::Debug, A: Address, K> fmt::Debug for Outlier<S, A, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlier")
            .field("service", &self.service)
            .field("host", self.ticket.host())
            .field(
                "is_on_trial",
                &matches!(*self.ticket, Ticket::OnTrial { .. }),
            )
            .finish_non_exhaustive()
    }
}

impl<D: fmt::Debug, A: Address, K> fmt::Debug for OutlierDiscover<D, A, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierDiscover")
            .field("discover", &self.discover)
            .field("fleet", &self.fleet)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl<F, A: Address, K> fmt::Debug for OutlierFuture<F, A, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierFuture").finish_non_exhaustive()
    }
}
