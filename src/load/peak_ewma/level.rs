//! The maths of Peak-EWMA and the atomics that hold its state.
//!
//! A level is a latency that an endpoint has shown. Levels and times are in nanoseconds, and all
//! times are of one clock.

use std::time::Duration;

use super::standing::Standing;
use crate::atomic::{Acquire, AtomicU64, Relaxed, Release};

/// The settings that the owner of a [`Level`] uses with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct EwmaSettings {
    pub(super) decay: u64,
    pub(super) penalty: u64,
    /// The level of an endpoint that has not succeeded yet.
    pub(super) default: u64,
}

impl EwmaSettings {
    pub(super) fn new(decay: Duration, penalty: Duration, default_rtt: Duration) -> Self {
        Self {
            decay: nanos(decay),
            penalty: nanos(penalty),
            default: nanos(default_rtt),
        }
    }

    /// Returns the fraction of a level that is left after `idle` without an answer: 1 down to 0.
    ///
    /// Up to [`TRIAL_AFTER`] it is `e^(-idle / decay)`, Finagle's weight. After that it falls with
    /// [`TRIAL_DECAY`] as well, so even a very slow endpoint does not wait much longer for a trial.
    /// Endpoints that are idle for the same time keep their order.
    pub(super) fn retained(self, idle: u64) -> f64 {
        let exponent = -float(idle) / float(self.decay);
        match idle.checked_sub(TRIAL_AFTER) {
            None => exponent.exp(),
            Some(over) => (exponent - float(over) / TRIAL_DECAY).exp(),
        }
    }

    /// Returns the level after an answer that took `rtt`, `idle` after the previous one.
    ///
    /// A slower answer is a peak and counts at once. A faster one pulls the level down, the further
    /// the longer the idle time: `rtt + (level - rtt) * retained`.
    pub(super) fn observe(self, level: u64, rtt: u64, idle: u64) -> u64 {
        match level.checked_sub(rtt) {
            None => rtt,
            Some(above) => rtt + (float(above) * self.retained(idle)).round() as u64,
        }
    }

    /// Returns the packed state of a row of cancellations after one more, see [`pack`].
    ///
    /// The level that the row stands for never falls.
    ///
    /// Each cancellation is a censored sample: the request took longer than the caller waited. If
    /// the mean latency were `m`, the total wait without an answer would exceed `k * m` with
    /// probability `e^-k`. A single cancellation says nothing, because it may be a caller that lost
    /// patience. A row of `k` stands for `k - 1` times the mean wait. No cancellation raises that
    /// beyond the penalty or its own wait, whichever is longer.
    fn cancelled(self, word: u64, waited: u64) -> u64 {
        let (count, stood) = unpack(word);
        let others = u64::from(count.saturating_sub(1));
        // The total wait so far. The row stands for all but one of its waits, so the mean is added
        // once.
        let seen = stood.checked_div(others).map_or(stood, |mean| stood + mean);
        let seen = seen.saturating_add(waited);
        let raised = match count {
            0 => waited,
            _ => {
                let raised = seen - seen / u64::from(count + 1);
                let before = if count == 1 { 0 } else { stood };
                raised.min(waited.max(self.penalty)).max(before)
            }
        };
        pack(count.saturating_add(1), raised)
    }

    /// Returns what is left at `now` of a level that was measured at `then`.
    #[cold]
    #[inline(never)]
    fn faded(self, then: u64, now: u64, level: u64) -> u64 {
        (float(level) * self.retained(now.saturating_sub(then))) as u64
    }

    /// Returns whether `idle` is too short to change a level by more than a thousandth.
    #[inline]
    const fn is_short(self, idle: u64) -> bool {
        idle < self.decay / 1024
    }
}

/// The latency that an endpoint has shown through its answers and cancellations.
#[derive(Debug)]
pub(super) struct Level {
    /// The level at the last success. 0 before the first, but the standing tells whether there was
    /// one.
    answered: AtomicU64,
    answered_at: AtomicU64,
    /// The cancellations since the last answer: how many, and what they stand for, see [`pack`].
    cancelled: AtomicU64,
    cancelled_at: AtomicU64,
}

impl Level {
    pub(super) fn new(now: u64) -> Self {
        Self {
            answered: AtomicU64::new(0),
            answered_at: AtomicU64::new(now),
            cancelled: AtomicU64::new(0),
            cancelled_at: AtomicU64::new(0),
        }
    }

    /// Resets the level, while no other thread reads or writes it.
    pub(super) fn reset(&self, now: u64) {
        self.answered.store(0, Relaxed);
        self.answered_at.store(now, Relaxed);
        self.cancelled.store(0, Relaxed);
        self.cancelled_at.store(0, Relaxed);
    }

    /// Records a successful answer, also in the standing. The first one is the level.
    ///
    /// Answers within a thousandth of the decay share one weight. All but the first of them count
    /// only if they are peaks, which saves the compare-and-swap under load.
    #[inline]
    pub(super) fn succeed(&self, rtt: u64, now: u64, settings: EwmaSettings, standing: &Standing) {
        let level = self.answered.load(Relaxed);
        let idle = now.saturating_sub(self.answered_at.load(Relaxed));
        let is_usual = self.cancelled.load(Relaxed) | standing.word() == 0;
        if rtt > level || !settings.is_short(idle) || !is_usual {
            self.answer(now, |level, idle| settings.observe(level, rtt, idle));
            standing.succeed();
        }
    }

    /// Records an answer that tells nothing about the latency.
    ///
    /// The endpoint is in use, so its level does not fade as that of an idle one does.
    #[inline]
    pub(super) fn stay(&self, now: u64, settings: EwmaSettings) {
        let then = self.answered_at.load(Relaxed);
        if !settings.is_short(now.saturating_sub(then)) {
            self.answered_at.store(now, Relaxed);
        }
        self.end_row();
    }

    /// Records a request that its caller gave up after `waited`.
    #[cold]
    pub(super) fn cancel(&self, waited: u64, now: u64, settings: EwmaSettings) {
        self.cancelled_at.store(now, Relaxed);
        let mut word = self.cancelled.load(Relaxed);
        loop {
            let next = settings.cancelled(word, waited);
            match self
                .cancelled
                .compare_exchange_weak(word, next, Release, Relaxed)
            {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    /// Returns `n` such that `2^n` ns is an eighth to a quarter of the level.
    #[inline]
    pub(super) fn log2_quarter(&self, default: impl Fn() -> u64) -> u32 {
        let level = match self.answered.load(Relaxed) {
            0 => default(),
            level => level,
        };
        level.max(4).ilog2() - 2
    }

    #[inline]
    pub(super) fn read(&self) -> LevelReading {
        // Acquire; pairs with the Release in `answer` and in `cancel`: a thread that sees a level
        // also sees its time or a later one. loom: `loom_a_level_is_never_read_with_an_older_time`
        let answered = self.answered.load(Acquire);
        let cancelled = self.cancelled.load(Acquire);
        LevelReading {
            answered,
            answered_at: self.answered_at.load(Relaxed),
            cancelled,
            cancelled_at: self.cancelled_at.load(Relaxed),
        }
    }

    #[cold]
    fn answer(&self, now: u64, next: impl Fn(u64, u64) -> u64) {
        let mut level = self.answered.load(Acquire);
        let then = self.answered_at.load(Relaxed);
        let mut idle = now.saturating_sub(then);
        // Stored before the level, so that a thread which sees the new level does not see an older
        // time.
        self.answered_at.store(now.max(then), Relaxed);
        loop {
            // Release; pairs with the Acquire in `read`. loom:
            // `loom_a_peak_outlives_a_faster_answer`
            let next = next(level, idle);
            match self
                .answered
                .compare_exchange(level, next, Release, Acquire)
            {
                Ok(_) => break,
                Err(current) => {
                    // A peak that came in between is fresh, so this answer's idle time does not
                    // apply to it.
                    if current > level {
                        idle = 0;
                    }
                    level = current;
                }
            }
        }
        self.end_row();
    }

    /// Forgets the cancellations, because the endpoint has answered.
    #[inline]
    pub(super) fn end_row(&self) {
        if self.cancelled.load(Relaxed) != 0 {
            self.cancelled.store(0, Relaxed);
        }
    }
}

/// A reading of a [`Level`] at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelReading {
    answered: u64,
    answered_at: u64,
    cancelled: u64,
    cancelled_at: u64,
}

impl LevelReading {
    /// Returns the same reading, with a level if there is none.
    pub(super) const fn or(self, default: u64) -> Self {
        match self.answered {
            0 => Self {
                answered: default,
                ..self
            },
            _ => self,
        }
    }

    /// Returns the level without any fading.
    #[inline]
    pub(super) fn peak(self) -> u64 {
        self.answered.max(censored(self.cancelled))
    }

    /// Returns when the last answer or cancellation came.
    ///
    /// The result is too early by at most a thousandth of the decay.
    #[inline]
    pub(super) fn latest(self) -> u64 {
        self.answered_at.max(self.cancelled_at)
    }

    /// Returns the level, faded until `now`.
    #[inline]
    pub(super) fn faded(self, now: u64, settings: EwmaSettings) -> u64 {
        let idle = now.saturating_sub(self.answered_at);
        let answered = if settings.is_short(idle) {
            self.answered
        } else {
            settings.faded(self.answered_at, now, self.answered)
        };
        if self.cancelled == 0 {
            return answered;
        }
        answered.max(settings.faded(self.cancelled_at, now, censored(self.cancelled)))
    }
}

/// Packs a row of cancellations: how many, up to a million, and what they stand for, up to 208
/// days.
///
/// For a single cancellation the second number is its wait.
const fn pack(count: u32, stood: u64) -> u64 {
    let most = (1 << STOOD_BITS) - 1;
    let stood = stood >> STOOD_TICK_BITS;
    let count = if count < MOST_CANCELLED {
        count
    } else {
        MOST_CANCELLED
    };
    (count as u64) << STOOD_BITS | if stood < most { stood } else { most }
}

const fn unpack(word: u64) -> (u32, u64) {
    let stood = word & ((1 << STOOD_BITS) - 1);
    ((word >> STOOD_BITS) as u32, stood << STOOD_TICK_BITS)
}

/// Returns the level that a row of cancellations stands for; 0 for a single one.
#[inline]
const fn censored(word: u64) -> u64 {
    match unpack(word) {
        (0 | 1, _) => 0,
        (_, stood) => stood,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos())
        .unwrap_or(u64::MAX)
        .min(MOST_NANOS)
}

/// Converts nanoseconds to a float. They must be fewer than 292 years.
#[inline]
const fn float(nanos: u64) -> f64 {
    // A signed conversion is one instruction, an unsigned one is five.
    nanos as i64 as f64
}

/// In ns. A caller that waits longer than this for a backend to come back notices. One request in
/// five seconds costs the callers of a broken endpoint next to nothing.
const TRIAL_AFTER: u64 = 5_000_000_000;

/// In ns. A level of one minute falls below ten milliseconds within 3.5 s.
const TRIAL_DECAY: f64 = 4e8;

/// A century. The sum of two settings does not overflow.
const MOST_NANOS: u64 = 100 * 365 * 24 * 3600 * 1_000_000_000;

const STOOD_BITS: u32 = 44;
const STOOD_TICK_BITS: u32 = 10;
const MOST_CANCELLED: u32 = (1 << (64 - STOOD_BITS)) - 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_cancellation_lowers_what_a_row_stands_for(
            waits in prop::collection::vec(0..MOST_NANOS >> 8, 1..40),
            short in 0_u32..40,
            penalty in 1..MOST_NANOS,
        ) {
            let settings = EwmaSettings { decay: 1, penalty, default: 1 };
            let mut word = 0;
            for wait in waits {
                let wait = wait >> short;
                let before = censored(word);
                word = settings.cancelled(word, wait);
                prop_assert!(censored(word) >= before, "{} after {before}", censored(word));
                prop_assert!(censored(word) <= before.max(wait.max(penalty)));
            }
        }
    }

    #[test]
    fn so_many_cancellations_that_their_number_is_at_its_end_stand_for_no_less() {
        let settings = EwmaSettings {
            decay: 1,
            penalty: 1 << 30,
            default: 1,
        };
        let word = pack(MOST_CANCELLED, 1 << 30);
        assert_eq!(settings.cancelled(word, 1 << 20), word);
        let word = settings.cancelled(word, MOST_NANOS);
        assert_eq!(unpack(word).0, MOST_CANCELLED);
        assert!(censored(word) > 1 << 30);
    }
}
