//! Reads the clock for requests, picks and windows.

use std::{cell::Cell, sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// The time of one pick, the same for all loads of a kind that it compares.
///
/// For [`PeakEwma`](crate::PeakEwma) it is the latest start or end of a request that this thread or
/// one of those loads knows of. Reading the clock instead would cost half as much as the rest of
/// the pick. A thread's first pick after a pause may therefore use a time from before the pause.
/// For [`Reported`](crate::report::Reported) the clock is read.
#[derive(Debug)]
pub struct PickClock {
    /// The latest known moment, in ns.
    known: Cell<u64>,
    /// The time that was read from the clock, in ns; 0 if it has not been read.
    read: Cell<u64>,
}

impl PickClock {
    /// Starts a pick with the latest time that this thread knows.
    #[inline]
    #[must_use]
    pub fn new() -> Self {
        Self {
            known: Cell::new(last()),
            read: Cell::new(0),
        }
    }

    /// Advances the known time to a moment, in ns, unless it is later already.
    #[inline]
    pub(crate) fn advance_to(&self, nanos: u64) {
        self.known.set(self.known.get().max(nanos));
    }

    /// Returns the latest known moment, in ns.
    #[inline]
    pub(crate) fn known(&self) -> u64 {
        self.known.get()
    }

    /// Returns the time in ns. Reads the clock at the first call only.
    #[inline]
    pub(crate) fn nanos(&self) -> u64 {
        if self.read.get() == 0 {
            self.read.set(now());
        }
        self.read.get()
    }
}

impl Default for PickClock {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    /// The time that this thread last read, for a request's start or end.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

// Not inlined into the picks, because the access to the thread-local would then not be inlined.
#[inline(never)]
fn last() -> u64 {
    LAST.get()
}

/// Reads the clock for the start or the end of a request.
#[inline]
pub(crate) fn now_at_event() -> u64 {
    let nanos = now();
    LAST.set(nanos);
    nanos
}

/// Reads the clock: nanoseconds since some moment before the first reading in this process.
#[inline]
pub(crate) fn now() -> u64 {
    #[cfg(test)]
    READINGS.set(READINGS.get() + 1);
    since_epoch(Instant::now())
}

#[cfg(test)]
thread_local! {
    /// How often this thread has read the clock.
    pub(crate) static READINGS: Cell<u32> = const { Cell::new(0) };
}

/// Reads the clock; returns the time, or `None` if it is before `nanos`.
///
/// `None` usually costs less than [`now`].
#[inline]
pub(crate) fn now_from(nanos: u64) -> Option<u64> {
    let now = Instant::now();
    // Comparing two `Instant`s is cheaper than subtracting them.
    match AWAITED.get() {
        Some((awaited, moment)) if awaited == nanos && now < moment => None,
        awaited => now_unless_before(nanos, now, awaited),
    }
}

#[inline(never)]
fn now_unless_before(nanos: u64, now: Instant, awaited: Option<(u64, Instant)>) -> Option<u64> {
    let now_nanos = since_epoch(now);
    // A time is remembered until it has come. If a thread asks for two times in turns, each would
    // otherwise replace the other.
    if awaited.is_none_or(|(_, moment)| moment <= now) {
        let moment = EPOCH.get()?.checked_add(Duration::from_nanos(nanos));
        AWAITED.set(moment.map(|moment| (nanos, moment)));
    }
    (now_nanos >= nanos).then_some(now_nanos)
}

#[inline]
fn since_epoch(now: Instant) -> u64 {
    let elapsed = now.saturating_duration_since(*EPOCH.get_or_init(|| before(now)));
    elapsed.as_secs() * 1_000_000_000 + u64::from(elapsed.subsec_nanos())
}

/// Returns a moment that a paused clock of this process is unlikely to start before.
#[cold]
fn before(now: Instant) -> Instant {
    now.checked_sub(Duration::from_secs(24 * 60 * 60))
        .unwrap_or(now)
}

static EPOCH: OnceLock<Instant> = OnceLock::new();

thread_local! {
    /// A time that this thread waits for, as nanoseconds and as an `Instant`.
    static AWAITED: Cell<Option<(u64, Instant)>> = const { Cell::new(None) };
}
