//! The maths of Peak-EWMA, and the few atomics that hold its state.
//!
//! Times are nanoseconds of one clock, and so are levels: latencies that endpoints have shown.

use std::time::Duration;

use crate::atomic::{Acquire, AtomicU64, Relaxed, Release};

/// What the owner of a [`Level`] fixes for its life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) decay: u64,
    pub(super) penalty: u64,
}

impl Settings {
    pub(super) fn new(decay: Duration, penalty: Duration) -> Self {
        Self {
            decay: nanos(decay),
            penalty: nanos(penalty),
        }
    }

    /// Returns what is left of a level after `idle` without an answer: 1 down to 0.
    ///
    /// `e^(-idle / decay)`, Finagle's weight, up to [`TRIAL_AFTER`]; from there on it falls with
    /// [`TRIAL_DECAY`] instead, so that no endpoint, however slow it was, waits much longer for a trial.
    /// The order of endpoints that are idle for the same time stays as it was.
    pub(super) fn retained(self, idle: u64) -> f64 {
        let exponent = -float(idle) / float(self.decay);
        match idle.checked_sub(TRIAL_AFTER) {
            None => exponent.exp(),
            Some(over) => (exponent - float(over) / TRIAL_DECAY).exp(),
        }
    }

    /// Returns the level after an answer that took `rtt`, `idle` after the one before.
    ///
    /// A slower answer is a peak and counts at once; a faster one pulls the level down as time passes:
    /// `rtt + (level - rtt) * retained`.
    pub(super) fn observe(self, level: u64, rtt: u64, idle: u64) -> u64 {
        match level.checked_sub(rtt) {
            None => rtt,
            Some(above) => rtt + (float(above) * self.retained(idle)).round() as u64,
        }
    }

    /// Returns what a row of cancellations stands for after one more, see [`pack`]; never less than before.
    ///
    /// Each is a censored sample: it took longer than it was waited for. If the mean latency were `m`, the
    /// time waited without one answer would exceed `k * m` with probability `e^-k`. One alone, a
    /// caller that lost patience, says nothing; of several, all but one count the time that each was
    /// waited for on average. None raises that beyond the penalty, or the time that it was waited for itself.
    fn cancelled(self, word: u64, waited: u64) -> u64 {
        let (count, stood) = unpack(word);
        let others = u64::from(count.saturating_sub(1));
        // What all have waited, of which the mean counts for one.
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

    /// Returns what is left at `now` of a level at `then`.
    #[cold]
    #[inline(never)]
    fn faded(self, then: u64, now: u64, level: u64) -> u64 {
        (float(level) * self.retained(now.saturating_sub(then))) as u64
    }

    /// Returns whether so short a pause leaves a level as it is, to within a thousandth.
    #[inline]
    const fn is_short(self, idle: u64) -> bool {
        idle < self.decay / 1024
    }
}

/// The latency that an endpoint has shown, as answers and cancellations report it.
#[derive(Debug)]
pub(super) struct Level {
    /// The level at the last answer.
    answered: AtomicU64,
    answered_at: AtomicU64,
    /// The cancellations since the last answer: their number and what they stand for, see [`pack`].
    cancelled: AtomicU64,
    cancelled_at: AtomicU64,
}

impl Level {
    pub(super) fn new(default: Duration, now: u64) -> Self {
        Self {
            answered: AtomicU64::new(nanos(default)),
            answered_at: AtomicU64::new(now),
            cancelled: AtomicU64::new(0),
            cancelled_at: AtomicU64::new(0),
        }
    }

    /// Starts anew, while nobody else reads or writes.
    pub(super) fn reset(&self, default: Duration, now: u64) {
        self.answered.store(nanos(default), Relaxed);
        self.answered_at.store(now, Relaxed);
        self.cancelled.store(0, Relaxed);
        self.cancelled_at.store(0, Relaxed);
    }

    /// Takes a successful answer.
    ///
    /// Answers that come within a thousandth of the decay share one weight: all but the first of them count
    /// only as peaks, which spares the swap under load.
    #[inline]
    pub(super) fn succeed(&self, rtt: u64, now: u64, settings: Settings) {
        let level = self.answered.load(Relaxed);
        let idle = now.saturating_sub(self.answered_at.load(Relaxed));
        if rtt > level || !settings.is_short(idle) || self.cancelled.load(Relaxed) != 0 {
            self.answer(now, |level, idle| settings.observe(level, rtt, idle));
        }
    }

    /// Takes a failed answer, which counts as the penalty at least.
    #[cold]
    pub(super) fn fail(&self, rtt: u64, now: u64, settings: Settings) {
        self.answer(now, |level, _| level.max(rtt).max(settings.penalty));
    }

    /// Takes a request that was given up after `waited`.
    #[cold]
    pub(super) fn cancel(&self, waited: u64, now: u64, settings: Settings) {
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

    /// Returns a power of two of about a quarter of the level: by its exponent.
    #[inline]
    pub(super) fn log2_quarter(&self) -> u32 {
        self.answered.load(Relaxed).max(4).ilog2() - 2
    }

    #[inline]
    pub(super) fn read(&self) -> LevelReading {
        // Acquire: who sees a level also sees the time of it, or a later one.
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
        // Before the level, so that whoever sees the new level sees a time that is not older.
        self.answered_at.store(now.max(then), Relaxed);
        loop {
            // Release; pairs with the Acquire in `read`. loom: `loom_a_peak_outlives_a_faster_answer`
            let next = next(level, idle);
            match self
                .answered
                .compare_exchange(level, next, Release, Acquire)
            {
                Ok(_) => break,
                Err(current) => {
                    // A peak that came in between is fresh: this answer's idle time was not its own.
                    if current > level {
                        idle = 0;
                    }
                    level = current;
                }
            }
        }
        self.end_row();
    }

    /// Forgets the cancellations: the endpoint has answered.
    #[inline]
    pub(super) fn end_row(&self) {
        if self.cancelled.load(Relaxed) != 0 {
            self.cancelled.store(0, Relaxed);
        }
    }
}

/// What a [`Level`] holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelReading {
    answered: u64,
    answered_at: u64,
    cancelled: u64,
    cancelled_at: u64,
}

impl LevelReading {
    /// Returns the level without any fading.
    #[inline]
    pub(super) fn peak(self) -> u64 {
        self.answered.max(censored(self.cancelled))
    }

    /// Returns when the last answer or cancellation came, less a thousandth of the decay at most.
    #[inline]
    pub(super) fn latest(self) -> u64 {
        self.answered_at.max(self.cancelled_at)
    }

    /// Returns the level as it has faded by `now`.
    #[inline]
    pub(super) fn faded(self, now: u64, settings: Settings) -> u64 {
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

/// Packs a number of cancellations, up to a million, and what they stand for, up to 208 days; of a single one,
/// what it was waited for.
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

/// Returns the level that a row of cancellations stands for: none if it is one alone.
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

/// Converts nanoseconds, fewer than 292 years of them.
#[inline]
const fn float(nanos: u64) -> f64 {
    // Signed conversion is one instruction, unsigned five.
    nanos as i64 as f64
}

/// A caller that waits longer than this for a backend to come back has noticed; and one request in five
/// seconds costs a broken endpoint's callers next to nothing. In ns.
const TRIAL_AFTER: u64 = 5_000_000_000;

/// Takes a level of a minute below ten milliseconds in 3.5 s. In ns.
const TRIAL_DECAY: f64 = 4e8;

/// A century: no sum of two settings overflows.
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
            let settings = Settings { decay: 1, penalty };
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
        let settings = Settings {
            decay: 1,
            penalty: 1 << 30,
        };
        let word = pack(MOST_CANCELLED, 1 << 30);
        assert_eq!(settings.cancelled(word, 1 << 20), word);
        let word = settings.cancelled(word, MOST_NANOS);
        assert_eq!(unpack(word).0, MOST_CANCELLED);
        assert!(censored(word) > 1 << 30);
    }
}
