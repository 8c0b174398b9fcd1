use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Candidates, Choice, PickContext, Policy};
use crate::random::{Rng, entropy};

/// Picks the members in turn; all handles share one position.
///
/// The start is random, so many clients that start together do not march in step. An update keeps
/// the phase: the next pick is the first remaining member after the one picked last. Weights do not
/// change the turns, except that a member of weight 0 is draining and gets none. For shares, use
/// [`WeightedRoundRobin`](crate::WeightedRoundRobin).
///
/// Cost: one atomic increment, **O(1)**.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    seed: Option<u64>,
}

/// The table of [`RoundRobin`].
#[derive(Debug)]
pub struct RoundRobinTable {
    /// The candidates' positions and ids, in the order of joining.
    turns: Box<[(usize, u64)]>,
    next: AtomicUsize,
}

impl RoundRobin {
    /// Starts at a place that the seed determines, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    fn start<T>(&self, turns: &[(usize, T)]) -> usize {
        let seed = self.seed.unwrap_or_else(entropy);
        Rng::new(seed, 0).below(turns.len() as u32) as usize
    }
}

impl RoundRobinTable {
    /// Returns the id of the member whose turn it is.
    fn next_id(&self) -> Option<u64> {
        let next = self.next.load(Relaxed).checked_rem(self.turns.len())?;
        Some(self.turns[next].1)
    }
}

#[diagnostic::do_not_recommend]
impl<A, S, Req> Policy<A, S, Req> for RoundRobin {
    type Table = RoundRobinTable;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&RoundRobinTable>,
    ) -> RoundRobinTable {
        let turns: Box<[(usize, u64)]> = candidates
            .iter()
            .map(|(position, member)| (position, member.id))
            .collect();
        let next = match previous.and_then(RoundRobinTable::next_id) {
            // Ids ascend. Past the last of them the first one's turn comes, because `pick` takes
            // the remainder.
            Some(id) => turns.partition_point(|&(_, other)| other < id),
            None => self.start(&turns),
        };
        RoundRobinTable {
            turns,
            next: AtomicUsize::new(next),
        }
    }

    #[inline]
    fn pick(
        &self,
        table: &RoundRobinTable,
        candidates: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        let n = table.turns.len();
        // Relaxed: no other memory is published through the position.
        let Some(turn) = table.next.fetch_add(1, Relaxed).checked_rem(n) else {
            return Choice::Nobody;
        };
        if !candidates.is_narrowed() {
            return Choice::Member(table.turns[turn].0);
        }
        // From here on the pick counts by itself, because other threads take turns, too.
        let mut rest = table.turns[turn..].iter().chain(&table.turns[..turn]);
        let left = rest.find(|(position, _)| candidates.contains(*position));
        left.map_or(Choice::Nobody, |&(position, _)| Choice::Member(position))
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}
