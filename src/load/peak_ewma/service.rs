use std::{
    task::{Context, Poll},
    time::Duration,
};

use tower::{
    Service,
    load::{CompleteOnResponse, Load, TrackCompletion},
};

use super::{gauge::GaugeLease, handle::PeakEwmaHandle, load::PeakEwmaLoad};
use crate::{
    clock,
    load::track::TrackFuture,
    metric::{InFlight, forward_metrics},
    outcome::{Classify, ErrorsAreFailures},
};

/// Measures a service by its recent peak latency times its requests in flight.
///
/// Clones share the measurements. The latency estimate
///
/// - is that of the first success. Before that, an endpoint that joins gets one request whatever
///   the others cost, and counts as `default_rtt` while it is in flight.
/// - rises at once to a slower answer and falls slowly, by `e^(-t / decay)`, towards faster ones.
/// - is never below the age of the requests now in flight, so that a hung endpoint draws no
///   traffic. The age is exact to a quarter of the estimate unless requests far outlast the
///   estimate.
/// - is at least `failure_penalty` from an answer that the classifier calls a failure until the
///   next success, so that failing fast does not look fast. After 1 s without a success one request
///   is sent as a trial, at the usual estimate. The next trials come 2, 4 and then 5 s after the
///   one before. A success ends the penalty at once, and so does a neutral answer. Failures leave
///   no trace in the latency.
/// - treats a cancelled request as a censored sample, which never lowers it. Cancellations in a row
///   keep raising it, each to at most its own wait or the penalty, whichever is longer. An answer
///   ends the row, even a [`Neutral`](crate::Outcome::Neutral) one. A neutral error does not.
/// - fades while nothing is in flight and no answer comes, and fades quickly after 5 s, so that a
///   slow endpoint gets a trial. While the trial is in flight, the unfaded estimate counts, so
///   there is one trial at a time. Estimates therefore say little if an endpoint gets less than one
///   request in 5 s.
///
/// For an endpoint of a weight other than the mean, the requests in flight are divided by the
/// weight, but not the estimate: an idle server of half the weight is not half as fast.
///
/// Reading the estimate changes nothing, however often it is read.
///
/// All loads that a pick compares are evaluated at one time. It is the latest that this thread or
/// any of these loads knows of (see [`PickClock`](crate::PickClock)). [`estimate`](Self::estimate)
/// and a comparison by `PartialOrd` read the clock.
///
/// Cost: a request reads the clock twice, once at its start and once at its end. A pick does not
/// read the clock. A request's start and its end take one atomic operation each. There is no lock
/// and no allocation for a request. Making an endpoint's tracker and dropping its last clone take a
/// lock for an instant. The 128 bytes of an endpoint's measurements are never freed; the next
/// endpoint reuses them. Of the requests in flight at one endpoint, those beyond a quarter of a
/// million are neither counted nor measured.
///
/// Source: Finagle's `PeakEwma`. For why the peak: Dean and Barroso, "The Tail at Scale", CACM
/// 56(2), 2013.
#[derive(Debug)]
pub struct PeakEwma<S, C = CompleteOnResponse, K = ErrorsAreFailures> {
    pub(super) service: S,
    pub(super) completion: C,
    pub(super) classify: K,
    pub(super) lease: GaugeLease,
}

impl<S, C, K> PeakEwma<S, C, K> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }

    /// Returns the latency that a request is expected to have now. Reads the clock.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let nanos = self.load().estimate(clock::now());
        Duration::from_nanos(nanos)
    }
}

impl<S: Clone, C: Clone, K: Clone> Clone for PeakEwma<S, C, K> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            completion: self.completion.clone(),
            classify: self.classify.clone(),
            lease: self.lease.clone(),
        }
    }
}

impl<S, C, K> InFlight for PeakEwma<S, C, K> {
    fn in_flight(&self) -> usize {
        self.lease.gauge().ages.read().requests as usize
    }
}

forward_metrics!([S, C, K] PeakEwma<S, C, K>: TotalInFlight);

impl<S, C, K> Load for PeakEwma<S, C, K> {
    /// The latency estimate in nanoseconds, times one more than the requests in flight.
    type Metric = PeakEwmaLoad;

    #[inline]
    fn load(&self) -> PeakEwmaLoad {
        PeakEwmaLoad::read(self.lease.gauge())
    }
}

impl<S, C, K, Req> Service<Req> for PeakEwma<S, C, K>
where
    S: Service<Req>,
    C: TrackCompletion<PeakEwmaHandle, S::Response>,
    K: Classify<S::Response, S::Error> + Clone,
{
    type Response = C::Output;
    type Error = S::Error;
    type Future = TrackFuture<S::Future, C, PeakEwmaHandle, K>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // Made before the call, so that a call that panics gives the count back.
        let handle = PeakEwmaHandle::start(self.lease.gauge());
        TrackFuture::new(
            self.service.call(request),
            handle,
            self.completion.clone(),
            self.classify.clone(),
        )
    }
}
