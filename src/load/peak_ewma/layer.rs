use std::time::Duration;

use tower::{Layer, load::CompleteOnResponse};

use super::{gauge::GaugeLease, level::EwmaSettings, service::PeakEwma};
use crate::{
    clock,
    outcome::{ErrorsAreFailures, Outcomes},
};

/// Wraps services with [`PeakEwma`].
///
/// ```
/// use std::time::Duration;
/// use tower_lb::PeakEwmaLayer;
///
/// let layer = PeakEwmaLayer::default()
///     .default_rtt(Duration::from_millis(5))
///     .decay(Duration::from_secs(30));
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
pub struct PeakEwmaLayer<C = CompleteOnResponse, K = ErrorsAreFailures> {
    default_rtt: Duration,
    decay: Duration,
    failure_penalty: Duration,
    completion: C,
    classify: K,
}

impl Default for PeakEwmaLayer {
    fn default() -> Self {
        Self {
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            failure_penalty: Duration::from_secs(5),
            completion: CompleteOnResponse::default(),
            classify: ErrorsAreFailures::default(),
        }
    }
}

impl<C, K> PeakEwmaLayer<C, K> {
    /// Sets the estimate while an endpoint's first request is in flight. Default 30 ms.
    ///
    /// An endpoint that joins gets one request at once. The latency of its first success is its
    /// first estimate. Until then it gets more requests only if the others cost more than this
    /// value, so choose one near the usual latency. A larger value sends a burst to the endpoints
    /// that are known. A much smaller one sends it to the newcomer.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn default_rtt(mut self, default_rtt: Duration) -> Self {
        assert!(!default_rtt.is_zero(), "the default rtt must not be zero");
        self.default_rtt = default_rtt;
        self
    }

    /// Sets the time in which a peak falls to 1/e. Default 10 s.
    ///
    /// A larger value remembers slowness for longer. A smaller one forgives it sooner.
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

    /// Sets the least estimate of an endpoint that fails. Default 5 s.
    ///
    /// It counts from a failure until the next success, but not for the trials in between. If the
    /// endpoint usually takes longer than half of this, twice its usual latency counts instead. A
    /// larger value keeps traffic away from a failing endpoint even if healthy ones are slower.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn failure_penalty(mut self, failure_penalty: Duration) -> Self {
        assert!(
            !failure_penalty.is_zero(),
            "the failure penalty must not be zero"
        );
        self.failure_penalty = failure_penalty;
        self
    }

    /// Sets the classifier and the completion that it needs, such as `http::GrpcStatus::new()`.
    ///
    /// A gRPC status is usually in the trailers of an answer. A classifier that leaves the outcome
    /// to them learns nothing under a completion that does not wait for them.
    #[must_use]
    pub fn outcomes<O: Outcomes>(self, outcomes: O) -> PeakEwmaLayer<O::Completion, O::Classify> {
        let (classify, completion) = outcomes.outcomes();
        self.classify(classify).completion(completion)
    }

    /// Sets when a request counts as over. Default [`CompleteOnResponse`].
    #[must_use]
    pub fn completion<D>(self, completion: D) -> PeakEwmaLayer<D, K> {
        PeakEwmaLayer {
            default_rtt: self.default_rtt,
            decay: self.decay,
            failure_penalty: self.failure_penalty,
            completion,
            classify: self.classify,
        }
    }

    /// Sets the [`Classify`](crate::Classify) that tells failures from successes. Default
    /// [`ErrorsAreFailures`].
    #[must_use]
    pub fn classify<L>(self, classify: L) -> PeakEwmaLayer<C, L> {
        PeakEwmaLayer {
            default_rtt: self.default_rtt,
            decay: self.decay,
            failure_penalty: self.failure_penalty,
            completion: self.completion,
            classify,
        }
    }
}

impl<S, C: Clone, K: Clone> Layer<S> for PeakEwmaLayer<C, K> {
    type Service = PeakEwma<S, C, K>;

    fn layer(&self, service: S) -> Self::Service {
        PeakEwma {
            service,
            completion: self.completion.clone(),
            classify: self.classify.clone(),
            lease: GaugeLease::new(
                EwmaSettings::new(self.decay, self.failure_penalty, self.default_rtt),
                clock::now(),
            ),
        }
    }
}

impl<S> PeakEwma<S> {
    /// Wraps a service with the default settings of [`PeakEwmaLayer`].
    pub fn new(service: S) -> Self {
        PeakEwmaLayer::default().layer(service)
    }
}
