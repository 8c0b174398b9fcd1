//! What a load is, as a policy reads it: the traits that trackers and policies have in common.

use std::{cell::Cell, sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// Counts the requests under way: what bounded loads and limits need.
pub trait InFlight {
    /// Returns how many requests have been sent and are not over yet.
    fn in_flight(&self) -> usize;
}

/// Counts the requests under way at all services of a group together.
///
/// Bounded loads are a share of that.
///
/// [`PendingRequestsLayer::with_total`](crate::PendingRequestsLayer::with_total) makes such services.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not count the requests in flight at all endpoints together",
    note = "track the endpoints with `each(PendingRequestsLayer::default().with_total())`"
)]
pub trait TotalInFlight: InFlight {
    /// Returns how many requests to any service of the group have been sent and are not over yet. **O(1)**.
    fn total_in_flight(&self) -> usize;
}

/// A load metric as a number, so that it can be divided by a weight.
///
/// Implemented for integers, floats and [`Duration`] (in seconds), and for the metrics of this
/// crate's trackers. For the metric of a [`Load`](tower::load::Load) of your own, implement
/// [`cost`](Self::cost), in the order of its `PartialOrd`; the rest is for metrics that change as time
/// passes.
///
/// What is not a number counts as infinite.
pub trait Cost: PartialOrd {
    /// Whether the number depends on the time at which it is asked for. Default no.
    const TIMED: bool = false;

    /// Returns the number; lower is better, and twice the number is twice the load.
    fn cost(&self) -> f64;

    /// Returns the number at the time of `clock`, which is one for all loads that a pick compares and that have
    /// [told](Self::tell) it what they know. Without that, and on a thread that sends nothing, the time may be an old one.
    #[inline]
    fn cost_at(&self, clock: &PickClock) -> f64 {
        let _ = clock;
        self.cost()
    }

    /// Tells `clock` of the latest moment that the load knows of, which saves reading the time. Default nothing.
    ///
    /// A policy asks all loads that it compares before the first [`cost_at`](Self::cost_at).
    #[inline]
    fn tell(&self, clock: &PickClock) {
        let _ = clock;
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Cost for $number {
            #[inline]
            fn cost(&self) -> f64 {
                *self as f64
            }
        }
    )*};
}

numbers!(
    u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64
);

impl Cost for Duration {
    #[inline]
    fn cost(&self) -> f64 {
        self.as_secs_f64()
    }
}

/// The time of one pick, the same for all loads of a kind that it compares.
///
/// For [`PeakEwma`](crate::PeakEwma) it is the latest moment that this thread or one of those loads knows of, when a request
/// started or ended: reading the time would cost half as much as the rest of the pick. So a thread's first pick after a
/// pause may be made by the time before it. For [`Reported`](crate::load::Reported) it is read.
#[derive(Debug)]
pub struct PickClock {
    /// The latest moment that is known.
    known: Cell<u64>,
    /// The time that was read; 0 before.
    read: Cell<u64>,
}

impl PickClock {
    /// Starts a pick with what this thread knows of the time.
    #[must_use]
    pub fn new() -> Self {
        Self {
            known: Cell::new(last()),
            read: Cell::new(0),
        }
    }

    /// Takes in a moment, in ns.
    #[inline]
    pub(crate) fn hear(&self, nanos: u64) {
        self.known.set(self.known.get().max(nanos));
    }

    /// Returns the latest moment that is known, in ns.
    #[inline]
    pub(crate) fn known(&self) -> u64 {
        self.known.get()
    }

    /// Returns the time in ns, which is read when first asked for.
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
    /// What this thread last read from the clock, for a request's start or end.
    static LAST: Cell<u64> = const { Cell::new(0) };
}

// Not inlined into the picks, for there the thread-local's access would not be.
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
    /// How often this thread has read the time.
    pub(crate) static READINGS: Cell<u32> = const { Cell::new(0) };
}

/// Reads the clock, and returns the time unless it is before `nanos`; that costs less than [`now`] while it is.
#[inline]
pub(crate) fn now_from(nanos: u64) -> Option<u64> {
    let now = Instant::now();
    // Comparing two moments is cheaper than subtracting them.
    match AWAITED.get() {
        Some((awaited, moment)) if awaited == nanos && now < moment => None,
        awaited => now_unless_before(nanos, now, awaited),
    }
}

#[inline(never)]
fn now_unless_before(nanos: u64, now: Instant, awaited: Option<(u64, Instant)>) -> Option<u64> {
    let now_nanos = since_epoch(now);
    // One is remembered until it has come: of two that are asked for in turns, each would undo the other.
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

/// Returns a moment that no paused clock of this process is likely to start before.
#[cold]
fn before(now: Instant) -> Instant {
    now.checked_sub(Duration::from_secs(24 * 60 * 60))
        .unwrap_or(now)
}

static EPOCH: OnceLock<Instant> = OnceLock::new();

thread_local! {
    /// A time that this thread waits for, in nanoseconds and as a moment.
    static AWAITED: Cell<Option<(u64, Instant)>> = const { Cell::new(None) };
}
