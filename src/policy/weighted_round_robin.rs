use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Candidates, Choice, PickContext, Policy, stride::Stride};
use crate::random::{Rng, entropy};

/// Picks the members in turn, each as often as its weight says.
///
/// Turns are interleaved: weights 5, 1, 1 do not give five picks of the first in a burst. The start
/// is random, so the first pick is not always the heaviest member. All handles share one position.
///
/// Cost: one atomic increment for each turn that is looked at, at most four on average, **O(1)**.
/// Building the table sorts the members.
///
/// Source: gRFC A58, static stride scheduler. In addition, heavy members get several places.
#[derive(Clone, Debug, Default)]
pub struct WeightedRoundRobin {
    seed: Option<u64>,
}

/// The table of [`WeightedRoundRobin`].
#[derive(Debug)]
pub struct WeightedRoundRobinTable {
    stride: Stride,
    positions: Box<[u32]>,
    sequence: AtomicU64,
}

impl WeightedRoundRobin {
    /// Starts at a place that the seed determines, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    fn start(&self) -> u64 {
        // Half of the range, so that no run reaches its end.
        Rng::new(self.seed.unwrap_or_else(entropy), 0).next() >> 1
    }
}

#[diagnostic::do_not_recommend]
impl<A, S, Req> Policy<A, S, Req> for WeightedRoundRobin {
    type Table = WeightedRoundRobinTable;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&WeightedRoundRobinTable>,
    ) -> WeightedRoundRobinTable {
        let weights: Vec<u32> = candidates.iter().map(|(_, member)| member.share).collect();
        let sequence = previous.map_or_else(|| self.start(), |p| p.sequence.load(Relaxed));
        WeightedRoundRobinTable {
            stride: Stride::new(&weights),
            positions: candidates
                .iter()
                .map(|(position, _)| position as u32)
                .collect(),
            sequence: AtomicU64::new(sequence),
        }
    }

    #[inline]
    fn pick(
        &self,
        table: &WeightedRoundRobinTable,
        candidates: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        // Other threads may take the places that this pick would have found, so it makes more than
        // one round.
        for _ in 0..table.stride.places() * ROUNDS {
            let Some(entry) = table.stride.step(&table.sequence) else {
                continue;
            };
            let position = table.positions[entry as usize] as usize;
            if !candidates.is_narrowed() || candidates.contains(position) {
                return Choice::Member(position);
            }
        }
        let first = candidates.iter().next();
        first.map_or(Choice::Nobody, |(position, _)| Choice::Member(position))
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}

/// Two rounds find the one remaining candidate, unless its weight is small. Then the first
/// remaining candidate is picked.
const ROUNDS: usize = 2;
