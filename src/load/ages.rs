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
    /// `None` once eight million requests are in flight: no more are counted then.
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

    /// Returns the number of requests in flight, and the age of the oldest at `now`, in ns.
    pub(super) fn read(&self, now: u64) -> (u64, u64) {
        self.0.iter().fold((0, 0), |(requests, oldest), word| {
            let word = word.load(Relaxed);
            match count(word) {
                0 => (requests, oldest),
                n => (requests + n, oldest.max(age(word, now))),
            }
        })
    }

    /// Finds the generation to enter at `now`: one young enough, else a free one, else the youngest.
    fn choose(&self, now: u64, slack: u64) -> Option<(usize, u64)> {
        let (mut free, mut youngest) = (None, None);
        let mut least = u64::MAX;
        for (generation, word) in self.0.iter().enumerate() {
            let word = word.load(Relaxed);
            match count(word) {
                0 => free = Some((generation, word)),
                FULL => {}
                _ => {
                    let age = age(word, now);
                    if age < least {
                        (youngest, least) = (Some((generation, word)), age);
                    }
                }
            }
        }
        if least <= slack {
            youngest
        } else {
            free.or(youngest)
        }
    }
}

const fn count(word: u64) -> u64 {
    word & FULL
}

/// Returns how long before `now` the generation was opened, in ns; 0 where that is yet to come.
const fn age(word: u64, now: u64) -> u64 {
    let ticks = (now >> TICK_BITS).wrapping_sub(word >> COUNT_BITS) & TICKS;
    // The upper half of the range is the time before: another thread's clock read came later.
    if ticks > TICKS / 2 {
        return 0;
    }
    // The opening was rounded down, `now` is not: never below the true age.
    (ticks << TICK_BITS) | (now & ((1 << TICK_BITS) - 1))
}

/// One cache line of them; enough for ages up to twice the estimate with a slack of a quarter of it.
const GENERATIONS: usize = 8;

/// A million requests in each generation.
const COUNT_BITS: u32 = 20;
const FULL: u64 = (1 << COUNT_BITS) - 1;

/// Ticks of 1 024 ns: 44 bits of them last 208 days, and ages are right up to half of that.
const TICK_BITS: u32 = 10;
const TICKS: u64 = u64::MAX >> COUNT_BITS;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever enters and leaves, the count is exact and the age is never below the oldest's.
        #[test]
        fn never_below_the_oldest(
            steps in prop::collection::vec((0_u64..5_000_000, 0_usize..100, any::<bool>()), 1..200),
            start in prop_oneof![Just(0), Just(u64::MAX >> 10), 0_u64..1 << 54],
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
                let (requests, oldest) = ages.read(now);
                prop_assert_eq!(requests, under_way.len() as u64);
                let true_age = under_way.iter().map(|(at, _)| now - at).max().unwrap_or(0);
                prop_assert!(oldest >= true_age, "{oldest} is below {true_age}");
            }
        }
    }

    #[test]
    fn precise_while_generations_last() {
        let ages = Ages::default();
        let first = ages.enter(0, 1_000_000).unwrap();
        let second = ages.enter(8_000_000, 1_000_000).unwrap();
        assert_ne!(first, second);
        assert_eq!(ages.read(10_000_000), (2, 10_000_000));
        ages.leave(first);
        let (requests, age) = ages.read(10_000_000);
        assert_eq!(requests, 1);
        assert!((2_000_000..2_001_024).contains(&age), "{age} ns");
    }

    #[test]
    fn a_clock_behind_reads_no_age() {
        let ages = Ages::default();
        ages.enter(5_000_000, 0);
        assert_eq!(ages.read(4_000_000), (1, 0));
    }

    #[test]
    fn more_than_the_generations_hold_share_the_youngest() {
        let ages = Ages::default();
        let entered: Vec<_> = (0..100)
            .map(|ms| ages.enter(ms * 1_000_000, 0).unwrap())
            .collect();
        assert_eq!(ages.read(100_000_000).0, 100);
        entered
            .into_iter()
            .for_each(|generation| ages.leave(generation));
        assert_eq!(ages.read(100_000_000), (0, 0));
    }
}
