use std::{cmp::Reverse, collections::BinaryHeap};

use tokio::time::Instant;

/// When each endpoint is to be looked at again, the soonest first.
///
/// An endpoint has one entry at most. Those of endpoints that have left stay until they are due or
/// outnumber the others.
#[derive(Debug, Default)]
pub(super) struct DueTimes(BinaryHeap<Reverse<(Instant, u64)>>);

impl DueTimes {
    /// Adds the time of the endpoint with this number. **O(log n)**.
    pub(super) fn push(&mut self, at: Instant, id: u64) {
        self.0.push(Reverse((at, id)));
    }

    /// Returns the soonest time.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|&Reverse((at, _))| at)
    }

    /// Removes an entry that is due; returns its endpoint's number. The endpoint may have left.
    pub(super) fn pop(&mut self, now: Instant) -> Option<u64> {
        (self.next()? <= now)
            .then(|| self.0.pop())?
            .map(|Reverse((_, id))| id)
    }

    /// Forgets endpoints that have left, once they are more than those that are here.
    ///
    /// Call it after each departure: **O(1)** on average.
    pub(super) fn compact(&mut self, here: usize, is_here: impl Fn(u64) -> bool) {
        if self.0.len() > 2 * here.max(FEW) {
            self.0.retain(|&Reverse((_, id))| is_here(id));
        }
    }
}

/// So few are not worth a look.
const FEW: usize = 16;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_departed_never_outnumber_the_others() {
        let now = Instant::now();
        let later = |secs| now + Duration::from_secs(secs);
        let mut due = DueTimes::default();
        // A hundred are here at a time, and each leaves long before it is due.
        for id in 0..10_000_u64 {
            due.push(later(100_000 - id), id);
            due.compact(100, |other| other + 100 > id);
            assert!(due.0.len() <= 201, "{}", due.0.len());
        }
        assert_eq!(due.next(), Some(later(90_001)));
        assert_eq!(due.pop(later(90_000)), None);
        for id in (9_901..10_000).rev() {
            assert_eq!(due.pop(later(100_000)), Some(id));
        }
    }
}
