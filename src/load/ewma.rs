//! The maths of Peak-EWMA, and the few atomics that hold its state.
//!
//! Times are nanoseconds of one clock; levels are seconds.

use super::atomic::{Acquire, AtomicU64, Relaxed, Release};

/// Returns what is left of a level after `idle` without an answer: 1 down to 0.
///
/// `e^(-idle / decay)`, Finagle's weight, up to [`TRIAL_AFTER_SECS`]; from there on it falls with
/// [`TRIAL_DECAY_SECS`] instead, so that no endpoint, however slow it was, waits much longer for a trial.
/// The order of endpoints that are idle for the same time stays as it was.
pub(super) fn retained(idle_secs: f64, decay_secs: f64) -> f64 {
    let over = (idle_secs - TRIAL_AFTER_SECS).max(0.0);
    let exponent = idle_secs / decay_secs + over / TRIAL_DECAY_SECS;
    if exponent < SMALL_EXPONENT {
        // 1 - x + x^2/2 is e^-x to within x^3/6, below 2e-10 here, at a tenth of the cost.
        1.0 - exponent + exponent * exponent / 2.0
    } else {
        (-exponent).exp()
    }
}

/// Returns the level after an answer that took `rtt_secs`, `idle_secs` after the one before.
///
/// A slower answer is a peak and counts at once; a faster one pulls the level down as time passes:
/// `rtt + (level - rtt) * retained`.
pub(super) fn observe(level: f64, rtt_secs: f64, idle_secs: f64, decay_secs: f64) -> f64 {
    if rtt_secs >= level {
        rtt_secs
    } else {
        rtt_secs + (level - rtt_secs) * retained(idle_secs, decay_secs)
    }
}

/// Returns the level that `cancelled` requests in a row stand for, in which `seen_secs` passed in all.
///
/// Each of them is a censored sample: it took longer than it was waited for. If the mean latency were
/// `m`, the time seen without one answer would exceed `k * m` with probability `e^-k`. One alone, a caller
/// that lost patience, says nothing; `k` of them raise the level to the time that the others were waited for.
pub(super) fn censored(cancelled: u32, seen_secs: f64, penalty_secs: f64) -> f64 {
    if cancelled < 2 {
        return 0.0;
    }
    let mean = seen_secs / f64::from(cancelled);
    (seen_secs - mean).min(mean.max(penalty_secs))
}

/// The latency that an endpoint has shown, as answers and cancellations report it.
#[derive(Debug)]
pub(super) struct Level {
    /// The level at the last answer: bits of an `f64`.
    answered: AtomicU64,
    answered_at: AtomicU64,
    /// The cancellations since the last answer: their number above, the seconds waited (`f32`) below.
    cancelled: AtomicU64,
    cancelled_at: AtomicU64,
}

/// What the owner of a [`Level`] fixes for its life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) decay_secs: f64,
    pub(super) penalty_secs: f64,
}

impl Level {
    pub(super) fn new(default_secs: f64, now: u64) -> Self {
        Self {
            answered: AtomicU64::new(default_secs.to_bits()),
            answered_at: AtomicU64::new(now),
            cancelled: AtomicU64::new(0),
            cancelled_at: AtomicU64::new(0),
        }
    }

    /// Takes a successful answer.
    pub(super) fn succeed(&self, rtt: u64, now: u64, settings: Settings) {
        self.answer(now, |level, idle| {
            observe(level, secs(rtt), idle, settings.decay_secs)
        });
    }

    /// Takes a failed answer, which counts as `penalty_secs` at least.
    pub(super) fn fail(&self, rtt: u64, now: u64, settings: Settings) {
        self.answer(now, |level, _| {
            level.max(secs(rtt)).max(settings.penalty_secs)
        });
    }

    /// Takes a request that was given up after `waited`.
    pub(super) fn cancel(&self, waited: u64, now: u64) {
        self.cancelled_at.store(now, Relaxed);
        let mut word = self.cancelled.load(Relaxed);
        loop {
            let (count, seen) = unpack(word);
            let next = pack(count.saturating_add(1), seen + secs(waited));
            match self
                .cancelled
                .compare_exchange_weak(word, next, Release, Relaxed)
            {
                Ok(_) => return,
                Err(current) => word = current,
            }
        }
    }

    #[inline]
    pub(super) fn read(&self) -> LevelReading {
        // Acquire: who sees a level also sees the time of it, or a later one.
        let answered = f64::from_bits(self.answered.load(Acquire));
        let cancelled = self.cancelled.load(Acquire);
        LevelReading {
            answered,
            answered_at: self.answered_at.load(Relaxed),
            cancelled,
            cancelled_at: self.cancelled_at.load(Relaxed),
        }
    }

    fn answer(&self, now: u64, next: impl Fn(f64, f64) -> f64) {
        let mut bits = self.answered.load(Acquire);
        let then = self.answered_at.load(Relaxed);
        let mut idle = since(now, then);
        // Before the level, so that whoever sees the new level sees a time that is not older.
        self.answered_at.store(now.max(then), Relaxed);
        loop {
            let level = next(f64::from_bits(bits), idle).to_bits();
            // Release; pairs with the Acquire in `faded`. loom: `a_peak_outlives_a_faster_answer`
            match self
                .answered
                .compare_exchange(bits, level, Release, Acquire)
            {
                Ok(_) => break,
                Err(current) => {
                    // A peak that came in between is fresh: this answer's idle time was not its own.
                    // (Bits of positive floats are ordered as the floats are.)
                    if current > bits {
                        idle = 0.0;
                    }
                    bits = current;
                }
            }
        }
        if self.cancelled.load(Relaxed) != 0 {
            self.cancelled.store(0, Relaxed);
        }
    }
}

/// What a [`Level`] holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelReading {
    answered: f64,
    answered_at: u64,
    cancelled: u64,
    cancelled_at: u64,
}

impl LevelReading {
    /// Returns the level without any fading, in seconds.
    #[inline]
    pub(super) fn peak(&self, settings: Settings) -> f64 {
        if self.cancelled == 0 {
            return self.answered;
        }
        self.answered.max(self.censored(settings))
    }

    /// Returns the level as it has faded by `now`, in seconds.
    #[inline]
    pub(super) fn faded(&self, now: u64, settings: Settings) -> f64 {
        let left = |at| retained(since(now, at), settings.decay_secs);
        let answered = self.answered * left(self.answered_at);
        if self.cancelled == 0 {
            return answered;
        }
        answered.max(self.censored(settings) * left(self.cancelled_at))
    }

    #[cold]
    fn censored(&self, settings: Settings) -> f64 {
        let (count, seen) = unpack(self.cancelled);
        censored(count, seen, settings.penalty_secs)
    }
}

const fn pack(count: u32, seen_secs: f64) -> u64 {
    ((count as u64) << 32) | (seen_secs as f32).to_bits() as u64
}

const fn unpack(word: u64) -> (u32, f64) {
    ((word >> 32) as u32, f32::from_bits(word as u32) as f64)
}

/// Returns the seconds from `then` to `now`; 0 where the clock went back.
const fn since(now: u64, then: u64) -> f64 {
    secs(now.saturating_sub(then))
}

const fn secs(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A caller that waits longer than this for a backend to come back has noticed; and one request in five
/// seconds costs a broken endpoint's callers next to nothing.
const TRIAL_AFTER_SECS: f64 = 5.0;

/// Takes a level of a minute below ten milliseconds in 3.5 s.
const TRIAL_DECAY_SECS: f64 = 0.4;

/// Answers less than a thousandth of the decay apart need no exponential.
const SMALL_EXPONENT: f64 = 1e-3;
