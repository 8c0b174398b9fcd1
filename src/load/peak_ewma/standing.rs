//! What counts beside the level: whether an endpoint has answered at all, and whether it fails.
//!
//! Times are in nanoseconds.

use crate::atomic::{Acquire, AtomicU64, Relaxed, Release};

/// The standing of an endpoint, in one word.
///
/// The word is 0 in the usual case: the endpoint has succeeded before, and its last answer was no
/// failure. From the lowest bit up, it holds [`UNTRIED`], [`UNANSWERED`], the number of failures in
/// a row up to four (three bits), and the time of the next trial in ticks of 1 024 ns.
///
/// Failures are kept apart from the level, because a refused connection says nothing about latency.
/// A level takes long to fade, but a server that has restarted is well at once.
#[derive(Debug)]
pub(super) struct Standing(AtomicU64);

/// A reading of a [`Standing`] at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandingReading(u64);

impl Standing {
    /// Returns the standing of an endpoint that has had no request yet.
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(UNTRIED | UNANSWERED))
    }

    /// Resets the standing, while no other thread reads or writes it.
    pub(super) fn reset(&self) {
        self.0.store(UNTRIED | UNANSWERED, Relaxed);
    }

    #[inline]
    pub(super) fn read(&self) -> StandingReading {
        // Acquire; pairs with the Release in `succeed`: a thread that sees the usual standing also
        // sees a level. loom: `loom_an_endpoint_that_has_answered_has_a_level`
        StandingReading(self.0.load(Acquire))
    }

    /// Notes that a request was sent. If it is a trial, the next trial comes after a longer delay.
    #[inline]
    pub(super) fn sent(&self, now: u64) {
        let word = self.0.load(Relaxed);
        if word >> TRIAL_SHIFT != 0 {
            self.try_again(StandingReading(word), now);
        }
    }

    #[cold]
    fn try_again(&self, was: StandingReading, now: u64) {
        if !was.is_penalized(now) {
            let next = was.penalized(was.failures() + 1, now);
            // If this fails, another request is the trial.
            let _ = self.0.compare_exchange(was.0, next.0, Relaxed, Relaxed);
        }
    }

    /// Notes a failure.
    ///
    /// Until the next trial is due, further failures change nothing. So a crash with a hundred
    /// requests in flight counts once, and so do the requests that are sent because nobody else is
    /// left.
    #[cold]
    pub(super) fn fail(&self, now: u64) {
        let mut word = self.0.load(Relaxed);
        while !StandingReading(word).is_penalized(now) {
            let was = StandingReading(word);
            let next = was.penalized(was.failures().max(1), now);
            match self.0.compare_exchange(word, next.0, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    /// Notes an end that shows neither success nor failure.
    #[inline]
    pub(super) fn end_undecided(&self) {
        let fresh = UNTRIED | UNANSWERED;
        if self.0.load(Relaxed) == fresh {
            // If this fails, the endpoint has answered or failed meanwhile.
            let _ = self.0.compare_exchange(fresh, UNANSWERED, Relaxed, Relaxed);
        }
    }

    /// Notes an answer that is neither: the endpoint works, but shows no latency.
    #[inline]
    pub(super) fn answer(&self) {
        let word = self.0.load(Relaxed);
        if word & !UNANSWERED != 0 {
            // If this fails, another end counts.
            let _ = self
                .0
                .compare_exchange(word, word & UNANSWERED, Relaxed, Relaxed);
        }
    }

    /// Returns the word, which is 0 in the usual case.
    #[inline]
    pub(super) fn word(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Notes a success, after its level is stored.
    pub(super) fn succeed(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Release);
        }
    }
}

impl StandingReading {
    /// Returns whether the level alone counts.
    #[inline]
    pub(super) const fn is_usual(self) -> bool {
        self.0 == 0
    }

    /// Returns whether no request has ended or failed yet.
    pub(super) const fn is_untried(self) -> bool {
        self.0 & UNTRIED != 0
    }

    /// Returns whether the endpoint has failed and its next trial is not yet due.
    pub(super) const fn is_penalized(self, now: u64) -> bool {
        now < self.trial_at()
    }

    /// Returns when the next trial is due; 0 if the endpoint has not failed.
    const fn trial_at(self) -> u64 {
        self.0 >> TRIAL_SHIFT << TICK_BITS
    }

    const fn failures(self) -> u64 {
        self.0 >> FAILURES_SHIFT & 7
    }

    /// Returns the standing after so many failures in a row, with the next trial after its delay.
    fn penalized(self, failures: u64, now: u64) -> Self {
        let failures = failures.min(MOST_FAILURES);
        let tick = ((now + delay(failures)) >> TICK_BITS) + 1;
        Self(self.0 & UNANSWERED | failures << FAILURES_SHIFT | tick << TRIAL_SHIFT)
    }
}

/// Returns the time from a failure or trial to the next trial: 1, 2, 4, then 5 s.
fn delay(failures: u64) -> u64 {
    (FIRST_DELAY << (failures - 1)).min(LONGEST_DELAY)
}

/// A server that restarts is away for a second or less. The trial costs one request.
const FIRST_DELAY: u64 = 1_000_000_000;

/// One request in five seconds costs the callers of a broken endpoint next to nothing.
const LONGEST_DELAY: u64 = 5_000_000_000;

/// No request has ended. The endpoint gets one, whatever the others cost.
const UNTRIED: u64 = 1;

/// No request has succeeded, so there is no level.
const UNANSWERED: u64 = 2;

const FAILURES_SHIFT: u32 = 2;
/// The fourth and each later delay is the longest.
const MOST_FAILURES: u64 = 4;
const TRIAL_SHIFT: u32 = FAILURES_SHIFT + 3;
const TICK_BITS: u32 = 10;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn penalized_for(standing: &Standing, now: u64) -> u64 {
        standing.read().trial_at().saturating_sub(now) / 1_000_000
    }

    #[test]
    fn trials_come_after_one_two_four_and_then_every_five_seconds() {
        let standing = Standing::new();
        let mut now = SECOND;
        standing.fail(now);
        for millis in [1000, 2000, 4000, 5000, 5000] {
            assert_eq!(penalized_for(&standing, now), millis);
            standing.fail(now + 1);
            assert_eq!(penalized_for(&standing, now), millis, "the same failure");
            assert!(standing.read().is_penalized(now + (millis - 1) * 1_000_000));
            now += (millis + 1) * 1_000_000;
            assert!(!standing.read().is_penalized(now));
            standing.sent(now);
            standing.sent(now);
            standing.fail(now);
        }
        standing.succeed();
        assert!(standing.read().is_usual());
        standing.fail(now);
        assert_eq!(penalized_for(&standing, now), 1000, "forgotten");
    }

    #[test]
    fn a_trial_that_fails_late_is_followed_by_a_pause_as_well() {
        let standing = Standing::new();
        standing.fail(0);
        standing.sent(2 * SECOND);
        standing.fail(9 * SECOND);
        assert_eq!(penalized_for(&standing, 9 * SECOND), 2000);
    }

    #[test]
    fn an_endpoint_that_only_fails_never_has_a_level() {
        let standing = Standing::new();
        assert!(standing.read().is_untried());
        standing.fail(0);
        standing.sent(2 * SECOND);
        assert!(!standing.read().is_untried());
        assert_eq!(standing.read().0 & UNANSWERED, UNANSWERED);
    }
}
