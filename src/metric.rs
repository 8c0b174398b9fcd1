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

    /// Returns the number at the time of `clock`, which a pick reads once for all loads that it compares.
    #[inline]
    fn cost_at(&self, clock: &PickClock) -> f64 {
        let _ = clock;
        self.cost()
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

/// The time of one pick: read when first asked for, and then the same.
///
/// On a thread that starts requests less than a millisecond apart it is the time at which the last one
/// started or ended there, which saves the reading; so one pick after a pause may be made by the
/// time before it.
#[derive(Debug, Default)]
pub struct PickClock(Cell<u64>);

impl PickClock {
    /// Starts a pick whose time has not been asked for.
    #[must_use]
    pub const fn new() -> Self {
        Self(Cell::new(0))
    }

    /// Returns the nanoseconds since some moment before the first reading in this process.
    #[inline]
    pub(crate) fn nanos(&self) -> u64 {
        if self.0.get() == 0 {
            self.0.set(recent_or_now());
        }
        self.0.get()
    }
}

/// Returns the time for a pick.
// Not inlined into the picks, for there the thread-local's access would not be.
#[inline(never)]
fn recent_or_now() -> u64 {
    // For this pick alone: the next start says whether the one after may do the same.
    LAST.with(|last| {
        if last.dense.take() {
            last.nanos.get()
        } else {
            now()
        }
    })
}

/// What this thread last read from the clock, for a request's start or end.
struct Last {
    nanos: Cell<u64>,
    /// Whether the last request started within [`DENSE_NANOS`] of the reading before.
    dense: Cell<bool>,
}

thread_local! {
    static LAST: Last = const {
        Last {
            nanos: Cell::new(0),
            dense: Cell::new(false),
        }
    };
}

/// Reads the clock for the start of a request.
#[inline]
pub(crate) fn now_at_start() -> u64 {
    let nanos = now();
    LAST.with(|last| {
        // A clock that went back is another clock: the difference wraps, and is large.
        let gap = nanos.wrapping_sub(last.nanos.replace(nanos));
        last.dense.set(gap < DENSE_NANOS);
    });
    nanos
}

/// Reads the clock for the end of a request.
#[inline]
pub(crate) fn now_at_end() -> u64 {
    let nanos = now();
    LAST.with(|last| last.nanos.set(nanos));
    nanos
}

/// Reads the clock: nanoseconds since some moment before the first reading in this process.
#[inline]
pub(crate) fn now() -> u64 {
    since_epoch(Instant::now())
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

/// A millisecond: too short for a difference in load that a pick should have seen.
const DENSE_NANOS: u64 = 1_000_000;
