use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Candidates, Choice, PickContext, Policy};
use crate::random::{Rng, entropy};

/// Picks the members in turn; all handles share one position.
///
/// The start is random, so many clients that start together do not march in step. An update keeps
/// the phase: the next pick is the member whose turn it is, or, if that has left, the one after it.
/// A new start is drawn if both have left, before the first pick, and when the set has doubled
/// since the last draw. Otherwise all clients of a set that is replaced would go on with the same
/// member.
///
/// Weights do not change the turns, except that a member of weight 0 is draining and gets none. For
/// shares, use [`WeightedRoundRobin`](crate::WeightedRoundRobin).
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
    /// What `next` was when this table was built.
    first: usize,
    drawn: Drawn,
}

/// The draw of the start that the turns go on from.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    /// How many candidates there were.
    among: usize,
    /// How many starts have been drawn, this one included.
    draws: u64,
    /// Whether an earlier table has given a turn since.
    has_served: bool,
}

impl RoundRobin {
    /// Starts at a place that the seed determines, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }

    /// Draws start number `number` among `n` turns.
    fn start(&self, number: u64, n: usize) -> usize {
        let seed = self.seed.unwrap_or_else(entropy);
        Rng::new(seed, number).below(n as u32) as usize
    }
}

impl RoundRobinTable {
    /// Returns the place among `turns` to go on from; `None` if a start must be drawn.
    fn place(&self, turns: &[(usize, u64)]) -> Option<usize> {
        let has_doubled = turns.len() >= 2 * self.drawn.among;
        if !self.has_served() || has_doubled {
            return None;
        }
        let next = self.next.load(Relaxed);
        [next, next.wrapping_add(1)].into_iter().find_map(|turn| {
            let (_, id) = self.turns[turn.checked_rem(self.turns.len())?];
            // Ids ascend.
            turns.binary_search_by_key(&id, |&(_, id)| id).ok()
        })
    }

    /// Returns whether somebody has had a turn since the start was drawn.
    fn has_served(&self) -> bool {
        self.drawn.has_served || self.next.load(Relaxed) != self.first
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
        let n = turns.len();
        let kept = previous.and_then(|table| Some((table.place(&turns)?, table)));
        let (first, drawn) = match kept {
            Some((place, table)) => {
                let has_served = true;
                (
                    place,
                    Drawn {
                        has_served,
                        // A set that has shrunk may double again.
                        among: table.drawn.among.min(n),
                        ..table.drawn
                    },
                )
            }
            None => {
                let draws = previous.map_or(0, |table| table.drawn.draws);
                let drawn = Drawn {
                    among: n,
                    // In an empty set nothing is drawn.
                    draws: draws + u64::from(n > 0),
                    has_served: false,
                };
                (self.start(draws, n), drawn)
            }
        };
        RoundRobinTable {
            turns,
            next: AtomicUsize::new(first),
            first,
            drawn,
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
