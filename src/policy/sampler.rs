use super::Candidates;
use crate::random::{Rng, scale};

/// Draws candidates in proportion to their weights. **O(1)** a draw, **O(n)** to build.
///
/// A *slot* is a candidate's number, from 0. [`position`](Self::position) returns the slot's place
/// among the snapshot's members.
#[derive(Debug)]
pub(super) struct Sampler {
    len: u32,
    /// The position of each slot. Empty if every member is a candidate, because slots and positions
    /// are then the same.
    positions: Box<[u32]>,
    weights: Option<Weights>,
}

/// What is needed to draw by unequal weights. Equal weights need nothing.
#[derive(Debug)]
struct Weights {
    alias: Alias,
    /// The slot that weighs more than all others together, if any, and the table of the others.
    /// With it, a draw that must avoid one slot is rejected at most every other time.
    heaviest: Option<(u32, Alias)>,
    /// The weight of each slot, scaled so that the mean weight is 1.
    scaled: Box<[f64]>,
}

impl Sampler {
    pub(super) fn new<A, S>(candidates: Candidates<'_, A, S>) -> Self {
        let weights: Vec<u32> = candidates.iter().map(|(_, member)| member.share).collect();
        let positions = if weights.len() == candidates.members().len() {
            Box::default()
        } else {
            candidates
                .iter()
                .map(|(position, _)| position as u32)
                .collect()
        };
        Self {
            len: weights.len() as u32,
            positions,
            weights: Weights::new(&weights),
        }
    }

    /// Returns how many candidates there are.
    #[inline]
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    pub(super) fn position(&self, slot: u32) -> usize {
        if self.positions.is_empty() {
            slot as usize
        } else {
            self.positions[slot as usize] as usize
        }
    }

    /// Returns the slot's weight, scaled so that the mean weight is 1.
    #[inline]
    pub(super) fn weight(&self, slot: u32) -> f64 {
        self.weights
            .as_ref()
            .map_or(1.0, |weights| weights.scaled[slot as usize])
    }

    /// Returns whether all members are candidates of one weight. Then slots are positions.
    pub(super) fn is_plain(&self) -> bool {
        self.weights.is_none() && self.positions.is_empty()
    }

    /// Draws a slot. There must be at least one.
    #[inline]
    pub(super) fn draw(&self, rng: &mut Rng) -> u32 {
        match &self.weights {
            None => rng.below(self.len),
            Some(weights) => weights.alias.draw(rng),
        }
    }

    /// Draws a slot whose position is still among the `candidates`.
    ///
    /// Expected cost: O(1) while most of them are left, O(n) when few are.
    pub(super) fn draw_among<A, S>(
        &self,
        candidates: Candidates<'_, A, S>,
        rng: &mut Rng,
    ) -> Option<u32> {
        self.draw_another(&[], candidates, rng)
    }

    /// Draws a slot outside `known`, as if the slots in `known` had no weight.
    ///
    /// Expected cost: as [`draw_among`](Self::draw_among).
    pub(super) fn draw_another<A, S>(
        &self,
        known: &[u32],
        candidates: Candidates<'_, A, S>,
        rng: &mut Rng,
    ) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let narrowed = candidates.is_narrowed();
        let left = |slot: &u32| {
            !known.contains(slot) && (!narrowed || candidates.contains(self.position(*slot)))
        };
        for _ in 0..DRAWS_BEFORE_SCAN {
            let slot = self.draw_without(known, rng);
            if left(&slot) {
                return Some(slot);
            }
        }
        // Few are left, or little weight is. Two looks draw exactly.
        let rest = || (0..self.len).filter(left);
        let sum: f64 = rest().map(|slot| self.weight(slot)).sum();
        let mut drawn = rng.unit() * sum;
        let found = rest().find(|&slot| {
            drawn -= self.weight(slot);
            drawn < 0.0
        });
        found.or_else(|| rest().next_back())
    }

    /// Draws a slot, but never the heaviest one if it is in `known`: it might come again and again.
    fn draw_without(&self, known: &[u32], rng: &mut Rng) -> u32 {
        match &self.weights {
            Some(Weights {
                heaviest: Some((slot, rest)),
                ..
            }) if known.contains(slot) => rest.draw(rng),
            _ => self.draw(rng),
        }
    }
}

impl Weights {
    /// Returns `None` where all weights are the same.
    fn new(weights: &[u32]) -> Option<Self> {
        let first = *weights.first()?;
        if weights.iter().all(|&weight| weight == first) {
            return None;
        }
        let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let mean = sum as f64 / weights.len() as f64;
        let heaviest = weights
            .iter()
            .position(|&weight| u64::from(weight) * 2 > sum)
            .map(|slot| {
                let mut rest = weights.to_vec();
                rest[slot] = 0;
                (slot as u32, Alias::new(&rest))
            });
        Some(Self {
            alias: Alias::new(weights),
            heaviest,
            scaled: weights.iter().map(|&w| f64::from(w) / mean).collect(),
        })
    }
}

/// Vose's alias table: one column for each slot, each shared by at most two slots.
///
/// Source: Vose, "A Linear Algorithm for Generating Random Numbers with a Given Distribution", IEEE
/// Transactions on Software Engineering 17(9), 1991.
#[derive(Debug)]
struct Alias(Box<[Column]>);

#[derive(Clone, Copy, Debug)]
struct Column {
    /// A random number below this, of 2^32, draws the column's own slot; any other draws `other`.
    own: u32,
    other: u32,
}

impl Alias {
    /// Builds the table. At least one weight must not be 0.
    fn new(weights: &[u32]) -> Self {
        let n = weights.len();
        let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        // In exact integers: each column holds `sum`, each slot brings `weight * n`.
        let mut share: Vec<u128> = weights.iter().map(|&w| w as u128 * n as u128).collect();
        let sum = u128::from(sum);
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..n).partition(|&slot| share[slot] < sum);
        let mut columns: Vec<Column> = (0..n as u32)
            .map(|slot| Column {
                own: u32::MAX,
                other: slot,
            })
            .collect();
        while let (Some(&from), Some(to)) = (large.last(), small.pop()) {
            columns[to] = Column {
                own: ((share[to] << 32) / sum) as u32,
                other: from as u32,
            };
            share[from] -= sum - share[to];
            if share[from] < sum {
                large.pop();
                small.push(from);
            }
        }
        Self(columns.into())
    }

    #[inline]
    fn draw(&self, rng: &mut Rng) -> u32 {
        let bits = rng.next();
        let slot = scale((bits >> 32) as u32, self.0.len() as u32);
        let column = self.0[slot as usize];
        if (bits as u32) < column.own {
            slot
        } else {
            column.other
        }
    }
}

/// Enough draws to make a scan rare while one slot in eight is left.
const DRAWS_BEFORE_SCAN: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The columns of a table hold exactly the weights, to within 2^-32 a column.
        #[test]
        fn columns_hold_the_weights(weights in prop::collection::vec(0_u32.., 1..40)) {
            prop_assume!(weights.iter().any(|&weight| weight > 0));
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let alias = Alias::new(&weights);
            let mut shares = vec![0.0; weights.len()];
            for (slot, column) in alias.0.iter().enumerate() {
                let own = if column.other as usize == slot { 1.0 } else { f64::from(column.own) / 2_f64.powi(32) };
                shares[slot] += own / weights.len() as f64;
                shares[column.other as usize] += (1.0 - own) / weights.len() as f64;
            }
            for (share, &weight) in shares.iter().zip(&weights) {
                prop_assert!((share - f64::from(weight) / sum).abs() < 1e-8);
                prop_assert!(weight > 0 || *share == 0.0);
            }
        }
    }
}
