use tower::load::Load;

use super::{Candidates, Choice, PickContext, Policy, sampler::Sampler};
use crate::{
    clock::PickClock,
    metric::{Cost, or_infinite},
    random::Rng,
};

/// Picks the less loaded of two members drawn at random: the power of two choices.
///
/// Members are drawn in proportion to their weights and compared by load for their weight, see
/// [`Cost::cost_for`]. The draws are distinct. A tie goes to the first one drawn, so equal loads
/// spread evenly. A load that is not a number counts as infinite.
///
/// Cost: one random number (more if weights differ) and two reads of [`Load::load`], no allocation,
/// **O(1)**. Building the table is O(n).
///
/// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10),
/// 2001.
#[derive(Clone, Debug)]
pub struct P2c {
    choices: usize,
    seed: Option<u64>,
}

/// The table of [`P2c`].
#[derive(Debug)]
pub struct P2cTable {
    /// The number of members if the pick is plain, otherwise 0.
    ///
    /// It is plain if all members are candidates of one weight and two of them are drawn.
    plain: u32,
    sampler: Sampler,
}

impl P2c {
    /// Draws with a fixed seed, so that a run can be repeated.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed: Some(seed),
            ..Self::default()
        }
    }

    /// Sets how many members are drawn and compared, 1 to 8. Default 2.
    ///
    /// The second choice brings nearly all of the gain. Each further one costs a draw and a read of
    /// a load. 1 is a weighted random pick. To compare all members, use
    /// [`LeastLoaded`](crate::LeastLoaded).
    ///
    /// # Panics
    ///
    /// If `choices` is 0 or more than 8.
    #[must_use]
    #[track_caller]
    pub fn choices(mut self, choices: usize) -> Self {
        assert!(
            (1..=MOST_CHOICES).contains(&choices),
            "p2c compares 1 to {MOST_CHOICES} choices, not {choices}"
        );
        self.choices = choices;
        self
    }

    /// Compares distinct candidates, for any number of choices, weights and candidates.
    #[inline(never)]
    fn best_of<A, S>(
        &self,
        sampler: &Sampler,
        candidates: Candidates<'_, A, S>,
        rng: &mut Rng,
    ) -> Option<u32>
    where
        S: Load<Metric: Cost>,
    {
        let mut drawn = [u32::MAX; MOST_CHOICES];
        let mut loads = [const { None }; MOST_CHOICES];
        let clock = PickClock::new();
        for choice in 0..self.choices.min(sampler.len() as usize) {
            let known = &drawn[..choice];
            let Some(slot) = sampler.draw_another(known, candidates, rng) else {
                break;
            };
            drawn[choice] = slot;
            let load = candidates.members()[sampler.position(slot)].service.load();
            load.advance_clock(&clock);
            loads[choice] = Some(load);
        }
        let mut best = None;
        for (slot, load) in drawn.into_iter().zip(loads) {
            let Some(load) = load else { break };
            let cost = or_infinite(load.cost_at(sampler.weight(slot), &clock));
            // A draw is in proportion to the weights, so the first of equals is too.
            if best.is_none_or(|(_, least)| S::Metric::most_equal_to(cost) < least) {
                best = Some((slot, cost));
            }
        }
        best.map(|(slot, _)| slot)
    }
}

impl Default for P2c {
    fn default() -> Self {
        Self {
            choices: 2,
            seed: None,
        }
    }
}

#[diagnostic::do_not_recommend]
impl<A, S, Req> Policy<A, S, Req> for P2c
where
    A: 'static,
    S: Load<Metric: Cost>,
{
    type Table = P2cTable;

    fn table(&self, candidates: Candidates<'_, A, S>, _: Option<&P2cTable>) -> P2cTable {
        let sampler = Sampler::new(candidates);
        let plain = self.choices == 2 && sampler.len() >= 2 && sampler.is_plain();
        P2cTable {
            plain: if plain { sampler.len() } else { 0 },
            sampler,
        }
    }

    #[inline]
    fn pick(
        &self,
        table: &P2cTable,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        if table.plain == 0 || candidates.is_narrowed() {
            let slot = self.best_of(&table.sampler, candidates, cx.rng());
            return slot.map_or(Choice::Nobody, |slot| {
                Choice::Member(table.sampler.position(slot))
            });
        }
        let (first, second) = cx.rng().distinct_pair(table.plain);
        let load = |position: u32| candidates.members()[position as usize].service.load();
        let second_wins = if S::Metric::TIMED {
            let clock = PickClock::new();
            let (first_load, second_load) = (load(first), load(second));
            first_load.advance_clock(&clock);
            second_load.advance_clock(&clock);
            let first_cost = first_load.cost_at(1.0, &clock);
            let second_cost = second_load.cost_at(1.0, &clock);
            // Where no weights are to decide, a margin in proportion to the cost would only make
            // the comparison coarser. One that is there at cost zero is for noise.
            let most_equal = if S::Metric::most_equal_to(0.0) > 0.0 {
                S::Metric::most_equal_to(second_cost)
            } else {
                second_cost
            };
            most_equal < first_cost || first_cost.is_nan()
        } else {
            let first_load = load(first);
            // A load that is not a number does not even equal itself. It loses.
            match load(second).partial_cmp(&first_load) {
                Some(order) => order.is_lt(),
                None => first_load.partial_cmp(&first_load).is_none(),
            }
        };
        Choice::Member(if second_wins { second } else { first } as usize)
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}

/// The length of the arrays that keep a pick's draws without an allocation.
const MOST_CHOICES: usize = 8;
