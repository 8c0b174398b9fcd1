use std::fmt;

use tower::load::Load;

use crate::endpoint::Endpoint;

/// An endpoint and the service that reaches it.
///
/// [`Balance::endpoints`](crate::Balance::endpoints) lists them for a dashboard: what the service measures
/// (`member.service().in_flight()`, `member.service().load()`) stands beside what the endpoint says of itself.
pub struct Member<A, S> {
    pub(crate) endpoint: Endpoint<A>,
    pub(crate) service: S,
    /// In the order of joining; never used twice in one balancer.
    pub(crate) id: u64,
    pub(crate) weight: u32,
    /// The weight that counts now: less than that while the endpoint warms up.
    pub(crate) share: u32,
    pub(crate) candidate: bool,
}

impl<A, S> Member<A, S> {
    /// Returns the endpoint.
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint<A> {
        &self.endpoint
    }

    /// Returns the service that reaches the endpoint, with the load that it measures.
    #[must_use]
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// Returns the weight that this snapshot was built with, which costs no lock to read.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }

    /// Returns the weight that counts now, relative to those of the other members of this snapshot.
    ///
    /// It is the [`weight`](Self::weight), or in [slow start](crate::BalanceLayer::slow_start) a number in proportion to the
    /// weight and to how far the endpoint has warmed up.
    #[must_use]
    pub const fn share(&self) -> u32 {
        self.share
    }

    /// Returns whether the member may be picked: not draining, and available unless all are tried.
    #[must_use]
    pub const fn is_candidate(&self) -> bool {
        self.candidate
    }

    /// Returns the service's load.
    #[must_use]
    pub fn load(&self) -> S::Metric
    where
        S: Load,
    {
        self.service.load()
    }
}

impl<A, S: Clone> Clone for Member<A, S> {
    fn clone(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            service: self.service.clone(),
            ..*self
        }
    }
}

impl<A: fmt::Display, S> fmt::Debug for Member<A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("endpoint", &self.endpoint)
            .field("weight", &self.weight)
            .field("candidate", &self.candidate)
            .finish_non_exhaustive()
    }
}

/// The members that a pick may choose from.
///
/// Positions are those of the slice that [`Policy::table`](crate::Policy::table) saw.
pub struct Candidates<'a, A, S> {
    members: &'a [Member<A, S>],
    passed: Option<&'a Passed>,
}

impl<'a, A, S> Candidates<'a, A, S> {
    pub(crate) const fn new(members: &'a [Member<A, S>], passed: Option<&'a Passed>) -> Self {
        Self { members, passed }
    }

    /// Returns every member of the snapshot, candidates or not.
    #[must_use]
    pub const fn members(&self) -> &'a [Member<A, S>] {
        self.members
    }

    /// Returns whether the member at `position` may be chosen. **O(1)**.
    #[must_use]
    pub fn contains(&self, position: usize) -> bool {
        self.members.get(position).is_some_and(Member::is_candidate)
            && !self.passed.is_some_and(|passed| passed.contains(position))
    }

    /// Returns whether members have been passed over since the table was built.
    ///
    /// While this is false, the candidates are exactly those that the table was built with, and a policy
    /// that lists them there need not ask [`contains`](Self::contains).
    #[must_use]
    pub const fn is_narrowed(&self) -> bool {
        self.passed.is_some()
    }

    /// Iterates over the candidates and their positions. **O(n)** in all.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &'a Member<A, S>)> + use<'a, A, S> {
        let candidates = *self;
        self.members
            .iter()
            .enumerate()
            .filter(move |(position, _)| candidates.contains(*position))
    }
}

impl<A, S> Clone for Candidates<'_, A, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A, S> Copy for Candidates<'_, A, S> {}

impl<A: fmt::Display, S> fmt::Debug for Candidates<'_, A, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The positions that one selection has passed over.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<u64>);

impl Passed {
    /// Adds a position; says whether it is new.
    pub(crate) fn insert(&mut self, position: usize) -> bool {
        let (word, bit) = (position / 64, 1 << (position % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Takes a position out again.
    pub(crate) fn remove(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word &= !(1 << (position % 64));
        }
    }

    fn contains(&self, position: usize) -> bool {
        self.0
            .get(position / 64)
            .is_some_and(|word| word & (1 << (position % 64)) != 0)
    }
}
