use super::atomic::{AtomicU64, Relaxed};

/// Knows how many requests are in flight and how old the oldest of them is, without a lock.
///
/// Requests that start within `slack` of one another share a *generation*: a word that holds when it was
/// opened and how many of its requests are still in flight. A generation left by its last request is
/// free again. The age of the oldest generation is then never below the age of the oldest request, and
/// above it by at most `slack`, or more while all generations are taken by older requests.
///
/// Cost: one compare-and-swap to enter, one subtraction to leave, one cache line to read.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Ages([AtomicU64; GENERATIONS]);

impl Ages {
    /// Counts a request that starts at `now` ns; returns its generation for [`leave`](Self::leave).
    ///
    /// `None` once half a million requests are in flight: no more are counted then.
    pub(super) fn enter(&self, now: u64, slack: u64) -> Option<usize> {
        loop {
            let (generation, word) = self.choose(now, slack)?;
            let entered = if count(word) == 0 {
                ((now >> TICK_BITS) << COUNT_BITS) | 1
            } else {
                word + 1
            };
            // Relaxed: the counts publish nothing. A generation that was emptied and opened anew in
            // between has another word, unless it was opened at the same tick, which is as good.
            let swapped = self.0[generation].compare_exchange_weak(word, entered, Relaxed, Relaxed);
            if swapped.is_ok() {
                return Some(generation);
            }
        }
    }

    /// Gives back what [`enter`](Self::enter) counted.
    pub(super) fn leave(&self, generation: usize) {
        self.0[generation].fetch_sub(1, Relaxed);
    }

    /// Returns the number of requests in flight, and the time at or before which the oldest started.
    #[inline]
    pub(super) fn read(&self) -> (u64, u64) {
        let (requests, oldest) = self.0.iter().fold((0, u64::MAX), |(requests, oldest), word| {
            let word = word.load(Relaxed);
            match count(word) {
                0 => (requests, oldest),
                n => (requests + n, oldest.min(word)),
            }
        });
        (requests, opened(oldest))
    }

    /// Finds the generation to enter at `now`: one young enough, else a free one, else the youngest.
    #[inline]
    fn choose(&self, now: u64, slack: u64) -> Option<(usize, u64)> {
        let (mut free, mut youngest) = (None, None);
        for (generation, word) in self.0.iter().enumerate() {
            let word = word.load(Relaxed);
            match count(word) {
                0 => free = Some((generation, word)),
                FULL => {}
                _ if youngest.is_none_or(|(_, other)| word > other) => {
                    youngest = Some((generation, word));
                }
                _ => {}
            }
        }
        match youngest {
            Some((_, word)) if now.saturating_sub(opened(word)) <= slack => youngest,
            _ => free.or(youngest),
        }
    }
}

const fn count(word: u64) -> u64 {
    word & FULL
}

/// Returns when the generation was opened, in ns, rounded down.
const fn opened(word: u64) -> u64 {
    (word >> COUNT_BITS) << TICK_BITS
}

/// One cache line of them; enough for ages up to twice the estimate with a slack of a quarter of it.
const GENERATIONS: usize = 8;

/// 65 535 requests in each generation, half a million for one endpoint.
const COUNT_BITS: u32 = 16;
const FULL: u64 = (1 << COUNT_BITS) - 1;

/// Ticks of 1 024 ns: 48 bits of them last nine years.
const TICK_BITS: u32 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever enters and leaves, the count is exact and the age is never below the oldest's.
        #[test]
        fn never_below_the_oldest(
            steps in prop::collection::vec((0_u64..5_000_000, 0_usize..100, any::<bool>()), 1..200),
            start in 0_u64..1 << 57,
            slack in 0_u64..10_000_000,
        ) {
            let ages = Ages::default();
            let mut under_way: Vec<(u64, usize)> = Vec::new();
            let mut now = start;
            for (elapsed, which, enters) in steps {
                now += elapsed;
                if enters || under_way.is_empty() {
                    under_way.push((now, ages.enter(now, slack).unwrap()));
                } else {
                    let (_, generation) = under_way.swap_remove(which % under_way.len());
                    ages.leave(generation);
                }
                let (requests, oldest) = ages.read();
                prop_assert_eq!(requests, under_way.len() as u64);
                for (start, _) in &under_way {
                    prop_assert!(oldest <= *start, "{oldest} is after {start}");
                }
            }
        }
    }

    #[test]
    fn precise_while_generations_last() {
        let ages = Ages::default();
        let first = ages.enter(0, 1_000_000).unwrap();
        let second = ages.enter(8_000_000, 1_000_000).unwrap();
        assert_ne!(first, second);
        assert_eq!(ages.read(), (2, 0));
        ages.leave(first);
        let (requests, oldest) = ages.read();
        assert_eq!(requests, 1);
        assert!((8_000_000 - 1_024..=8_000_000).contains(&oldest), "{oldest} ns");
    }

    #[test]
    fn more_than_the_generations_hold_share_the_youngest() {
        let ages = Ages::default();
        let enter = |ms: u64| ages.enter(ms * 1_000_000, 0).unwrap();
        let entered: Vec<_> = (0..100).map(enter).collect();
        assert_eq!(ages.read(), (100, 0));
        entered.into_iter().for_each(|generation| ages.leave(generation));
        assert_eq!(ages.read().0, 0);
    }

    #[test]
    fn a_full_generation_is_not_entered() {
        let ages = Ages::default();
        let most = FULL as usize * GENERATIONS;
        let entered: Vec<_> = (0..most).map_while(|_| ages.enter(0, 0)).collect();
        assert_eq!((entered.len(), ages.enter(0, 0)), (most, None));
        assert_eq!(ages.read().0, most as u64);
    }
}
