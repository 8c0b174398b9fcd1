use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Which of the last 64 answers came after the delay, one bit each.
///
/// If many are, the delay no longer tells the slowest few from the rest. The servers are then
/// overloaded or restarting, and hedges would make it worse.
// Relaxed and not exact: of two answers that come at once, one may not count.
#[derive(Debug, Default)]
pub(super) struct SlowAnswers(AtomicU64);

impl SlowAnswers {
    pub(super) fn note(&self, is_slow: bool) {
        let answers = self.0.load(Relaxed) << 1 | u64::from(is_slow);
        self.0.store(answers, Relaxed);
    }

    /// Returns whether more than three times the wanted share were slow.
    pub(super) fn are_many(&self, wanted: f64) -> bool {
        let slow = self.0.load(Relaxed).count_ones();
        f64::from(slow) > (3.0 * wanted * 64.0).max(BY_CHANCE)
    }
}

/// Of 64 answers of which one in a hundred is slow, five are hardly ever.
const BY_CHANCE: f64 = 5.0;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn many_are_more_than_three_times_as_many_as_wanted() {
        for (wanted, most) in [(0.1, 19), (0.05, 9), (0.01, 5), (0.0, 5), (1.0, 64)] {
            let answers = SlowAnswers::default();
            let mut slow = 0;
            while slow < 64 && !answers.are_many(wanted) {
                answers.note(true);
                slow += 1;
            }
            assert_eq!(slow, (most + 1).min(64), "{wanted}");
            (0..64).for_each(|_| answers.note(false));
            assert!(!answers.are_many(wanted));
        }
    }
}
