use std::time::Duration;

use rand::{SeedableRng, rngs::SmallRng};
use tower::{Layer, load::CompleteOnResponse};

use super::{
    FailureRate, SlowLatency, SuccessRate,
    detector::Detectors,
    discover::OutlierDiscover,
    endpoint_set::EndpointSet,
    rule::{EjectionGrowth, EjectionRule},
    settings::EndpointSettings,
};
use crate::{
    endpoint::Address,
    outcome::{ErrorsAreFailures, Outcomes},
    random::entropy,
    upstream::DiscoverEndpoints,
};

/// Ejects endpoints whose answers show a fault, and readmits them when probes succeed.
///
/// Every response is classified. A failed `poll_ready` is a failure. A call that its caller cancels
/// does not count unless [`cancelled_after`](Self::cancelled_after) is set.
///
/// [Detectors](crate::health#which-detector-catches-what) judge at once or at the end of each
/// interval. When an ejection ends, single requests go through as probes. Their outcomes decide:
/// success readmits the endpoint, failure ejects it for longer.
///
/// A first ejection lasts 1 s, each further one twice as long as the one before, at most 300 s.
/// Each interval without an ejection undoes one doubling. A server that restarts is thus back
/// within a second or two, and one that stays away costs one probe for each doubling. Longer first
/// ejections, like the 30 s that Envoy has, keep a server that was away for a moment out for half a
/// minute: its share goes to the others at a moment when another one may be restarting. A random
/// part of up to a quarter is added, so that the clients of a server do not all come back at once.
///
/// At most a tenth of the endpoints are ejected at once. Of two or more endpoints, one always may
/// be ejected, but never the last available one. Every ejection and readmission is a `tracing`
/// event.
///
/// An endpoint that leaves while it is ejected or fails, and comes back within five minutes, goes
/// on as it was. At most as many are remembered as there were endpoints at once.
///
/// Endpoints are watched while their discovery lives, which the balancer's driver owns. A service
/// that outlives the discovery lets requests through and counts nothing.
///
/// Cost: a healthy request reads a few words of its endpoint's state. It makes one atomic increment
/// while a detector that judges by the interval is on. There is no allocation and no lock. By
/// default there is no clock reading. The words that requests read and write take 128 bytes for
/// each endpoint. They are reused for later endpoints and never freed, so that requests need not
/// count references to them.
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
pub struct OutlierLayer<C = CompleteOnResponse, K = ErrorsAreFailures> {
    rule: EjectionRule,
    interval: Duration,
    memory: Duration,
    consecutive_failures: Option<u32>,
    detectors: Detectors,
    cancelled_after: Option<Duration>,
    classify: K,
    completion: C,
    seed: Option<u64>,
}

impl Default for OutlierLayer {
    fn default() -> Self {
        Self {
            rule: EjectionRule {
                base: Duration::from_secs(1),
                growth: EjectionGrowth::Doubling,
                longest: Duration::from_secs(300),
                jitter: None,
                max_ejected: 0.1,
                probes: 1,
            },
            interval: Duration::from_secs(10),
            memory: Duration::from_secs(300),
            consecutive_failures: Some(5),
            detectors: Detectors {
                success_rate: Some(SuccessRate::default()),
                failure_rate: Some(FailureRate::default()),
                slow_latency: None,
            },
            cancelled_after: None,
            classify: ErrorsAreFailures::default(),
            completion: CompleteOnResponse::default(),
            seed: None,
        }
    }
}

impl<C, K> OutlierLayer<C, K> {
    /// Sets the classifier that tells failures from successes. Default [`ErrorsAreFailures`].
    #[must_use]
    pub fn classify<L>(self, classify: L) -> OutlierLayer<C, L> {
        OutlierLayer {
            rule: self.rule,
            interval: self.interval,
            memory: self.memory,
            consecutive_failures: self.consecutive_failures,
            detectors: self.detectors,
            cancelled_after: self.cancelled_after,
            classify,
            completion: self.completion,
            seed: self.seed,
        }
    }

    /// Sets the classifier and the completion that it needs, such as `http::GrpcStatus::new()`.
    ///
    /// A gRPC status is usually in the trailers of an answer. A classifier that leaves the outcome
    /// to them learns nothing under a completion that does not wait for them.
    #[must_use]
    pub fn outcomes<O: Outcomes>(self, outcomes: O) -> OutlierLayer<O::Completion, O::Classify> {
        let (classify, completion) = outcomes.outcomes();
        self.classify(classify).completion(completion)
    }

    /// Sets when a request counts as complete. Default [`CompleteOnResponse`].
    ///
    /// Matters for outcomes that [only the body tells](crate::Outcome::Undecided). With a
    /// completion by bodies, a probe succeeds with the first data, so that a long stream can be a
    /// probe.
    #[must_use]
    pub fn completion<D>(self, completion: D) -> OutlierLayer<D, K> {
        OutlierLayer {
            rule: self.rule,
            interval: self.interval,
            memory: self.memory,
            consecutive_failures: self.consecutive_failures,
            detectors: self.detectors,
            cancelled_after: self.cancelled_after,
            classify: self.classify,
            completion,
            seed: self.seed,
        }
    }

    /// Sets how many failures in a row eject an endpoint at once. Default 5.
    ///
    /// `None` turns this detector off.
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

    /// Sets the detector that judges by success rate; `None` turns it off. Default on.
    #[must_use]
    pub fn success_rate(mut self, detector: impl Into<Option<SuccessRate>>) -> Self {
        self.detectors.success_rate = detector.into();
        self
    }

    /// Sets the detector that judges by failure rate; `None` turns it off. Default on.
    #[must_use]
    pub fn failure_rate(mut self, detector: impl Into<Option<FailureRate>>) -> Self {
        self.detectors.failure_rate = detector.into();
        self
    }

    /// Sets the detector that judges by latency; `None` turns it off. Default off.
    ///
    /// It reads the clock twice for each of the first 64 requests of an interval and for one in 16
    /// of the others.
    #[must_use]
    pub fn slow_latency(mut self, detector: impl Into<Option<SlowLatency>>) -> Self {
        self.detectors.slow_latency = detector.into();
        self
    }

    /// Sets the interval at whose end the detectors judge. Default 10 s.
    ///
    /// A longer interval gathers more requests and decides later.
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

    /// Sets the length of a first ejection. Default 1 s.
    ///
    /// With a longer one, a server that comes back waits for longer, and one that stays away is
    /// probed less often at first.
    #[must_use]
    pub const fn base_ejection(mut self, length: Duration) -> Self {
        self.rule.base = length;
        self
    }

    /// Sets how the next ejections grow. Default: they [double](EjectionGrowth::Doubling).
    #[must_use]
    pub const fn ejection_growth(mut self, growth: EjectionGrowth) -> Self {
        self.rule.growth = growth;
        self
    }

    /// Sets the length of the longest ejection, and how long a probe may take. Default 300 s.
    #[must_use]
    pub const fn max_ejection(mut self, length: Duration) -> Self {
        self.rule.longest = length;
        self
    }

    /// Sets the largest random time that is added to every ejection.
    ///
    /// Default: a quarter of the ejection, or nothing where ejections grow
    /// [linearly](EjectionGrowth::Linear). Jitter keeps endpoints and clients from all coming back
    /// at once.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.rule.jitter = Some(jitter);
        self
    }

    /// Sets how long an endpoint that has left is remembered. Default 5 minutes.
    ///
    /// If it comes back within this time, its ejection and its failures still count. Only endpoints
    /// that were ejected or failed are remembered. Zero forgets all.
    #[must_use]
    pub const fn memory(mut self, memory: Duration) -> Self {
        self.memory = memory;
        self
    }

    /// Sets the largest share of endpoints that may be ejected at once, rounded down. Default .1.
    ///
    /// Of two or more endpoints, one always may be ejected, but never the last available one.
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

    /// Sets how many probes must succeed when an ejection has ended. Default 1.
    ///
    /// At most as many probes are under way at once.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn probes(mut self, probes: u32) -> Self {
        assert_ne!(probes, 0, "without probes no endpoint would come back");
        self.rule.probes = probes;
        self
    }

    /// Counts a call as failed if its caller cancels it after `duration` or later. Default:
    /// cancelled calls do not count.
    ///
    /// Use it for endpoints that hang, because they show no other sign. A duration near the
    /// callers' own timeout also counts answers as failures that are merely slow. With a completion
    /// by bodies, a call whose first data has come does not count as cancelled.
    ///
    /// Cost: up to two clock readings for each request.
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

    pub(super) fn endpoint_set<A: Address>(&self) -> EndpointSet<A> {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let settings = EndpointSettings {
            rule: self.rule,
            consecutive_failures: self.consecutive_failures.unwrap_or(0),
            need_tallies: self.detectors.need_tallies(),
            need_start: self.cancelled_after.is_some() || self.detectors.slow_latency.is_some(),
            cancelled_after: self.cancelled_after.map_or(0, |after| nanos(after).max(1)),
        };
        let rng = SmallRng::seed_from_u64(self.seed.unwrap_or_else(entropy));
        EndpointSet::new(self.detectors, settings, self.memory, rng)
    }
}

impl<D, C, K> Layer<D> for OutlierLayer<C, K>
where
    D: DiscoverEndpoints<Address: Address>,
    C: Clone,
    K: Clone,
{
    type Service = OutlierDiscover<D, D::Address, C, K>;

    fn layer(&self, discover: D) -> Self::Service {
        OutlierDiscover::new(
            discover,
            self.endpoint_set(),
            self.completion.clone(),
            self.classify.clone(),
            self.interval,
        )
    }
}
