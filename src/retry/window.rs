use crate::atomic::{AtomicI64, AtomicU64, Mutex, Relaxed};

/// A sum over a span of time: what was added longer ago than that has left it.
///
/// Time goes in tenths of the span: an amount counts for at least nine tenths of the span, and at most for all of it.
/// Adding is one atomic operation, and so is taking; what has expired is taken out by whoever comes by first with the time.
pub(super) struct Window {
    total: AtomicI64,
    /// When the current slot ends, in nanoseconds.
    ends: AtomicU64,
    slot_nanos: u64,
    /// Only ever tried, never waited for.
    history: Mutex<History>,
}

/// Reads the clock: returns the time, unless it is before that which it is given.
pub(super) trait NowFrom: FnOnce(u64) -> Option<u64> {}

impl<F: FnOnce(u64) -> Option<u64>> NowFrom for F {}

struct History {
    /// What each of the slots before the current one has added, the oldest at `oldest`.
    nets: [i64; SLOTS - 1],
    oldest: usize,
    /// The total when the current slot began.
    start: i64,
}

impl Window {
    /// Starts with a total that never expires.
    pub(super) fn new(total: i64, span_nanos: u64, now: u64) -> Self {
        let slot_nanos = (span_nanos / SLOTS as u64).max(1);
        Self {
            total: AtomicI64::new(total),
            ends: AtomicU64::new(now.saturating_add(slot_nanos)),
            slot_nanos,
            history: Mutex::new(History {
                nets: [0; SLOTS - 1],
                oldest: 0,
                start: total,
            }),
        }
    }

    // Relaxed, here and below: the total is one number that publishes nothing else.
    #[inline]
    pub(super) fn total(&self) -> i64 {
        self.total.load(Relaxed)
    }

    #[inline]
    pub(super) fn add(&self, amount: i64) {
        self.total.fetch_add(amount, Relaxed);
    }

    /// Takes the amount if the total is no less. // loom: `loom_no_token_is_taken_twice`
    #[inline]
    pub(super) fn take(&self, amount: i64) -> bool {
        let taken = self.total.fetch_update(Relaxed, Relaxed, |total| {
            (total >= amount).then(|| total - amount)
        });
        taken.is_ok()
    }

    /// Returns when something will have expired.
    pub(super) fn ends(&self) -> u64 {
        self.ends.load(Relaxed)
    }

    /// Takes out what has expired. **O(1)**, however long nobody came by.
    ///
    /// When a slot ends, what `late` returns is added to it first: what has been kept back elsewhere since it began.
    #[inline]
    pub(super) fn expire(&self, now_from: impl NowFrom, late: impl FnOnce() -> i64) {
        if let Some(now) = now_from(self.ends()) {
            self.turn(now, late);
        }
    }

    #[cold]
    #[inline(never)]
    fn turn(&self, now: u64, late: impl FnOnce() -> i64) {
        // Another thread is at it: for this moment the total may be one slot old.
        let Ok(mut history) = self.history.try_lock() else {
            return;
        };
        // Read again: that thread may just have finished. The lock orders it.
        let ends = self.ends();
        if now < ends {
            return;
        }
        let slots = 1 + (now - ends) / self.slot_nanos;
        let mut expired = 0;
        // What comes in meanwhile is in the new slot's net.
        let late = late();
        let end = self.total.fetch_add(late, Relaxed) + late;
        let mut net = end - history.start;
        for _ in 0..slots.min(SLOTS as u64) {
            let oldest = history.oldest;
            expired += std::mem::replace(&mut history.nets[oldest], net);
            history.oldest = (oldest + 1) % history.nets.len();
            net = 0;
        }
        history.start = end - expired;
        self.total.fetch_sub(expired, Relaxed);
        let next = ends.saturating_add(slots.saturating_mul(self.slot_nanos));
        self.ends.store(next, Relaxed);
    }
}

const SLOTS: usize = 10;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn at(now: u64) -> impl FnOnce(u64) -> Option<u64> {
        move |from| (now >= from).then_some(now)
    }

    #[test]
    fn an_amount_leaves_when_the_span_is_over() {
        let window = Window::new(7, 1000, 0);
        window.add(100);
        for (now, total) in [(0, 107), (999, 107), (1000, 7), (1_000_000, 7)] {
            window.expire(at(now), || 0);
            assert_eq!(window.total(), total, "at {now}");
        }
        // Added in the middle of a slot: nine tenths at least.
        window.expire(at(1_000_050), || 0);
        window.add(1);
        window.expire(at(1_000_999), || 0);
        assert_eq!(window.total(), 8);
        window.expire(at(1_001_000), || 0);
        assert_eq!(window.total(), 7);
    }

    #[test]
    fn each_amount_leaves_in_its_turn() {
        let window = Window::new(0, 1000, 0);
        for slot in 0..10 {
            window.expire(at(slot * 100), || 0);
            window.add(1 << slot);
        }
        for slot in 0..10 {
            window.expire(at(1000 + slot * 100), || 0);
            // Those of the slots after this one are left.
            assert_eq!(window.total(), 1023 - ((2 << slot) - 1));
        }
    }

    #[test]
    fn what_was_taken_comes_back_when_the_span_is_over() {
        let window = Window::new(2, 1000, 0);
        assert!(window.take(2));
        assert!(!window.take(1));
        window.expire(at(999), || 0);
        assert!(!window.take(1));
        window.expire(at(1000), || 0);
        assert!(window.take(2));
        assert!(!window.take(1));
    }

    #[test]
    fn a_clock_that_goes_back_changes_nothing() {
        let window = Window::new(0, 1000, 5000);
        window.add(1);
        window.expire(at(0), || 0);
        assert_eq!(window.total(), 1);
        window.expire(at(u64::MAX), || 0);
        assert_eq!(window.total(), 0);
        window.expire(at(0), || 0);
        window.add(3);
        assert_eq!(window.total(), 3);
    }
}
