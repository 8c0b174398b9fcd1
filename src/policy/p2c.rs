use tower::load::Load;

use super::{Candidates, Choice, Cost, Member, PickContext, Policy, sampler::Sampler};

/// Picks the less loaded of two members drawn at random: the power of two choices.
///
/// Members are drawn in proportion to their weights and compared by load divided by weight. Both draws
/// are distinct; a tie goes to the first, so equal loads spread evenly. A load that is not a number
/// counts as infinite.
///
/// Cost: one random number (more where weights differ) and two reads of [`Load::load`], no
/// allocation, **O(1)**; the table is O(n).
///
/// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
#[derive(Clone, Debug)]
pub struct P2c {
    choices: usize,
    seed: Option<u64>,
}

/// The table of [`P2c`].
#[derive(Debug)]
pub struct P2cTable(Sampler);

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
    /// The second choice brings nearly all of the gain; each further one costs a draw and a read of a
    /// load. 1 is a weighted random pick; to compare them all, take [`LeastLoaded`](crate::LeastLoaded).
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

    /// Compares up to `choices` distinct candidates, for any number of choices and candidates.
    fn best_of<A, S>(
        &self,
        sampler: &Sampler,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, impl Sized>,
    ) -> Option<u32>
    where
        S: Load<Metric: Cost>,
    {
        let mut drawn = [u32::MAX; MOST_CHOICES];
        let mut best = None;
        let mut least = f64::INFINITY;
        for choice in 0..self.choices.min(sampler.len() as usize) {
            let fresh = (0..DRAWS_FOR_ANOTHER)
                .map_while(|_| sampler.draw_among(candidates, cx.rng()))
                .find(|slot| !drawn[..choice].contains(slot));
            let Some(slot) = fresh else { break };
            drawn[choice] = slot;
            let load = relative_load(sampler, candidates, slot);
            if best.is_none() || load < least {
                (best, least) = (Some(slot), load);
            }
        }
        best
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

impl<A, S, Req> Policy<A, S, Req> for P2c
where
    A: 'static,
    S: Load<Metric: Cost>,
{
    type Table = P2cTable;

    fn table(&self, members: &[Member<A, S>], _: Option<&P2cTable>) -> P2cTable {
        P2cTable(Sampler::new(members))
    }

    #[inline]
    fn pick(
        &self,
        P2cTable(sampler): &P2cTable,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        let slot = if candidates.is_narrowed() || self.choices != 2 || sampler.len() < 2 {
            self.best_of(sampler, candidates, cx)
        } else {
            let (first, second) = sampler.draw_pair(cx.rng());
            let first_load = relative_load(sampler, candidates, first);
            let second_load = relative_load(sampler, candidates, second);
            Some(if second_load < first_load {
                second
            } else {
                first
            })
        };
        slot.map_or(Choice::None, |slot| Choice::Member(sampler.position(slot)))
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}

#[inline]
fn relative_load<A, S>(sampler: &Sampler, candidates: Candidates<'_, A, S>, slot: u32) -> f64
where
    S: Load<Metric: Cost>,
{
    let member = &candidates.members()[sampler.position(slot)];
    sampler.relative(slot, member.service.load().cost())
}

/// What the drawn slots of a pick are kept for, without an allocation.
const MOST_CHOICES: usize = 8;

/// A slot that holds half of all the weight is drawn this often in a row once in 65 000 picks.
const DRAWS_FOR_ANOTHER: usize = 16;
