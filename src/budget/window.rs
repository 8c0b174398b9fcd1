use crossbeam_utils::CachePadded;

use crate::atomic::{AtomicI64, AtomicU64, Mutex, Relaxed};

/// Sums over a span of time: they lose what was added longer ago.
///
/// Time goes in slots, each a part of the span. Of ten slots, an amount counts for at least nine
/// tenths of the span, and at most for all of it. Adding and taking are one atomic operation each.
/// The first caller of `expire` after the end of a slot takes out what has expired.
pub(crate) struct Window<const N: usize = 1> {
    // On one cache line, apart from what changes seldom: several threads write the totals.
    totals: CachePadded<[AtomicI64; N]>,
    /// When the current slot ends, in nanoseconds.
    ends: AtomicU64,
    slot_nanos: u64,
    /// Taken only by `try_lock`, so that no thread waits for it.
    history: Mutex<History<N>>,
}

/// Reads the clock. Returns the time, unless it is before the given one.
pub(crate) trait NowFrom: FnOnce(u64) -> Option<u64> {}

impl<F: FnOnce(u64) -> Option<u64>> NowFrom for F {}

struct History<const N: usize> {
    /// What each slot before the current one has added; the oldest is at `oldest`.
    nets: Box<[[i64; N]]>,
    oldest: usize,
    /// The totals when the current slot began.
    starts: [i64; N],
}

impl<const N: usize> Window<N> {
    /// Starts with totals that never expire.
    pub(crate) fn new(totals: [i64; N], span_nanos: u64, slots: usize, now: u64) -> Self {
        let slot_nanos = (span_nanos / slots as u64).max(1);
        Self {
            totals: CachePadded::new(totals.map(AtomicI64::new)),
            ends: AtomicU64::new(now.saturating_add(slot_nanos)),
            slot_nanos,
            history: Mutex::new(History {
                nets: vec![[0; N]; slots - 1].into(),
                oldest: 0,
                starts: totals,
            }),
        }
    }

    // Relaxed, here and below: a total is one number that publishes nothing else.
    #[inline]
    pub(crate) fn totals(&self) -> [i64; N] {
        self.totals.each_ref().map(|total| total.load(Relaxed))
    }

    /// Adds to the total at `index`.
    #[inline]
    pub(crate) fn add_to(&self, index: usize, amount: i64) {
        self.totals[index].fetch_add(amount, Relaxed);
    }

    /// Returns when the current slot ends, and the next amount expires.
    pub(crate) fn ends(&self) -> u64 {
        self.ends.load(Relaxed)
    }

    /// Takes out what has expired. **O(1)**, however long ago the last call was.
    ///
    /// When a slot ends, what `late` returns is first added to that slot. It is what was kept
    /// elsewhere since the slot began.
    #[inline]
    pub(crate) fn expire(&self, now_from: impl NowFrom, late: impl FnOnce() -> [i64; N]) {
        if let Some(now) = now_from(self.ends()) {
            self.turn(now, late);
        }
    }

    #[cold]
    #[inline(never)]
    fn turn(&self, now: u64, late: impl FnOnce() -> [i64; N]) {
        // Another thread is doing it. Until it has finished, the total may be one slot old.
        let Ok(mut history) = self.history.try_lock() else {
            return;
        };
        // Read again, because that thread may just have finished. Taking the lock makes its store
        // visible.
        let ends = self.ends();
        if now < ends {
            return;
        }
        let slots = 1 + (now - ends) / self.slot_nanos;
        let mut expired = [0; N];
        // What is added after this `fetch_add` counts in the new slot.
        let late = late();
        let end: [i64; N] =
            std::array::from_fn(|i| self.totals[i].fetch_add(late[i], Relaxed) + late[i]);
        let mut net = std::array::from_fn(|i| end[i] - history.starts[i]);
        for _ in 0..slots.min(history.nets.len() as u64 + 1) {
            let oldest = history.oldest;
            let left = std::mem::replace(&mut history.nets[oldest], net);
            expired = std::array::from_fn(|i| expired[i] + left[i]);
            history.oldest = (oldest + 1) % history.nets.len();
            net = [0; N];
        }
        history.starts = std::array::from_fn(|i| end[i] - expired[i]);
        for (total, expired) in self.totals.iter().zip(expired) {
            total.fetch_sub(expired, Relaxed);
        }
        let next = ends.saturating_add(slots.saturating_mul(self.slot_nanos));
        self.ends.store(next, Relaxed);
    }
}

impl Window {
    #[inline]
    pub(crate) fn total(&self) -> i64 {
        self.totals()[0]
    }

    #[inline]
    pub(crate) fn add(&self, amount: i64) {
        self.add_to(0, amount);
    }

    /// Takes the amount if the total is at least as large. // loom: `loom_no_token_is_taken_twice`
    #[inline]
    pub(crate) fn take(&self, amount: i64) -> bool {
        let taken = self.totals[0].fetch_update(Relaxed, Relaxed, |total| {
            (total >= amount).then(|| total - amount)
        });
        taken.is_ok()
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn at(now: u64) -> impl FnOnce(u64) -> Option<u64> {
        move |from| (now >= from).then_some(now)
    }

    #[test]
    fn an_amount_leaves_when_the_span_is_over() {
        let window = Window::new([7], 1000, 10, 0);
        window.add(100);
        for (now, total) in [(0, 107), (999, 107), (1000, 7), (1_000_000, 7)] {
            window.expire(at(now), || [0]);
            assert_eq!(window.total(), total, "at {now}");
        }
        // Added in the middle of a slot: nine tenths at least.
        window.expire(at(1_000_050), || [0]);
        window.add(1);
        window.expire(at(1_000_999), || [0]);
        assert_eq!(window.total(), 8);
        window.expire(at(1_001_000), || [0]);
        assert_eq!(window.total(), 7);
    }

    #[test]
    fn each_amount_leaves_in_its_turn() {
        let window = Window::new([0], 1000, 10, 0);
        for slot in 0..10 {
            window.expire(at(slot * 100), || [0]);
            window.add(1 << slot);
        }
        for slot in 0..10 {
            window.expire(at(1000 + slot * 100), || [0]);
            // The amounts of the later slots are left.
            assert_eq!(window.total(), 1023 - ((2 << slot) - 1));
        }
    }

    #[test]
    fn what_was_taken_comes_back_when_the_span_is_over() {
        let window = Window::new([2], 1000, 10, 0);
        assert!(window.take(2));
        assert!(!window.take(1));
        window.expire(at(999), || [0]);
        assert!(!window.take(1));
        window.expire(at(1000), || [0]);
        assert!(window.take(2));
        assert!(!window.take(1));
    }

    #[test]
    fn two_totals_expire_apart() {
        let window = Window::new([0, 5], 1000, 10, 0);
        window.add_to(0, 3);
        window.expire(at(500), || [0, 1]);
        window.add_to(1, 7);
        for (now, totals) in [(999, [3, 13]), (1000, [0, 12]), (1500, [0, 5])] {
            window.expire(at(now), || [0, 0]);
            assert_eq!(window.totals(), totals, "at {now}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_changes_nothing() {
        let window = Window::new([0], 1000, 10, 5000);
        window.add(1);
        window.expire(at(0), || [0]);
        assert_eq!(window.total(), 1);
        window.expire(at(u64::MAX), || [0]);
        assert_eq!(window.total(), 0);
        window.expire(at(0), || [0]);
        window.add(3);
        assert_eq!(window.total(), 3);
    }
}
