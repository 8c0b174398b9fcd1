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
    Layer,
    discover::{Change, Discover},
};

use super::{
    detectors::{Detectors, FailurePercentage, SlowLatency, SuccessRate},
    ejection::Rule,
    fleet::Fleet,
    host::HostSettings,
    outlier_service::Outlier,
};
use crate::{
    chance::entropy,
    endpoint::{Address, Endpoint},
    load::{CompleteOnResponse, ErrorsAreFailures},
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
/// Endpoints are watched while their discovery lives, which the balancer's driver owns. A service that is left over says nothing
/// and goes through.
///
/// Cost: a healthy request reads a few words of its endpoint's state, and makes one atomic increment while a detector by the
/// interval is on; no allocation, no lock, no clock reading. What requests read and write, a cache line or two for each endpoint, is
/// kept for later endpoints when one goes, so that no request has to count who still refers to it.
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
pub struct OutlierLayer<K = ErrorsAreFailures, C = CompleteOnResponse> {
    rule: Rule,
    interval: Duration,
    consecutive_failures: Option<u32>,
    detectors: Detectors,
    cancelled_after: Option<Duration>,
    classify: K,
    completion: C,
    seed: Option<u64>,
}

pin_project! {
    /// Discovery whose services are watched, made by [`OutlierLayer`].
    pub struct OutlierDiscover<D, A: Address, K = ErrorsAreFailures, C = CompleteOnResponse> {
        #[pin]
        discover: D,
        fleet: Arc<Fleet<A>>,
        classify: K,
        completion: C,
        interval: Duration,
        timer: Option<Pin<Box<Sleep>>>,
        has_ended: bool,
    }
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
            completion: CompleteOnResponse::default(),
            seed: None,
        }
    }
}

impl<K, C> OutlierLayer<K, C> {
    /// Sets what tells failures from successes. Default [`ErrorsAreFailures`].
    #[must_use]
    pub fn classify<L>(self, classify: L) -> OutlierLayer<L, C> {
        OutlierLayer {
            rule: self.rule,
            interval: self.interval,
            consecutive_failures: self.consecutive_failures,
            detectors: self.detectors,
            cancelled_after: self.cancelled_after,
            classify,
            completion: self.completion,
            seed: self.seed,
        }
    }

    /// Sets what a request's end is, for outcomes that [only its body tells](crate::load::Outcome::Undecided). Default [`CompleteOnResponse`].
    ///
    /// The probe of an endpoint that was ejected then has succeeded with the first data, so that a stream may be one.
    #[must_use]
    pub fn completion<D>(self, completion: D) -> OutlierLayer<K, D> {
        OutlierLayer {
            rule: self.rule,
            interval: self.interval,
            consecutive_failures: self.consecutive_failures,
            detectors: self.detectors,
            cancelled_after: self.cancelled_after,
            classify: self.classify,
            completion,
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
    /// duration near the callers' own timeout takes slowness that they would have borne for no fault. With a completion by
    /// bodies, a call whose first data has come is none of these.
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

    pub(super) fn fleet<A: Address>(&self) -> Fleet<A> {
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

impl<D, A, K, C> Layer<D> for OutlierLayer<K, C>
where
    D: Discover<Key = Endpoint<A>>,
    A: Address,
    K: Clone,
    C: Clone,
{
    type Service = OutlierDiscover<D, A, K, C>;

    fn layer(&self, discover: D) -> Self::Service {
        OutlierDiscover {
            discover,
            fleet: Arc::new(self.fleet()),
            classify: self.classify.clone(),
            completion: self.completion.clone(),
            interval: self.interval,
            timer: None,
            has_ended: false,
        }
    }
}

impl<D, A, S, K, C> Stream for OutlierDiscover<D, A, K, C>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
    K: Clone,
    C: Clone,
{
    type Item = Result<Change<Endpoint<A>, Outlier<S, A, K, C>>, D::Error>;

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
                let ticket = this.fleet.insert(&endpoint);
                let (classify, completion) = (this.classify.clone(), this.completion.clone());
                let outlier = Outlier::new(service, ticket, classify, completion);
                Change::Insert(endpoint, outlier)
            }
            Change::Remove(endpoint) => {
                this.fleet.remove(&endpoint);
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<D: fmt::Debug, A: Address, K, C> fmt::Debug for OutlierDiscover<D, A, K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierDiscover")
            .field("discover", &self.discover)
            .field("fleet", &self.fleet)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}
