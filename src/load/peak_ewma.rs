use std::{
    cmp::Ordering,
    task::{Context, Poll},
    time::Duration,
};

use tower::{
    Layer, Service,
    load::{CompleteOnResponse, Load, TrackCompletion},
};

use super::{
    Classify, ErrorsAreFailures, Outcome,
    ages::{AgesReading, Generation},
    classify::Settle,
    ewma::{LevelReading, Settings},
    gauge::{Gauge, Lease},
    track::TrackFuture,
};
use crate::metric::{self, Cost, InFlight, PickClock, TotalInFlight};

/// Measures a service by its recent peak latency times its requests in flight.
///
/// Clones share what is measured. The latency estimate
///
/// - rises at once to a slower answer and falls slowly, by `e^(-t / decay)`, towards faster ones;
/// - is never below the age of the requests now in flight, so that a hung endpoint draws no traffic
///   (the age is exact to a quarter of the estimate while requests do not outlast it by far);
/// - counts a failed answer, as the classifier decides, as `failure_penalty` at least, so that failing
///   fast does not look fast; failures in a row do not add up;
/// - takes a cancelled request for a censored sample: it never lowers the estimate, and cancellations
///   with no answer between them (an ignored one is an answer, too; an ignored error is not) keep raising it, each
///   of them to the time that it was waited for or to the penalty at most;
/// - fades while nothing is in flight and no answer comes, quickly after 5 s, so that a slow or broken
///   endpoint gets a trial; while that one is under way the unfaded estimate counts. Trials are one at a
///   time. With less than one request in 5 s for each endpoint, then, estimates say little.
///
/// Reading changes nothing, however often it is done.
///
/// Cost: two clock reads a request, one to start and one to end it, and none for a pick; one atomic operation to start it and one
/// to end it; no lock, no allocation. (But making an endpoint's tracker and dropping its last clone take a lock for an instant: the
/// 128 bytes in which it is measured are never freed, and wait for the next endpoint.) Of the requests in flight at one endpoint, those
/// beyond a quarter of a million are neither counted nor measured. All loads that a pick compares are read at one time, the latest
/// that this thread or any of them knows of (see [`PickClock`]); `estimate` and a comparison by `PartialOrd` read the clock.
///
/// Source: Finagle's `PeakEwma`; Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013, for why the peak.
#[derive(Debug)]
pub struct PeakEwma<S, C = CompleteOnResponse, K = ErrorsAreFailures> {
    service: S,
    completion: C,
    classify: K,
    lease: Lease,
}

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

/// Counts one request in flight, and measures it, until it is dropped.
// Two words, which travel in registers: the copies that a larger handle makes on its way through the response
// future cost as much as a third reading of the clock.
#[derive(Debug)]
pub struct PeakEwmaHandle {
    gauge: &'static Gauge,
    request: Request,
}

/// When a request was sent, in ns; below it, three bits of its [`State`] and three of its generation.
#[derive(Clone, Copy, Debug)]
struct Request(u64);

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent = 0,
    Succeeded = 1,
    Failed = 2,
    Ignored = 3,
    /// Answered. A bit of its own: what is decided is added to it.
    Undecided = 4,
}

/// A reading of [`PeakEwma`], whose value depends on the time at which it is compared.
///
/// Compared without a [`PickClock`], it reads the clock.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwmaLoad {
    ages: AgesReading,
    level: LevelReading,
    settings: Settings,
}

impl<S> PeakEwma<S> {
    /// Wraps a service with the default settings of [`PeakEwmaLayer`].
    pub fn new(service: S) -> Self {
        PeakEwmaLayer::default().layer(service)
    }
}

impl<S, C, K> PeakEwma<S, C, K> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }

    /// Returns the latency that a request is expected to have now. Reads the clock.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        let nanos = self.load().estimate(metric::now());
        Duration::from_nanos(nanos)
    }
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
    /// Sets the estimate that an endpoint starts with. Default 30 ms.
    ///
    /// Answers pull it up and down like any other, so it is best near the usual latency: a larger value sends
    /// less to a new endpoint at first, a much smaller one sends it a burst.
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
    /// A larger value remembers slowness for longer; a smaller one forgives sooner.
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

    /// Sets the least latency that a failure counts as. Default 5 s.
    ///
    /// A larger value keeps a failing endpoint out of the way of slower but healthy ones.
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

    /// Sets what a request's end is. Default [`CompleteOnResponse`].
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

    /// Sets what tells failures from successes, a [`Classify`]. Default [`ErrorsAreFailures`].
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
            lease: Lease::new(
                Settings::new(self.decay, self.failure_penalty),
                self.default_rtt,
                metric::now(),
            ),
        }
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

/// The total of the wrapped service.
impl<S: TotalInFlight, C, K> TotalInFlight for PeakEwma<S, C, K> {
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

impl<S, C, K> Load for PeakEwma<S, C, K> {
    /// The latency estimate in nanoseconds, times the requests in flight and the next one.
    type Metric = PeakEwmaLoad;

    #[inline]
    fn load(&self) -> PeakEwmaLoad {
        PeakEwmaLoad::read(self.lease.gauge())
    }
}

impl PeakEwmaLoad {
    #[inline]
    fn read(gauge: &Gauge) -> Self {
        Self {
            ages: gauge.ages.read(),
            level: gauge.level.read(),
            settings: gauge.settings(),
        }
    }

    /// Returns the latency that a request is expected to have, in ns.
    #[inline]
    fn estimate(self, now: u64) -> u64 {
        if self.ages.requests == 0 {
            self.level.faded(now, self.settings)
        } else {
            let age = now.saturating_sub(self.ages.oldest);
            self.level.peak().max(age)
        }
    }

    #[inline]
    fn cost_when(self, now: u64) -> f64 {
        // A nanosecond at least, so that requests in flight count however fast the answers were.
        // (Signed conversions are one instruction each, unsigned five.)
        self.estimate(now).max(1) as i64 as f64 * (self.ages.requests + 1) as i64 as f64
    }
}

impl Cost for PeakEwmaLoad {
    const TIMED: bool = true;

    fn cost(&self) -> f64 {
        self.cost_when(metric::now())
    }

    #[inline]
    fn cost_at(&self, clock: &PickClock) -> f64 {
        self.cost_when(clock.known())
    }

    #[inline]
    fn tell(&self, clock: &PickClock) {
        clock.hear(self.ages.youngest);
        clock.hear(self.level.latest());
    }
}

impl PartialOrd for PeakEwmaLoad {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let now = metric::now();
        self.cost_when(now).partial_cmp(&other.cost_when(now))
    }
}

impl PartialEq for PeakEwmaLoad {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
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
        // Before the call, so that a call that panics gives it back.
        let handle = PeakEwmaHandle::start(self.lease.gauge());
        TrackFuture::new(
            self.service.call(request),
            handle,
            self.completion.clone(),
            self.classify.clone(),
        )
    }
}

impl Request {
    fn new(sent_at: u64, generation: Option<Generation>) -> Self {
        let generation = generation.map_or(0, Generation::number);
        Self(sent_at << STATE_BITS << GENERATION_BITS | generation)
    }

    const fn sent_at(self) -> u64 {
        self.0 >> GENERATION_BITS >> STATE_BITS
    }

    const fn generation(self) -> Option<Generation> {
        Generation::from_number(self.0 & ((1 << GENERATION_BITS) - 1))
    }

    const fn settled(self, state: State) -> Self {
        Self(self.0 | (state as u64) << GENERATION_BITS)
    }

    const fn state(self) -> State {
        match self.0 >> GENERATION_BITS & DECIDED {
            0 if self.is_answered() => State::Undecided,
            0 => State::Sent,
            1 => State::Succeeded,
            2 => State::Failed,
            _ => State::Ignored,
        }
    }

    const fn is_answered(self) -> bool {
        self.0 >> GENERATION_BITS & State::Undecided as u64 != 0
    }

    const fn is_decided(self) -> bool {
        self.0 >> GENERATION_BITS & DECIDED != 0
    }
}

impl PeakEwmaHandle {
    #[inline]
    fn start(gauge: &'static Gauge) -> Self {
        let sent_at = metric::now_at_event();
        let generation = gauge.ages.enter(sent_at, || gauge.level.log2_quarter());
        Self {
            gauge,
            request: Request::new(sent_at, generation),
        }
    }

    /// Takes the request's end.
    // Inlined, for then the handle stays in its two registers.
    #[inline(always)]
    fn end(&self) {
        // Of a request that was not counted, nothing is known to be this endpoint's still.
        let Some(generation) = self.request.generation() else {
            return;
        };
        let now = metric::now_at_event();
        let took = now.saturating_sub(self.request.sent_at());
        let level = &self.gauge.level;
        let settings = || self.gauge.settings();
        match self.request.state() {
            State::Succeeded => level.succeed(took, now, settings()),
            State::Failed => level.fail(took, now, settings()),
            State::Sent => level.cancel(took, now, settings()),
            State::Ignored if self.request.is_answered() => level.end_row(),
            State::Ignored | State::Undecided => {}
        }
        // Last, for it may be what the next service waits for to take the gauge.
        self.gauge.ages.leave(generation);
    }
}

impl Settle for PeakEwmaHandle {
    #[inline]
    fn settle(&mut self, outcome: Outcome) {
        if self.request.is_decided() {
            return;
        }
        self.request = self.request.settled(match outcome {
            Outcome::Success => State::Succeeded,
            Outcome::Failure => State::Failed,
            Outcome::Ignore => State::Ignored,
            Outcome::Undecided => State::Undecided,
        });
    }
}

impl Drop for PeakEwmaHandle {
    #[inline]
    fn drop(&mut self) {
        self.end();
    }
}

const STATE_BITS: u32 = 3;
const DECIDED: u64 = 3;
const GENERATION_BITS: u32 = 3;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn gauge() -> Gauge {
        let [decay, penalty] = [10, 5].map(Duration::from_secs);
        Gauge::new(Settings::new(decay, penalty), Duration::from_millis(30), 0)
    }

    /// The first pick of a thread, which knows nothing of the time: what others have done at one endpoint tells how
    /// old a request at the other one is.
    #[test]
    fn a_pick_knows_the_time_of_what_it_compares() {
        let (hangs, answers) = (gauge(), gauge());
        hangs.ages.enter(SECOND, || 0).unwrap();
        answers
            .level
            .succeed(SECOND / 100, 9 * SECOND, answers.settings());
        for order in [[&hangs, &answers], [&answers, &hangs]] {
            let loads = order.map(PeakEwmaLoad::read);
            let clock = PickClock::new();
            loads.iter().for_each(|load| load.tell(&clock));
            assert_eq!(clock.known(), 9 * SECOND);
            let cost = |gauge| PeakEwmaLoad::read(gauge).cost_at(&clock);
            let [hangs, answers] = [&hangs, &answers].map(cost);
            assert!(hangs >= 2.0 * 8e9, "{hangs}");
            assert!(answers < 0.1 * 1e9, "{answers}");
        }
        let hear = |gauge| {
            let clock = PickClock::new();
            PeakEwmaLoad::read(gauge).tell(&clock);
            clock.known()
        };
        answers.level.cancel(1, 10 * SECOND, answers.settings());
        assert_eq!(hear(&answers), 10 * SECOND);
        answers.ages.enter(20 * SECOND, || 0).unwrap();
        assert!(hear(&answers) > 20 * SECOND - 2000);
    }
}
