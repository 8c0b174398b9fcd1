use tower::load::Load;

use super::{Candidates, Choice, PickContext, Policy};
use crate::{
    clock::PickClock,
    member::Member,
    metric::{Cost, or_infinite},
};

/// Picks the least loaded of all members.
///
/// Members are compared by load for their weight, see [`Cost::cost_for`]. Ties are broken at
/// random, in proportion to the weights. A load that is not a number counts as infinite.
///
/// Use it for up to some hundred members that one client has to itself. With 50 servers of which
/// one is ten times slower, at load .7, its p99 is 4.8 service times, and that of p2c is 7.1. Where
/// many clients share the servers, all of them see the same few as idle and crowd there: use
/// [`P2c`](crate::P2c).
///
/// Cost: **O(n)**, about a nanosecond a member; no allocation.
#[derive(Clone, Debug, Default)]
pub struct LeastLoaded {
    seed: Option<u64>,
}

/// The table of [`LeastLoaded`].
#[derive(Debug)]
pub struct LeastLoadedTable {
    /// The weight at each position; `None` if all members are candidates of one weight.
    weights: Option<Box<[u32]>>,
    mean_weight: f64,
}

impl LeastLoaded {
    /// Breaks ties with a fixed seed, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self { seed: Some(seed) }
    }
}

#[diagnostic::do_not_recommend]
impl<A, S, Req> Policy<A, S, Req> for LeastLoaded
where
    A: 'static,
    S: Load<Metric: Cost>,
{
    type Table = LeastLoadedTable;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        _: Option<&LeastLoadedTable>,
    ) -> LeastLoadedTable {
        let members = candidates.members();
        let is_plain = |(position, member): (usize, &Member<A, S>)| {
            candidates.contains(position) && member.share == members[0].share
        };
        let weights = || members.iter().map(|member| member.share).collect();
        let shares = candidates.iter().map(|(_, member)| f64::from(member.share));
        let sum: f64 = shares.sum();
        LeastLoadedTable {
            weights: (!members.iter().enumerate().all(is_plain)).then(weights),
            mean_weight: sum / candidates.iter().count() as f64,
        }
    }

    #[inline]
    fn pick(
        &self,
        table: &LeastLoadedTable,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        let members = candidates.members();
        let clock = PickClock::new();
        let load = |position: usize| members[position].service.load();
        if S::Metric::TIMED {
            (0..members.len()).for_each(|position| load(position).advance_clock(&clock));
        }
        let is_exact = !S::Metric::TIMED && S::Metric::most_equal_to(1.0) == 1.0;
        let choice = match &table.weights {
            None if is_exact && !candidates.is_narrowed() => lightest(members, cx),
            weights => lightest_by_weight::<S::Metric, _>(members.len(), cx, |position| {
                let (weight, scaled) = match weights {
                    None => (1, 1.0),
                    Some(weights) => {
                        let weight = weights[position];
                        (weight, f64::from(weight) / table.mean_weight)
                    }
                };
                let cost = || load(position).cost_at(scaled, &clock);
                candidates.contains(position).then(|| (cost(), weight))
            }),
        };
        choice.map_or(Choice::Nobody, Choice::Member)
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}

/// Returns a position of least load; all ties are equally likely.
#[inline]
fn lightest<A, S, Req>(members: &[Member<A, S>], cx: &mut PickContext<'_, Req>) -> Option<usize>
where
    S: Load<Metric: PartialOrd>,
{
    let mut least = members.first()?.service.load();
    let (mut best, mut ties) = (0, 1_u32);
    for (position, member) in members.iter().enumerate().skip(1) {
        let load = member.service.load();
        let is_nan = |load: &S::Metric| load.partial_cmp(load).is_none();
        if load == least || (is_nan(&load) && is_nan(&least)) {
            ties += 1;
        } else if load < least || is_nan(&least) {
            (best, least, ties) = (position, load, 1);
        }
    }
    if ties == 1 {
        return Some(best);
    }
    if ties as usize == members.len() {
        return Some(cx.below(ties) as usize);
    }
    // A second look finds the one drawn. If loads moved meanwhile, the first of the ties is taken.
    let mut skipped = cx.below(ties);
    for (position, member) in members.iter().enumerate().skip(best) {
        if member.service.load() == least {
            if skipped == 0 {
                return Some(position);
            }
            skipped -= 1;
        }
    }
    Some(best)
}

/// Returns a position below `len` of least cost; ties are drawn in proportion to their weights.
///
/// `cost` returns the cost and weight of a position, or `None` if it may not be chosen.
fn lightest_by_weight<M: Cost, Req>(
    len: usize,
    cx: &mut PickContext<'_, Req>,
    cost: impl Fn(usize) -> Option<(f64, u32)>,
) -> Option<usize> {
    let costs = || {
        (0..len).filter_map(|position| {
            let (cost, weight) = cost(position)?;
            Some((position, or_infinite(cost), u64::from(weight)))
        })
    };
    let (lightest, least, _) = costs().reduce(|a, b| if b.1 < a.1 { b } else { a })?;
    let most_equal = M::most_equal_to(least);
    // One pass draws among the ties: each replaces the one before in proportion to its weight.
    let (mut best, mut ties) = (None, 0_u64);
    for (position, cost, weight) in costs() {
        if cost <= most_equal {
            ties += weight;
            if best.is_none() || cx.below_u64(ties) < weight {
                best = Some(position);
            }
        }
    }
    // If loads moved meanwhile, none of them may be that low any more.
    best.or(Some(lightest))
}
