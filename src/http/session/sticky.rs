use std::{collections::HashMap, fmt, sync::Arc};

use http::Request;
use tokio::time::Instant;

use super::cookie::{CookieSettings, Token};
use crate::{
    endpoint::Address,
    member::Member,
    metric::TotalInFlight,
    policy::{Candidates, Choice, PickContext, Policy, Rebuild},
};

/// Follows the cookies of a [`SessionLayer`](super::SessionLayer), and asks another policy for the
/// rest.
#[derive(Clone)]
pub struct Sticky<P> {
    pub(super) policy: P,
    pub(super) shared: Arc<CookieSettings>,
    pub(super) home: Home,
}

/// Follows the cookies of sessions only while their endpoint has no more than its share.
///
/// Made by [`Sticky::bounded`].
#[derive(Clone, Debug)]
pub struct BoundedSticky<P> {
    sticky: Sticky<P>,
    bound: f64,
}

/// How long a session stays at its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    EvenDraining,
    WhileAvailable,
}

/// The table of [`Sticky`].
pub struct StickyTable<T> {
    inner: T,
    positions: Arc<HashMap<Token, u32>>,
    /// The members that `positions` was made for.
    ids: Box<[u64]>,
    /// The sum of the weights of all candidates, and how many they are.
    weights: f64,
    candidates: usize,
}

impl<P> Sticky<P> {
    /// Bounds what cookies can send to one endpoint: to `bound` times its share of the requests in
    /// flight, as in [`hash::Bounded`](crate::hash::Bounded).
    ///
    /// A request beyond that goes where the wrapped policy sends it, and its session stays there.
    /// Reads the counts of `each(PendingRequestsLayer::default().with_total())`. With few requests
    /// in flight, a bound below 2 moves sessions for no other reason than chance.
    ///
    /// # Panics
    ///
    /// If `bound` is below 1 or not finite.
    #[must_use]
    #[track_caller]
    pub fn bounded(self, bound: f64) -> BoundedSticky<P> {
        assert!(
            bound >= 1.0 && bound.is_finite(),
            "a bound is at least 1 and finite, not {bound}"
        );
        BoundedSticky {
            sticky: self,
            bound,
        }
    }

    /// Returns the choice of the home of a request's session, if `has_room` accepts it.
    fn home<T, A, S, B>(
        &self,
        table: &StickyTable<T>,
        candidates: Candidates<'_, A, S>,
        request: &Request<B>,
        has_room: impl Fn(usize) -> bool,
    ) -> Option<Choice> {
        let tokens = self.shared.tokens_of(request);
        let positions = tokens.filter_map(|token| table.positions.get(&token));
        let homes = positions.map(|&position| position as usize);
        let mut choices = homes.filter_map(|position| match self.home {
            _ if candidates.contains(position) => Some((position, Choice::Member(position))),
            Home::EvenDraining if candidates.is_draining(position) => {
                Some((position, Choice::EvenDraining(position)))
            }
            _ => None,
        });
        choices
            .find(|&(position, _)| has_room(position))
            .map(|(_, choice)| choice)
    }
}

impl<P> BoundedSticky<P> {
    /// Returns whether the member has fewer requests in flight than its bounded share.
    fn has_room<T, A, S: TotalInFlight>(
        &self,
        table: &StickyTable<T>,
        members: &[Member<A, S>],
        position: usize,
    ) -> bool {
        let member = &members[position];
        let (service, mean) = (member.service(), table.weights / table.candidates as f64);
        // A draining member has no weight, but sessions.
        let weight = match member.weight() {
            0 => mean,
            weight => f64::from(weight),
        };
        let all = service.total_in_flight() as f64 + 1.0;
        let share = (self.bound * all * weight / table.weights).ceil().max(1.0);
        // Nobody else is there if no candidate has a weight.
        table.candidates == 0 || (service.in_flight() as f64) < share
    }
}

impl<P, A, S, B> Policy<A, S, Request<B>> for Sticky<P>
where
    P: Policy<A, S, Request<B>>,
    A: Address,
{
    type Table = StickyTable<P::Table>;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&Self::Table>,
    ) -> Self::Table {
        let inner = self
            .policy
            .table(candidates, previous.map(|table| &table.inner));
        let members = candidates.members();
        let ids: Box<[u64]> = members.iter().map(|member| member.id).collect();
        let tokens = members.iter().zip(0..).flat_map(|(member, position)| {
            let tokens = self.shared.tokens(member.endpoint());
            tokens.map(move |token| (token, position))
        });
        let positions = match previous.filter(|table| table.ids == ids) {
            Some(table) => table.positions.clone(),
            None => Arc::new(tokens.collect()),
        };
        let weights = candidates.iter().map(|(_, m)| f64::from(m.weight()));
        StickyTable {
            inner,
            positions,
            ids,
            weights: weights.sum(),
            candidates: candidates.iter().count(),
        }
    }

    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Request<B>>,
    ) -> Choice {
        let Some(request) = cx.request() else {
            return Choice::NeedsRequest;
        };
        self.home(table, candidates, request, |_| true)
            .unwrap_or_else(|| self.policy.pick(&table.inner, candidates, cx))
    }

    fn any_will_do(&self) -> bool {
        self.policy.any_will_do()
    }

    fn hash_of(&self, cx: &mut PickContext<'_, Request<B>>) -> Option<u64> {
        self.policy.hash_of(cx)
    }

    fn refresh_at(&self, table: &Self::Table) -> Option<Instant> {
        self.policy.refresh_at(&table.inner)
    }

    fn attach(&self, rebuild: Rebuild) {
        self.policy.attach(rebuild);
    }

    fn seed(&self) -> Option<u64> {
        self.policy.seed()
    }
}

impl<P, A, S, B> Policy<A, S, Request<B>> for BoundedSticky<P>
where
    P: Policy<A, S, Request<B>>,
    A: Address,
    S: TotalInFlight,
{
    type Table = StickyTable<P::Table>;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&Self::Table>,
    ) -> Self::Table {
        self.sticky.table(candidates, previous)
    }

    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Request<B>>,
    ) -> Choice {
        let Some(request) = cx.request() else {
            return Choice::NeedsRequest;
        };
        let has_room = |position| self.has_room(table, candidates.members(), position);
        let home = self.sticky.home(table, candidates, request, has_room);
        home.unwrap_or_else(|| self.sticky.policy.pick(&table.inner, candidates, cx))
    }

    fn any_will_do(&self) -> bool {
        self.sticky.policy.any_will_do()
    }

    fn hash_of(&self, cx: &mut PickContext<'_, Request<B>>) -> Option<u64> {
        self.sticky.policy.hash_of(cx)
    }

    fn refresh_at(&self, table: &Self::Table) -> Option<Instant> {
        self.sticky.policy.refresh_at(&table.inner)
    }

    fn attach(&self, rebuild: Rebuild) {
        self.sticky.policy.attach(rebuild);
    }

    fn seed(&self) -> Option<u64> {
        self.sticky.policy.seed()
    }
}

impl<P: fmt::Debug> fmt::Debug for Sticky<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky")
            .field("policy", &self.policy)
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl<T: fmt::Debug> fmt::Debug for StickyTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StickyTable")
            .field("inner", &self.inner)
            .field("endpoints", &self.positions.len())
            .finish_non_exhaustive()
    }
}
