use std::time::Duration;

use tokio::time::Instant;

use super::rule::{EjectionGrowth, EjectionRule};
use crate::endpoint::BreakerView;

/// Decides whether requests go through to one endpoint.
///
/// ```text
///              a verdict                    its time is over
///  closed  ------------------>   open   ------------------------>  half-open
///     ^                           ^                                 |  |
///     |                           +---------- a probe failed -------+  |
///     +---------------------------------- all probes succeeded --------+
/// ```
///
/// A probe that ends undecided makes room for another one. So does a reserved probe that is not
/// sent within [`RESERVED_FOR`], if no other probe is under way. A probe that has not ended after
/// the longest ejection counts as failed, unless the head of its answer has come: then the answer
/// is a stream, and the endpoint works. No state keeps requests away for ever. These deadlines are
/// checked at the end of each interval.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    state: State,
    /// How many ejections the next one follows; falls by one with each interval without an
    /// ejection.
    times: u32,
    /// Whether the endpoint was ejected in the current interval.
    was_ejected: bool,
    /// Tells the probes of one half-open period from those of another.
    round: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        /// Probes that are reserved but not sent, and when the last one was reserved.
        reserved: u32,
        reserved_at: Instant,
        /// Probes under way, and when the last one was sent.
        sent: u32,
        sent_at: Instant,
        /// Whether the head of a probe's answer has come and the body is to decide.
        is_answered: bool,
        succeeded: u32,
    },
}

/// Whether the endpoint of an open breaker is still ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ejected {
    Yes,
    /// Yes, but the balancer still sends it requests, because too few endpoints are available.
    Revived,
    /// No: another part of the stack has ended the ejection.
    Readmitted,
}

/// Tells what a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Go through like any other request.
    Through,
    /// Go through as a probe of the round with this number; its outcome decides.
    Probe(u64),
    /// Wait: the endpoint is ejected, or all probes are taken.
    Wait,
}

/// Tells what the outcome of a probe leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeResult {
    /// Nothing yet: other probes decide.
    Undecided,
    /// The endpoint works again: the breaker has closed.
    Closed,
    /// The caller must eject the endpoint again.
    Failed,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Closed,
            times: 0,
            was_ejected: false,
            round: 0,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Returns whether a verdict counts now: only while closed, and where ejections grow linearly
    /// at most once an interval.
    pub(super) fn may_be_ejected(&self, rule: &EjectionRule) -> bool {
        self.is_closed() && self.counts(rule)
    }

    /// Returns whether an ejection now is one more in succession.
    fn counts(&self, rule: &EjectionRule) -> bool {
        !self.was_ejected || rule.growth == EjectionGrowth::Doubling
    }

    /// Opens for the length that the rule gives, and a jitter; returns the end of the ejection.
    ///
    /// `jitter` returns a random part of a duration.
    pub(super) fn eject(
        &mut self,
        rule: &EjectionRule,
        jitter: impl FnOnce(Duration) -> Duration,
        now: Instant,
    ) -> Instant {
        let length = rule.length(self.times);
        if self.counts(rule) && length < rule.longest {
            self.times += 1;
        }
        // An end that the clock cannot represent becomes one some thirty years away.
        let until = now
            .checked_add(length.saturating_add(jitter(rule.most_jitter(length))))
            .unwrap_or(now + Duration::from_secs(1_000_000_000));
        self.state = State::Open { until };
        self.was_ejected = true;
        self.round += 1;
        until
    }

    /// Returns when the ejection ends; `None` if there is none.
    pub(super) const fn until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Returns the breaker for the next service of the endpoint, which has left at `now`; `None` if
    /// there is nothing to remember.
    ///
    /// Probes that are under way stay with the service that has left.
    pub(super) fn kept(&self, now: Instant) -> Option<Self> {
        let state = match self.state {
            State::HalfOpen { .. } => State::Open { until: now },
            state => state,
        };
        let kept = Self {
            state,
            round: self.round + 1,
            ..*self
        };
        (!kept.is_closed() || kept.times > 0).then_some(kept)
    }

    /// Ends an ejection, so that the next request is a probe.
    pub(super) const fn end_ejection(&mut self, now: Instant) {
        if let State::Open { until } = &mut self.state {
            *until = now;
        }
    }

    /// Closes at once, whatever probes are under way.
    pub(super) const fn close(&mut self) {
        self.state = State::Closed;
        self.round += 1;
    }

    /// Decides what a request may do, and reserves a probe if it is to be one.
    pub(super) fn admit(
        &mut self,
        rule: &EjectionRule,
        ejected: Ejected,
        now: Instant,
    ) -> Admission {
        if let State::Open { until } = self.state {
            match ejected {
                Ejected::Readmitted => {}
                _ if now >= until => {}
                Ejected::Yes => return Admission::Wait,
                Ejected::Revived => return Admission::Through,
            }
            self.state = State::HalfOpen {
                reserved: 0,
                reserved_at: now,
                sent: 0,
                sent_at: now,
                is_answered: false,
                succeeded: 0,
            };
        }
        match &mut self.state {
            State::HalfOpen {
                reserved,
                reserved_at,
                sent,
                succeeded,
                ..
            } => {
                if *reserved + *sent + *succeeded >= rule.probes {
                    return Admission::Wait;
                }
                *reserved += 1;
                *reserved_at = now;
                Admission::Probe(self.round)
            }
            _ => Admission::Through,
        }
    }

    /// Records that a reserved probe is sent.
    pub(super) fn send_probe(&mut self, round: u64, now: Instant) {
        if self.round != round {
            return;
        }
        if let State::HalfOpen {
            reserved,
            sent,
            sent_at,
            ..
        } = &mut self.state
        {
            *reserved -= 1;
            *sent += 1;
            *sent_at = now;
        }
    }

    /// Records that the head of a probe's answer has come. The body decides.
    pub(super) fn answer_probe(&mut self, round: u64) {
        if let State::HalfOpen { is_answered, .. } = &mut self.state {
            *is_answered |= self.round == round;
        }
    }

    /// Records the end of a probe.
    ///
    /// `is_sent` tells whether it was sent. `success` is `None` if it decides nothing.
    pub(super) const fn end_probe(
        &mut self,
        rule: &EjectionRule,
        (round, is_sent): (u64, bool),
        success: Option<bool>,
    ) -> ProbeResult {
        let State::HalfOpen {
            reserved,
            sent,
            succeeded,
            ..
        } = &mut self.state
        else {
            return ProbeResult::Undecided;
        };
        if self.round != round {
            return ProbeResult::Undecided;
        }
        *(if is_sent { sent } else { reserved }) -= 1;
        match success {
            None => ProbeResult::Undecided,
            Some(false) => ProbeResult::Failed,
            Some(true) => {
                *succeeded += 1;
                if *succeeded < rule.probes {
                    return ProbeResult::Undecided;
                }
                self.close();
                ProbeResult::Closed
            }
        }
    }

    /// Returns the number of the newest round of probes.
    pub(super) const fn round(&self) -> u64 {
        self.round
    }

    /// Returns whether the probes of this round still decide.
    pub(super) const fn is_probed_in(&self, round: u64) -> bool {
        self.round == round && matches!(self.state, State::HalfOpen { .. })
    }

    /// Returns what the breaker does to requests at `now`.
    pub(super) fn view(&self, now: Instant) -> BreakerView {
        let is_out = match self.state {
            State::Closed => return BreakerView::Closed,
            State::Open { until } => now < until,
            State::HalfOpen { reserved, sent, .. } => reserved + sent > 0,
        };
        match is_out {
            true => BreakerView::Out,
            false => BreakerView::Idle,
        }
    }

    /// Ends an interval; returns the result of a probe that has taken too long.
    pub(super) fn end_interval(&mut self, rule: &EjectionRule, now: Instant) -> ProbeResult {
        if !self.was_ejected && self.is_closed() {
            self.times = self.times.saturating_sub(1);
        }
        self.was_ejected = false;
        let State::HalfOpen {
            reserved,
            reserved_at,
            sent,
            sent_at,
            is_answered,
            ..
        } = &mut self.state
        else {
            return ProbeResult::Undecided;
        };
        if *reserved > 0
            && *sent == 0
            && now.saturating_duration_since(*reserved_at) >= RESERVED_FOR
        {
            // If the holders of these probes still send them, their outcomes belong to an earlier
            // round and decide nothing.
            *reserved = 0;
            self.round += 1;
            return ProbeResult::Undecided;
        }
        if *sent == 0 || now.saturating_duration_since(*sent_at) < rule.longest {
            return ProbeResult::Undecided;
        }
        if *is_answered {
            self.close();
            return ProbeResult::Closed;
        }
        ProbeResult::Failed
    }
}

/// How long a reserved probe may stay unsent. Callers normally call as soon as the service is
/// ready.
const RESERVED_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(max_ejected: f64) -> EjectionRule {
        EjectionRule {
            base: secs(30),
            growth: EjectionGrowth::Linear,
            longest: secs(300),
            jitter: None,
            max_ejected,
            probes: 1,
        }
    }

    /// Sends a probe, which must be due; returns its round.
    fn send(breaker: &mut Breaker, rule: &EjectionRule, now: Instant) -> u64 {
        let Admission::Probe(round) = breaker.admit(rule, Ejected::Yes, now) else {
            panic!("a probe is due");
        };
        breaker.send_probe(round, now);
        round
    }

    const fn none(_: Duration) -> Duration {
        Duration::ZERO
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_grow_and_quiet_intervals_shorten_them() {
        let rule = rule(0.1);
        let mut breaker = Breaker::new();
        let mut now = Instant::now();
        for length in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] {
            assert_eq!(breaker.eject(&rule, none, now), now + secs(length));
            now += secs(length);
            assert_eq!(breaker.end_interval(&rule, now), ProbeResult::Undecided);
        }
        // Half-open, then closed: only a closed breaker counts quiet intervals.
        let round = send(&mut breaker, &rule, now);
        assert_eq!(
            breaker.end_probe(&rule, (round, true), Some(true)),
            ProbeResult::Closed
        );
        for _ in 0..7 {
            breaker.end_interval(&rule, now);
        }
        assert_eq!(breaker.eject(&rule, none, now), now + secs(90));
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_that_double_count_every_failed_probe() {
        let rule = EjectionRule {
            base: secs(1),
            growth: EjectionGrowth::Doubling,
            ..rule(0.1)
        };
        let mut breaker = Breaker::new();
        let mut now = Instant::now();
        for length in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert!(!breaker.is_closed() || breaker.may_be_ejected(&rule));
            let until = breaker.eject(&rule, none, now);
            assert_eq!(until, now + secs(length));
            now = until;
            let round = send(&mut breaker, &rule, now);
            let failed = breaker.end_probe(&rule, (round, true), Some(false));
            assert_eq!(failed, ProbeResult::Failed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn probes_decide_by_their_own_outcomes() {
        let rule = EjectionRule {
            probes: 2,
            ..rule(0.1)
        };
        let start = Instant::now();
        let mut breaker = Breaker::new();
        let until = breaker.eject(&rule, none, start);
        let just_before = until - Duration::from_millis(1);
        for (ejected, admission) in [
            (Ejected::Yes, Admission::Wait),
            (Ejected::Revived, Admission::Through),
        ] {
            assert_eq!(breaker.admit(&rule, ejected, just_before), admission);
        }
        // Two probes at once and no more. A probe that ends undecided is given out again.
        let round = send(&mut breaker, &rule, until);
        assert_eq!(send(&mut breaker, &rule, until), round);
        let admit = |breaker: &mut Breaker| breaker.admit(&rule, Ejected::Yes, until);
        assert_eq!(admit(&mut breaker), Admission::Wait);
        assert_eq!(
            breaker.end_probe(&rule, (round, true), None),
            ProbeResult::Undecided
        );
        assert_eq!(send(&mut breaker, &rule, until), round);
        // The outcome of another round's probe decides nothing.
        assert_eq!(
            breaker.end_probe(&rule, (round - 1, true), Some(false)),
            ProbeResult::Undecided
        );
        // One success of two is not enough. The second probe is under way, so no third one is
        // admitted.
        assert_eq!(
            breaker.end_probe(&rule, (round, true), Some(true)),
            ProbeResult::Undecided
        );
        assert_eq!(admit(&mut breaker), Admission::Wait);
        assert_eq!(
            breaker.end_probe(&rule, (round, true), Some(false)),
            ProbeResult::Failed
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_never_ends_fails_in_the_end_unless_it_is_answered() {
        let rule = rule(0.1);
        for (is_answered, verdict) in [(false, ProbeResult::Failed), (true, ProbeResult::Closed)] {
            let mut breaker = Breaker::new();
            let until = breaker.eject(&rule, none, Instant::now());
            let round = send(&mut breaker, &rule, until);
            breaker.answer_probe(round - 1);
            if is_answered {
                breaker.answer_probe(round);
            }
            let mut after = |time| breaker.end_interval(&rule, until + secs(time));
            assert_eq!(after(299), ProbeResult::Undecided);
            assert_eq!(after(300), verdict);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_reserved_and_not_sent_is_taken_back() {
        let rule = rule(0.1);
        let mut breaker = Breaker::new();
        let until = breaker.eject(&rule, none, Instant::now());
        let admit = |breaker: &mut Breaker, now| breaker.admit(&rule, Ejected::Yes, now);
        let Admission::Probe(first) = admit(&mut breaker, until) else {
            panic!("a probe is due");
        };
        assert_eq!(
            breaker.end_interval(&rule, until + secs(4)),
            ProbeResult::Undecided
        );
        assert_eq!(admit(&mut breaker, until + secs(4)), Admission::Wait);
        assert_eq!(
            breaker.end_interval(&rule, until + secs(5)),
            ProbeResult::Undecided
        );
        // The first probe is sent late and decides nothing; the second one decides.
        let second = send(&mut breaker, &rule, until + secs(5));
        breaker.send_probe(first, until + secs(5));
        let undecided = breaker.end_probe(&rule, (first, true), Some(false));
        assert_eq!(undecided, ProbeResult::Undecided);
        let closed = breaker.end_probe(&rule, (second, true), Some(true));
        assert_eq!(closed, ProbeResult::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_times_are_no_panic() {
        let rule = EjectionRule {
            base: Duration::MAX,
            longest: Duration::MAX,
            ..rule(0.1)
        };
        let now = Instant::now();
        assert!(Breaker::new().eject(&rule, |_| secs(1), now) > now);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_is_readmitted_is_probed_at_once() {
        let rule = rule(0.1);
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.eject(&rule, none, now);
        assert!(matches!(
            breaker.admit(&rule, Ejected::Readmitted, now),
            Admission::Probe(_)
        ));
    }
}
