use std::time::Duration;

use tokio::time::Instant;

/// For how long, and how many at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) base: Duration,
    pub(super) longest: Duration,
    pub(super) jitter: Duration,
    pub(super) max_ejected: f64,
    pub(super) probes: u32,
}

/// Whether requests go through to one endpoint.
///
/// ```text
///              a verdict                    its time is over
///  closed  ------------------>   open   ------------------------>  half-open
///     ^                           ^                                 |  |
///     |                           +---------- a probe failed -------+  |
///     +---------------------------------- all probes succeeded --------+
/// ```
///
/// A probe that ends undecided gives its slot back, and so does one that was reserved and is not sent within
/// [`RESERVED_FOR`]. One that has not ended after the longest ejection counts as failed, unless the head of its answer has come:
/// then it is a stream, and the endpoint is well. No state lasts for ever.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// How many ejections the next one follows; falls by one with each quiet interval.
    times: u32,
    /// In the interval that is under way.
    was_ejected: bool,
    /// Tells the probes of one half-open time from those of another.
    round: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        /// Probes that are to be sent, and since when none has been added.
        reserved: u32,
        reserved_at: Instant,
        /// Probes under way, and since when none has been added.
        sent: u32,
        sent_at: Instant,
        /// Whether the head of a probe's answer has come, and left it to the rest.
        is_answered: bool,
        succeeded: u32,
    },
}

/// What others say of an endpoint that was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Ejected,
    /// The balancer sends it requests all the same: nobody better is there.
    Revived,
    /// Somebody else has ended the ejection.
    Readmitted,
}

/// What a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Nothing.
    Through,
    /// It decides, with its outcome: the number of the round that it is a probe of.
    Probe(u64),
    /// It is ejected, or all probes are under way.
    Wait,
}

/// What the outcome of a probe leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Other probes are to decide.
    Undecided,
    Closed,
    /// It is to be ejected again.
    Failed,
}

impl Rule {
    /// Returns how many of so many endpoints may be ejected at once: the share, rounded down, but one of two or more,
    /// and never all.
    pub(super) fn most_ejected(&self, endpoints: usize) -> usize {
        // A third of three is one, whatever the rounding.
        let share = (endpoints as f64 * self.max_ejected + 1e-9) as usize;
        share.max(1).min(endpoints.saturating_sub(1))
    }

    /// Returns the length of an ejection that follows `times` others: `base * (times + 1)`, at most the longest.
    ///
    /// Source: Envoy, outlier detection; gRFC A50.
    fn length(&self, times: u32) -> Duration {
        let length = self.base.checked_mul(times.saturating_add(1));
        length.map_or(self.longest, |length| length.min(self.longest))
    }
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

    /// Returns whether a verdict counts now: once an interval, and not while it is ejected.
    pub(super) fn may_be_ejected(&self) -> bool {
        self.is_closed() && !self.was_ejected
    }

    /// Ejects, for as long as it is its turn for, plus the `jitter`; returns until when.
    pub(super) fn eject(&mut self, rule: &Rule, jitter: Duration, now: Instant) -> Instant {
        let length = rule.length(self.times).saturating_add(jitter);
        // A clock's end is far away: thirty years are for ever.
        let until = now
            .checked_add(length)
            .unwrap_or(now + Duration::from_secs(1_000_000_000));
        self.state = State::Open { until };
        // However often probes fail in an interval, it counts once.
        if !self.was_ejected && rule.length(self.times) < rule.longest {
            self.times += 1;
        }
        self.was_ejected = true;
        self.round += 1;
        until
    }

    /// Closes without a probe: there is nobody else.
    pub(super) const fn close(&mut self) {
        self.state = State::Closed;
        self.round += 1;
    }

    /// Admits a request.
    pub(super) fn admit(&mut self, rule: &Rule, standing: Standing, now: Instant) -> Admission {
        if let State::Open { until } = self.state {
            match standing {
                Standing::Readmitted => {}
                _ if now >= until => {}
                Standing::Ejected => return Admission::Wait,
                Standing::Revived => return Admission::Through,
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

    /// Takes note that a reserved probe is sent.
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

    /// Takes note that the head of a probe's answer has come, and that the rest is to decide.
    pub(super) fn answer_probe(&mut self, round: u64) {
        if let State::HalfOpen { is_answered, .. } = &mut self.state {
            *is_answered |= self.round == round;
        }
    }

    /// Takes the end of a probe: whether it was sent, and whether it succeeded, if it says so.
    pub(super) const fn end_probe(
        &mut self,
        rule: &Rule,
        (round, is_sent): (u64, bool),
        success: Option<bool>,
    ) -> Verdict {
        let State::HalfOpen {
            reserved,
            sent,
            succeeded,
            ..
        } = &mut self.state
        else {
            return Verdict::Undecided;
        };
        if self.round != round {
            return Verdict::Undecided;
        }
        *(if is_sent { sent } else { reserved }) -= 1;
        match success {
            None => Verdict::Undecided,
            Some(false) => Verdict::Failed,
            Some(true) => {
                *succeeded += 1;
                if *succeeded < rule.probes {
                    return Verdict::Undecided;
                }
                self.close();
                Verdict::Closed
            }
        }
    }

    /// Returns whether the endpoint is kept from requests: not where its time is over and nobody has asked for it.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => false,
            State::Open { until } => now < until,
            State::HalfOpen { reserved, sent, .. } => reserved + sent > 0,
        }
    }

    /// Ends an interval; says what becomes of a probe that has been under way for too long.
    pub(super) fn end_interval(&mut self, rule: &Rule, now: Instant) -> Verdict {
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
            return Verdict::Undecided;
        };
        if *reserved > 0
            && *sent == 0
            && now.saturating_duration_since(*reserved_at) >= RESERVED_FOR
        {
            // Who holds them sends something else, if anything: their outcomes are of another round.
            *reserved = 0;
            self.round += 1;
            return Verdict::Undecided;
        }
        if *sent == 0 || now.saturating_duration_since(*sent_at) < rule.longest {
            return Verdict::Undecided;
        }
        if *is_answered {
            self.close();
            return Verdict::Closed;
        }
        Verdict::Failed
    }
}

/// A caller that is ready calls at once, as a rule.
const RESERVED_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(max_ejected: f64) -> Rule {
        Rule {
            base: secs(30),
            longest: secs(300),
            jitter: Duration::ZERO,
            max_ejected,
            probes: 1,
        }
    }

    /// Sends a probe, which must be due; returns its round.
    fn send(breaker: &mut Breaker, rule: &Rule, now: Instant) -> u64 {
        let Admission::Probe(round) = breaker.admit(rule, Standing::Ejected, now) else {
            panic!("a probe is due");
        };
        breaker.send_probe(round, now);
        round
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn so_many_may_be_ejected_at_once() {
        let table = [
            (0, [0, 0, 0, 0]),
            (1, [0, 0, 0, 0]),
            (2, [1, 1, 1, 1]),
            (3, [1, 1, 1, 2]),
            (5, [1, 1, 2, 4]),
            (10, [1, 3, 5, 9]),
            (11, [1, 3, 5, 10]),
            (20, [2, 6, 10, 19]),
            (25, [2, 7, 12, 24]),
        ];
        for (endpoints, most) in table {
            let shares = [0.1, 0.3, 0.5, 1.0].map(|share| rule(share).most_ejected(endpoints));
            assert_eq!(shares, most, "of {endpoints}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_grow_and_quiet_intervals_shorten_them() {
        let rule = rule(0.1);
        let mut breaker = Breaker::new();
        let mut now = Instant::now();
        for length in [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300] {
            assert_eq!(
                breaker.eject(&rule, Duration::ZERO, now),
                now + secs(length)
            );
            now += secs(length);
            assert_eq!(breaker.end_interval(&rule, now), Verdict::Undecided);
        }
        // Half-open, and back: only then are intervals quiet.
        let round = send(&mut breaker, &rule, now);
        assert_eq!(
            breaker.end_probe(&rule, (round, true), Some(true)),
            Verdict::Closed
        );
        for _ in 0..7 {
            breaker.end_interval(&rule, now);
        }
        assert_eq!(breaker.eject(&rule, Duration::ZERO, now), now + secs(90));
    }

    #[tokio::test(start_paused = true)]
    async fn probes_decide_by_their_own_outcomes() {
        let rule = Rule {
            probes: 2,
            ..rule(0.1)
        };
        let start = Instant::now();
        let mut breaker = Breaker::new();
        let until = breaker.eject(&rule, Duration::ZERO, start);
        let just_before = until - Duration::from_millis(1);
        for (standing, admission) in [
            (Standing::Ejected, Admission::Wait),
            (Standing::Revived, Admission::Through),
        ] {
            assert_eq!(breaker.admit(&rule, standing, just_before), admission);
        }
        // Two at once and no more; one given back is given out again.
        let round = send(&mut breaker, &rule, until);
        assert_eq!(send(&mut breaker, &rule, until), round);
        let admit = |breaker: &mut Breaker| breaker.admit(&rule, Standing::Ejected, until);
        assert_eq!(admit(&mut breaker), Admission::Wait);
        assert_eq!(
            breaker.end_probe(&rule, (round, true), None),
            Verdict::Undecided
        );
        assert_eq!(send(&mut breaker, &rule, until), round);
        // Of another round, says nothing.
        assert_eq!(
            breaker.end_probe(&rule, (round - 1, true), Some(false)),
            Verdict::Undecided
        );
        // One success is not enough, and takes no further probe than the second.
        assert_eq!(
            breaker.end_probe(&rule, (round, true), Some(true)),
            Verdict::Undecided
        );
        assert_eq!(admit(&mut breaker), Admission::Wait);
        assert_eq!(
            breaker.end_probe(&rule, (round, true), Some(false)),
            Verdict::Failed
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_never_ends_fails_in_the_end_unless_it_is_answered() {
        let rule = rule(0.1);
        for (is_answered, verdict) in [(false, Verdict::Failed), (true, Verdict::Closed)] {
            let mut breaker = Breaker::new();
            let until = breaker.eject(&rule, Duration::ZERO, Instant::now());
            let round = send(&mut breaker, &rule, until);
            breaker.answer_probe(round - 1);
            if is_answered {
                breaker.answer_probe(round);
            }
            let mut after = |time| breaker.end_interval(&rule, until + secs(time));
            assert_eq!(after(299), Verdict::Undecided);
            assert_eq!(after(300), verdict);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_reserved_and_not_sent_is_taken_back() {
        let rule = rule(0.1);
        let mut breaker = Breaker::new();
        let until = breaker.eject(&rule, Duration::ZERO, Instant::now());
        let admit = |breaker: &mut Breaker, now| breaker.admit(&rule, Standing::Ejected, now);
        let Admission::Probe(first) = admit(&mut breaker, until) else {
            panic!("a probe is due");
        };
        assert_eq!(
            breaker.end_interval(&rule, until + secs(4)),
            Verdict::Undecided
        );
        assert_eq!(admit(&mut breaker, until + secs(4)), Admission::Wait);
        assert_eq!(
            breaker.end_interval(&rule, until + secs(5)),
            Verdict::Undecided
        );
        // The first one, sent late, decides nothing; the next one does.
        let second = send(&mut breaker, &rule, until + secs(5));
        breaker.send_probe(first, until + secs(5));
        let undecided = breaker.end_probe(&rule, (first, true), Some(false));
        assert_eq!(undecided, Verdict::Undecided);
        let closed = breaker.end_probe(&rule, (second, true), Some(true));
        assert_eq!(closed, Verdict::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_times_are_no_panic() {
        let rule = Rule {
            base: Duration::MAX,
            longest: Duration::MAX,
            ..rule(0.1)
        };
        let now = Instant::now();
        assert!(Breaker::new().eject(&rule, secs(1), now) > now);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_readmitted_is_probed_at_once() {
        let rule = rule(0.1);
        let now = Instant::now();
        let mut breaker = Breaker::new();
        breaker.eject(&rule, Duration::ZERO, now);
        assert!(matches!(
            breaker.admit(&rule, Standing::Readmitted, now),
            Admission::Probe(_)
        ));
    }
}
