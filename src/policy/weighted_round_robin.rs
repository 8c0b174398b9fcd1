use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Candidates, Choice, PickContext, Policy, sampler::Sampler, stride::Stride};
use crate::random::{Rng, entropy};

/// Picks the members in turn, each as often as its weight says.
///
/// Turns are interleaved: weights 5, 1, 1 do not give five picks of the first in a burst. The start
/// is random, so the first pick of a client is a member in proportion to its weight. All handles
/// share one position.
///
/// If members have been passed over, as in a second try, a pick does not wait for the turn of
/// another one. It draws among those that are left, in proportion to their weights.
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
    /// Knows the position of each entry, and draws among those that are left.
    sampler: Sampler,
    sequence: AtomicU64,
    /// What `sequence` was when the start was drawn.
    drawn: u64,
}

impl WeightedRoundRobin {
    /// Starts at a place that the seed determines, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    /// Draws a start at which somebody has a turn.
    ///
    /// Otherwise the first turn would often be that of the member after a place that is passed
    /// over, whatever its weight.
    fn start(&self, stride: &Stride) -> u64 {
        let mut rng = Rng::new(self.seed.unwrap_or_else(entropy), 0);
        // Half of the range, so that no run reaches its end.
        let mut draw = || rng.next() >> 1;
        let first = draw();
        let mut starts =
            std::iter::once(first).chain(std::iter::repeat_with(draw).take(MOST_DRAWS));
        let is_turn = |&start: &u64| stride.entry_at(start).is_some();
        starts.find(is_turn).unwrap_or(first)
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
        let stride = Stride::new(&weights);
        let (sequence, drawn) = match previous.map(|p| (p.sequence.load(Relaxed), p.drawn)) {
            Some((sequence, drawn)) if sequence != drawn => (sequence, drawn),
            // Nobody has had a turn since the start was drawn, so it was drawn for another set.
            _ => {
                let start = self.start(&stride);
                (start, start)
            }
        };
        WeightedRoundRobinTable {
            stride,
            sampler: Sampler::new(candidates),
            sequence: AtomicU64::new(sequence),
            drawn,
        }
    }

    #[inline]
    fn pick(
        &self,
        table: &WeightedRoundRobinTable,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        if !candidates.is_narrowed() {
            // Other threads may take the places that this pick would have found, so it makes more
            // than one round.
            for _ in 0..table.stride.places() * ROUNDS {
                if let Some(entry) = table.stride.step(&table.sequence) {
                    return Choice::Member(table.sampler.position(entry));
                }
            }
        }
        let slot = table.sampler.draw_among(candidates, cx.rng());
        slot.map_or(Choice::Nobody, |slot| {
            Choice::Member(table.sampler.position(slot))
        })
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}

const ROUNDS: usize = 2;

/// Of four places, three are passed over at worst.
const MOST_DRAWS: usize = 1000;
