use crate::atomic::{Acquire, AtomicU64, Relaxed, Release};

/// Counts the requests in flight and knows when the oldest started, without a lock.
///
/// Requests that start within `slack` of one another share a *generation*: a word that holds when
/// the generation was opened and how many of its requests are still in flight. A generation is free
/// again when its last request leaves. The oldest generation never opened after the oldest request
/// started. It opened before that by at most `slack`, or by more while older requests occupy all
/// generations.
///
/// Cost: one compare-and-swap to enter, one subtraction to leave, half a cache line to read.
#[derive(Debug)]
pub(super) struct Ages([AtomicU64; GENERATIONS]);

impl Default for Ages {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Ages {
    /// Counts a request that starts at `now` ns; returns its generation for [`leave`](Self::leave).
    ///
    /// The slack is `2^log2_slack()` ns. `log2_slack` is called only if other requests are in
    /// flight.
    ///
    /// Returns `None`, and does not count the request, while a quarter of a million are in flight.
    #[inline]
    pub(super) fn enter(&self, now: u64, log2_slack: impl FnOnce() -> u32) -> Option<Generation> {
        let first = self.0[0].load(Relaxed);
        if is_free(first) {
            if let Ok(entered) = self.try_enter(0, first, now) {
                return Some(entered);
            }
        }
        let log2_slack = log2_slack().min(62);
        let slack = 1 << log2_slack;
        // Consecutive slices of time use different generations, so the first try usually finds one
        // that is free.
        let slice = now >> log2_slack;
        let generation = slice as usize % GENERATIONS;
        let word = self.0[generation].load(Relaxed);
        if is_free(word) || is_open(word, now, slack) {
            if let Ok(entered) = self.try_enter(generation, word, now) {
                return Some(entered);
            }
        }
        self.enter_another(now, slack)
    }

    /// Removes a request that [`enter`](Self::enter) counted.
    #[inline]
    pub(super) fn leave(&self, Generation(generation): Generation) {
        // Release; pairs with the Acquire in `are_over`.
        self.0[generation].fetch_sub(1, Release);
    }

    /// Returns whether all requests have left. Meaningful once no more enter.
    ///
    /// If so, everything that they did before they left is visible to the caller.
    pub(super) fn are_over(&self) -> bool {
        self.0.iter().all(|word| is_free(word.load(Acquire)))
    }

    #[inline]
    pub(super) fn read(&self) -> AgesReading {
        let words = self.0.each_ref().map(|word| word.load(Relaxed));
        let mut reading = AgesReading {
            requests: 0,
            oldest: u64::MAX,
            youngest: 0,
        };
        if is_free(words.iter().fold(0, |all, word| all | word)) {
            return reading;
        }
        for word in words {
            if !is_free(word) {
                reading.requests += count(word);
                reading.oldest = reading.oldest.min(opened(word));
                reading.youngest = reading.youngest.max(opened(word));
            }
        }
        reading
    }

    /// Enters a generation that is young enough, or else a free one, or else the youngest.
    #[cold]
    fn enter_another(&self, now: u64, slack: u64) -> Option<Generation> {
        loop {
            let (mut free, mut youngest) = (None, None);
            for (generation, word) in self.0.iter().enumerate() {
                let word = word.load(Relaxed);
                if is_free(word) {
                    free = Some((generation, word));
                } else if count(word) < FULL && youngest.is_none_or(|(_, other)| word > other) {
                    youngest = Some((generation, word));
                }
            }
            let (generation, word) = match youngest {
                Some((_, word)) if is_open(word, now, slack) => youngest,
                _ => free.or(youngest),
            }?;
            if let Ok(entered) = self.try_enter(generation, word, now) {
                return Some(entered);
            }
        }
    }

    /// Enters the generation, and opens it if it is free. Fails if its word has changed meanwhile.
    #[inline]
    fn try_enter(&self, generation: usize, word: u64, now: u64) -> Result<Generation, u64> {
        // The thread that opened the generation may have read its clock later. The opening time
        // then moves back to the start of this request.
        let opened = if is_free(word) {
            now >> TICK_BITS
        } else {
            (word >> COUNT_BITS).min(now >> TICK_BITS)
        };
        let entered = (opened << COUNT_BITS) | (count(word) + 1);
        // Relaxed: the counts publish nothing. If the generation was emptied and reopened in
        // between, its word differs, unless it was reopened at the same tick. Entering it is then
        // just as good. loom: `loom_ages_are_exact_when_all_have_left`
        self.0[generation]
            .compare_exchange(word, entered, Relaxed, Relaxed)
            .map(|_| Generation(generation))
    }
}

/// A reading of [`Ages`] at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgesReading {
    /// How many requests are in flight.
    pub(super) requests: u64,
    /// A time at or before which the oldest request started; `u64::MAX` if there is none.
    pub(super) oldest: u64,
    /// A time at or after which one of them started; 0 if there is none.
    pub(super) youngest: u64,
}

/// The generation that a request entered, to be left exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(usize);

impl Generation {
    /// Returns the generation's number, which is 1 or more.
    pub(super) const fn number(self) -> u64 {
        self.0 as u64 + 1
    }

    /// Returns the generation with this number; `None` for 0.
    pub(super) const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => None,
            n => Some(Self((n - 1) as usize % GENERATIONS)),
        }
    }
}

const fn count(word: u64) -> u64 {
    word & FULL
}

const fn is_free(word: u64) -> bool {
    count(word) == 0
}

/// Returns whether a request that starts at `now` may enter.
const fn is_open(word: u64, now: u64, slack: u64) -> bool {
    count(word) < FULL && now.saturating_sub(opened(word)) <= slack
}

/// Returns when the generation was opened, in ns, rounded down.
const fn opened(word: u64) -> u64 {
    (word >> COUNT_BITS) << TICK_BITS
}

/// Under load, three or four generations are in use. The slack is then about a quarter of the usual
/// latency.
const GENERATIONS: usize = 4;

/// At most 65 535 requests in each generation, a quarter of a million for one endpoint.
const COUNT_BITS: u32 = 16;
const FULL: u64 = (1 << COUNT_BITS) - 1;

/// Ticks of 1 024 ns. 48 bits of them last nine years.
const TICK_BITS: u32 = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The count is always exact, and the age is at least that of the oldest request.
        #[test]
        fn never_below_the_oldest(
            steps in prop::collection::vec(
                (0_u64..5_000_000, 0_usize..100, any::<bool>(), 0_u64..100_000),
                1..200,
            ),
            start in 0_u64..1 << 57,
            log2_slack in 0_u32..64,
        ) {
            let ages = Ages::default();
            let mut under_way: Vec<(u64, Generation)> = Vec::new();
            let mut now = start;
            for (elapsed, which, enters, behind) in steps {
                now += elapsed;
                if enters || under_way.is_empty() {
                    // The clocks that different threads read are a little apart.
                    let start = now.saturating_sub(behind);
                    under_way.push((start, ages.enter(start, || log2_slack).unwrap()));
                } else {
                    let (_, generation) = under_way.swap_remove(which % under_way.len());
                    ages.leave(generation);
                }
                let AgesReading { requests, oldest, youngest } = ages.read();
                prop_assert_eq!(requests, under_way.len() as u64);
                for (start, _) in &under_way {
                    prop_assert!(oldest <= *start, "{oldest} is after {start}");
                }
                let last = under_way.iter().map(|(start, _)| *start).max();
                prop_assert!(youngest <= last.unwrap_or(0), "{youngest} is after {last:?}");
            }
        }
    }

    #[test]
    fn precise_while_generations_last() {
        let ages = Ages::default();
        let first = ages.enter(0, || 20).unwrap();
        let second = ages.enter(8_000_000, || 20).unwrap();
        assert_ne!(first, second);
        assert_eq!((ages.read().requests, ages.read().oldest), (2, 0));
        ages.leave(first);
        let AgesReading {
            requests, oldest, ..
        } = ages.read();
        assert_eq!(requests, 1);
        assert!(
            (8_000_000 - 1_024..=8_000_000).contains(&oldest),
            "{oldest} ns"
        );
    }

    #[test]
    fn more_than_the_generations_hold_share_the_youngest() {
        let ages = Ages::default();
        let enter = |ms: u64| ages.enter(ms * 1_000_000, || 0).unwrap();
        let entered: Vec<_> = (0..100).map(enter).collect();
        assert_eq!((ages.read().requests, ages.read().oldest), (100, 0));
        entered
            .into_iter()
            .for_each(|generation| ages.leave(generation));
        assert_eq!(ages.read().requests, 0);
    }

    #[test]
    fn a_full_generation_is_not_entered() {
        let ages = Ages::default();
        let most = FULL as usize * GENERATIONS;
        let entered = (0..=most).map_while(|_| ages.enter(0, || 0)).count();
        assert_eq!(entered, most);
        assert_eq!(ages.read().requests, most as u64);
    }
}
