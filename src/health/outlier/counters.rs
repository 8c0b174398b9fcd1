use std::{
    any::Any,
    sync::{
        Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{detector::Tally, settings::EndpointSettings};
use crate::{clock, recycle::Recycled};

/// The part of an endpoint's state that every request reads and writes.
///
/// Counters are never freed: when an endpoint leaves, a later one reuses them. So requests need not
/// count references to them. A healthy request of which nothing is counted writes nothing.
///
/// Laid out by who writes: every request may write the second cache line, and the first one changes
/// seldom.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Counters {
    /// The number of the endpoint that uses these counters. No two endpoints have the same number;
    /// 0 means that they are free.
    number: AtomicU64,
    /// A copy of whether the endpoint's breaker is closed.
    is_closed: AtomicBool,
    need_tallies: AtomicBool,
    need_some_starts: AtomicBool,
    need_all_starts: AtomicBool,
    /// Failures since the last success.
    in_a_row: AtomicU32,
    /// The state of the endpoint that uses these counters.
    owner: Mutex<Weak<dyn Any + Send + Sync>>,
    _pad: [u64; 3],
    /// The counts of this interval: successes in the lower half, failures in the upper one.
    tally: AtomicU64,
    timed: AtomicU64,
    time_nanos: AtomicU64,
}

/// The counts of an endpoint that has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) in_a_row: u32,
    pub(super) tally: Tally,
}

/// Refers to the counters of one endpoint, for its services and requests.
///
/// Once the endpoint has left, the reference reports a closed breaker and counts nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct CountersRef {
    counters: &'static Counters,
    number: u64,
}

/// Owns the counters of one endpoint and gives them back when the endpoint's state is dropped.
#[derive(Debug)]
pub(super) struct CountersLease(CountersRef);

// All accesses are `Relaxed`, because no access depends on another one. A request that sees late
// that the breaker has opened is one request too many. A request that sees late that it has closed
// asks the breaker in vain. The counts are independent of one another.
//
// A request that ends just when its endpoint's counters are reused may be counted for the next
// endpoint. That costs it one wrong success, which ends its failures in a row.
impl CountersRef {
    /// Returns the counters while they still belong to this reference's endpoint.
    #[inline]
    fn own(self) -> Option<&'static Counters> {
        (self.counters.number.load(Relaxed) == self.number).then_some(self.counters)
    }

    /// Returns whether requests go through without asking the breaker.
    #[inline]
    pub(super) fn is_closed(self) -> bool {
        self.own().is_none_or(Counters::is_closed)
    }

    /// Returns the start time of a request in ns; 0 if it is not needed.
    #[inline]
    pub(super) fn start(self) -> u64 {
        // Does not check whose counters these are. If the endpoint has left, the request is not
        // counted, and its start does not matter.
        if self.counters.need_some_starts.load(Relaxed) {
            self.counters.start_if_timed()
        } else {
            0
        }
    }

    /// Counts the success, begun at `started`, of a request that was no probe.
    #[inline]
    pub(super) fn succeed(self, started: u64) {
        let Some(counters) = self.own() else { return };
        if counters.in_a_row.load(Relaxed) != 0 {
            counters.in_a_row.store(0, Relaxed);
        }
        if counters.need_tallies.load(Relaxed) {
            counters.tally.fetch_add(1, Relaxed);
        }
        if started != 0 {
            counters.time(started);
        }
    }

    /// Counts the time from `started`, in ns, until now as the latency of a request.
    pub(super) fn time(self, started: u64) {
        if let Some(counters) = self.own() {
            counters.time(started);
        }
    }

    pub(super) const fn counters(self) -> &'static Counters {
        self.counters
    }

    pub(super) const fn number(self) -> u64 {
        self.number
    }
}

impl Counters {
    fn new() -> Self {
        Self {
            number: AtomicU64::new(0),
            is_closed: AtomicBool::new(true),
            need_tallies: AtomicBool::new(false),
            need_some_starts: AtomicBool::new(false),
            need_all_starts: AtomicBool::new(false),
            in_a_row: AtomicU32::new(0),
            tally: AtomicU64::new(0),
            timed: AtomicU64::new(0),
            time_nanos: AtomicU64::new(0),
            owner: Mutex::new(Weak::<()>::new()),
            _pad: [0; 3],
        }
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    /// Copies whether the breaker is closed, and restarts the count of failures in a row.
    pub(super) fn set_closed(&self, is_closed: bool) {
        self.in_a_row.store(0, Relaxed);
        self.copy_closed(is_closed);
    }

    /// Copies whether the breaker is closed.
    pub(super) fn copy_closed(&self, is_closed: bool) {
        self.is_closed.store(is_closed, Relaxed);
    }

    #[inline(never)]
    fn start_if_timed(&self) -> u64 {
        let is_needed = self.need_all_starts.load(Relaxed) || self.is_timed();
        if is_needed { clock::now() } else { 0 }
    }

    /// Returns whether the next request is timed: the first 64 of an interval are, and one in 16 of
    /// the others.
    fn is_timed(&self) -> bool {
        let successes = self.tally.load(Relaxed) & SUCCESSES;
        successes < 64 || successes % 16 == 0
    }

    #[inline(never)]
    fn time(&self, started: u64) {
        let took = clock::now().saturating_sub(started);
        self.timed.fetch_add(1, Relaxed);
        self.time_nanos.fetch_add(took, Relaxed);
    }

    /// Counts a failure; returns how many there have been in a row.
    pub(super) fn fail(&self) -> u32 {
        if self.need_tallies.load(Relaxed) {
            self.tally.fetch_add(1 << 32, Relaxed);
        }
        self.in_a_row.fetch_add(1, Relaxed).saturating_add(1)
    }

    pub(super) fn failures_in_a_row(&self) -> u32 {
        self.in_a_row.load(Relaxed)
    }

    /// Returns the counts since the last call, and sets them to 0.
    pub(super) fn take_tally(&self) -> Tally {
        let tally = self.tally.swap(0, Relaxed);
        Tally {
            successes: tally & SUCCESSES,
            failures: tally >> 32,
            timed: self.timed.swap(0, Relaxed),
            time: Duration::from_nanos(self.time_nanos.swap(0, Relaxed)),
        }
    }

    /// Returns all counts, and sets them to 0.
    pub(super) fn take_counts(&self) -> Counts {
        Counts {
            in_a_row: self.in_a_row.swap(0, Relaxed),
            tally: self.take_tally(),
        }
    }

    /// Goes on from the counts of an endpoint that has come back.
    pub(super) fn restore(&self, counts: &Counts) {
        let Tally {
            successes,
            failures,
            timed,
            time,
        } = counts.tally;
        self.in_a_row.store(counts.in_a_row, Relaxed);
        self.tally.store(failures << 32 | successes, Relaxed);
        self.timed.store(timed, Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.time_nanos.store(nanos, Relaxed);
    }

    pub(super) fn owner(&self) -> MutexGuard<'_, Weak<dyn Any + Send + Sync>> {
        // Nothing under this lock panics.
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CountersLease {
    pub(super) fn new(settings: &EndpointSettings) -> Self {
        let counters = COUNTERS.take(|_| true, Counters::new);
        let need_all_starts = settings.cancelled_after > 0;
        counters.need_tallies.store(settings.need_tallies, Relaxed);
        counters
            .need_some_starts
            .store(settings.need_start, Relaxed);
        counters.need_all_starts.store(need_all_starts, Relaxed);
        counters.set_closed(true);
        counters.take_tally();
        let number = NEXT_NUMBER.fetch_add(1, Relaxed);
        counters.number.store(number, Relaxed);
        Self(CountersRef { counters, number })
    }

    /// Sets the endpoint's state to which references lead.
    pub(super) fn set_owner(&self, owner: Weak<dyn Any + Send + Sync>) {
        *self.counters().owner() = owner;
    }

    pub(super) const fn reference(&self) -> CountersRef {
        self.0
    }

    pub(super) const fn counters(&self) -> &'static Counters {
        self.0.counters
    }

    pub(super) const fn number(&self) -> u64 {
        self.0.number
    }
}

impl Drop for CountersLease {
    fn drop(&mut self) {
        let counters = self.counters();
        counters.number.store(0, Relaxed);
        *counters.owner() = Weak::<()>::new();
        COUNTERS.give_back(counters);
    }
}

/// The lower half of a tally.
const SUCCESSES: u64 = u32::MAX as u64;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// The counters of endpoints that have left, ready for reuse.
static COUNTERS: Recycled<Counters> = Recycled::new();

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_changes_seldom_has_a_line_of_its_own() {
        // Exactly a line where pointers have 64 bits.
        assert!(std::mem::offset_of!(Counters, tally) >= 64);
        assert!(size_of::<Counters>() <= 128);
    }
}
