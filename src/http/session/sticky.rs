use std::{collections::HashMap, fmt, sync::Arc};

use http::Request;
use tokio::time::Instant;

use super::cookie::{CookieSettings, Token};
use crate::{
    endpoint::Address,
    policy::{Candidates, Choice, PickContext, Policy, Rebuild},
};

/// Follows the cookies of a [`SessionLayer`](super::SessionLayer), and asks another policy for the
/// rest.
#[derive(Clone)]
pub struct Sticky<P> {
    pub(super) policy: P,
    pub(super) shared: Arc<CookieSettings>,
}

/// The table of [`Sticky`].
pub struct StickyTable<T> {
    inner: T,
    positions: HashMap<Token, u32>,
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
        let members = candidates.members().iter();
        let tokens = members.map(|member| self.shared.token(member.endpoint()));
        StickyTable {
            inner,
            positions: tokens.zip(0..).collect(),
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
        let positions = self.shared.tokens_of(request);
        let mut positions = positions.filter_map(|token| table.positions.get(&token));
        match positions.find(|&&position| candidates.contains(position as usize)) {
            Some(&position) => Choice::Member(position as usize),
            None => self.policy.pick(&table.inner, candidates, cx),
        }
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
