use super::{Candidates, Choice, PickContext, Policy, sampler::Sampler};

/// Picks a member at random, in proportion to the weights.
///
/// It ignores loads, so its queues are the longest of all policies (see [the
/// table](crate::policy#which-one-when)).
///
/// Cost: one random number, **O(1)**.
#[derive(Clone, Debug, Default)]
pub struct Random {
    seed: Option<u64>,
}

/// The table of [`Random`].
#[derive(Debug)]
pub struct RandomTable(Sampler);

impl Random {
    /// Draws with a fixed seed, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }
}

#[diagnostic::do_not_recommend]
impl<A, S, Req> Policy<A, S, Req> for Random {
    type Table = RandomTable;

    fn table(&self, candidates: Candidates<'_, A, S>, _: Option<&RandomTable>) -> RandomTable {
        RandomTable(Sampler::new(candidates))
    }

    #[inline]
    fn pick(
        &self,
        RandomTable(sampler): &RandomTable,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        let slot = if candidates.is_narrowed() || sampler.len() == 0 {
            sampler.draw_among(candidates, cx.rng())
        } else {
            Some(sampler.draw(cx.rng()))
        };
        slot.map_or(Choice::Nobody, |slot| {
            Choice::Member(sampler.position(slot))
        })
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}
