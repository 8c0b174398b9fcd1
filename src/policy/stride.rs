use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A static stride schedule: weighted turns from one shared counter, smooth and without a lock.
///
/// Entry `i` of `n` has one turn in each generation `g`. The turn is passed over unless the
/// fraction `w_i * g + offset_i` has just wrapped round. An entry of half the largest weight is
/// thus picked in every other generation. Offsets keep equal entries out of step.
///
/// An entry of more than [`MOST_TIMES_MEAN`] times the mean weight gets several places instead. A
/// pick therefore passes over only a handful of entries on average, however unequal the weights
/// are. Weights below 1/65535 of the largest place count as 1/65535 of it.
///
/// Source: gRFC A58, "client-side weighted round robin", static stride scheduler.
#[derive(Debug)]
pub(super) struct Stride(Box<[Place]>);

#[derive(Clone, Copy, Debug)]
struct Place {
    entry: u32,
    /// The weight, scaled so that the largest is [`FULL`].
    weight: u16,
}

impl Stride {
    /// Builds a schedule for `weights`. 0 is unknown and counts as the mean of the known ones.
    pub(super) fn new(weights: &[u32]) -> Self {
        let known = weights.iter().filter(|&&weight| weight > 0);
        let sum: f64 = known.clone().map(|&weight| f64::from(weight)).sum();
        let mean = if sum > 0.0 {
            sum / known.count() as f64
        } else {
            1.0
        };
        // For each place: its time within a generation, its entry and its weight.
        let mut places: Vec<(f64, u32, f64)> = Vec::with_capacity(weights.len() * 5 / 4);
        for (entry, &weight) in weights.iter().enumerate() {
            let weight = if weight == 0 { mean } else { f64::from(weight) };
            let parts = (weight / (mean * MOST_TIMES_MEAN)).ceil();
            let first = (entry as f64 + 0.5) / weights.len() as f64 / parts;
            let part = |part: u32| {
                (
                    first + f64::from(part) / parts,
                    entry as u32,
                    weight / parts,
                )
            };
            places.extend((0..parts as u32).map(part));
        }
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        let largest = places.iter().map(|place| place.2).fold(0.0, f64::max);
        let scale = |weight: f64| (weight / largest * f64::from(FULL)).round().max(1.0) as u16;
        let place = |&(_, entry, weight): &(f64, u32, f64)| Place {
            entry,
            weight: scale(weight),
        };
        Self(places.iter().map(place).collect())
    }

    /// Returns the number of places.
    ///
    /// If no other thread picks, so many calls of `step` find an entry.
    pub(super) const fn places(&self) -> usize {
        self.0.len()
    }

    /// Takes a turn; returns whose it is, or `None` if this place is passed over.
    #[inline]
    pub(super) fn step(&self, sequence: &AtomicU64) -> Option<u32> {
        // Relaxed: no other memory is published through the counter.
        self.entry_at(sequence.fetch_add(1, Relaxed))
    }

    /// Returns the entry whose turn it is, or `None` if this place is passed over.
    #[inline]
    pub(super) fn entry_at(&self, turn: u64) -> Option<u32> {
        let n = self.0.len() as u64;
        let (index, generation) = (turn.checked_rem(n)?, turn / n);
        let place = self.0[index as usize];
        let weight = u64::from(place.weight);
        let full = u64::from(FULL);
        let phase = (weight * (generation % full) + index % full * OFFSET) % full;
        (phase >= full - weight).then_some(place.entry)
    }
}

/// The scaled value of the largest weight.
const FULL: u16 = u16::MAX;

/// Half of [`FULL`], so that neighbours of half the largest weight take turns.
const OFFSET: u64 = FULL as u64 / 2;

/// Limits the weight of one place. At 4, places outnumber entries by at most a quarter. At worst
/// three of four places are passed over.
const MOST_TIMES_MEAN: f64 = 4.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picks(weights: &[u32], from: u64, count: usize) -> Vec<u32> {
        let stride = Stride::new(weights);
        let sequence = AtomicU64::new(from);
        std::iter::repeat_with(|| stride.step(&sequence))
            .flatten()
            .take(count)
            .collect()
    }

    fn counts(weights: &[u32], from: u64, count: usize) -> Vec<i64> {
        let mut counts = vec![0; weights.len()];
        for entry in picks(weights, from, count) {
            counts[entry as usize] += 1;
        }
        counts
    }

    #[test]
    fn follows_the_reference() {
        assert_eq!(picks(&[2, 3, 6], 0, 6), [1, 2, 2, 0, 1, 2]);
        assert_eq!(counts(&[1, 2, 3], 0, 6), [1, 2, 3]);
        assert_eq!(counts(&[3, 0, 1], 0, 6), [3, 2, 1], "0 counts as the mean");
    }

    #[test]
    fn one_huge_weight_passes_over_few() {
        let mut weights = vec![1; 1000];
        weights[500] = u32::MAX;
        let stride = Stride::new(&weights);
        let sequence = AtomicU64::new(0);
        let tries = 100_000;
        let picked = (0..tries).filter_map(|_| stride.step(&sequence)).count();
        assert!(picked > tries / 8, "{picked} picks of {tries} tries");
        let heavy = counts(&weights, 7, 10_000)[500];
        assert!(heavy > 9_900, "{heavy} of 10000 to the huge one");
    }

    proptest! {
        /// In any window of `sum(weights)` picks, every count is within 1 of its weight.
        #[test]
        fn a_window_holds_the_weights(
            weights in prop::collection::vec(1_u32..=10, 1..12),
            from in 0_u64..1_000_000,
        ) {
            let sum: u32 = weights.iter().sum();
            let mean = f64::from(sum) / weights.len() as f64;
            prop_assume!(weights.iter().all(|&w| f64::from(w) <= mean * MOST_TIMES_MEAN));
            for (count, &weight) in counts(&weights, from, sum as usize).iter().zip(&weights) {
                prop_assert!((count - i64::from(weight)).abs() <= 1, "{count} picks at weight {weight}");
            }
        }

        /// Shares follow the weights, however unequal these are.
        #[test]
        fn shares_follow_the_weights(weights in prop::collection::vec(1_u32..1000, 1..20)) {
            let sum: u32 = weights.iter().sum();
            let total = 20_000;
            for (count, &weight) in counts(&weights, 0, total).iter().zip(&weights) {
                let expected = total as f64 * f64::from(weight) / f64::from(sum);
                prop_assert!((*count as f64 - expected).abs() <= 6.0, "{count} picks, not {expected}");
            }
        }
    }
}
