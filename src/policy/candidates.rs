use std::fmt;

use crate::member::Member;

/// Lists the members that a policy may choose from, for a table or for one pick.
///
/// Positions are always those of the snapshot's members, even after narrowing.
pub struct Candidates<'a, A, S> {
    members: &'a [Member<A, S>],
    filter: Option<Filter<'a>>,
}

/// Holds a set of positions, one bit each.
///
/// Used by [`Candidates::only`]. Collect it from an iterator of positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(Vec<u64>);

/// Narrows candidates, in addition to the filter in `before`.
#[derive(Clone, Copy, Debug)]
struct Filter<'a> {
    mask: &'a Mask,
    kind: Kind,
    /// Whether this filter or one before it leaves out members that the table was built with.
    is_narrowed: bool,
    before: Option<&'a Self>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Only,
    Without,
}

impl<'a, A, S> Candidates<'a, A, S> {
    #[inline]
    pub(crate) const fn new(members: &'a [Member<A, S>]) -> Self {
        Self {
            members,
            filter: None,
        }
    }

    /// Leaves out the members in `passed`, if there are any.
    pub(crate) fn without(members: &'a [Member<A, S>], passed: Option<&'a Mask>) -> Self {
        let filter = passed.map(|mask| Filter {
            mask,
            kind: Kind::Without,
            is_narrowed: true,
            before: None,
        });
        Self { members, filter }
    }

    /// Narrows the candidates to those in `mask`, for a policy that calls another one.
    ///
    /// A table that is built from narrowed candidates knows no other members. For a table, mask all
    /// members of a group, available or not: the other policy then treats the group as the whole
    /// set. For a pick, any mask will do. With the mask of the table, use
    /// [`as_built`](Self::as_built). No allocation, **O(1)**.
    #[must_use]
    pub fn only<'b>(&'b self, mask: &'b Mask) -> Candidates<'b, A, S> {
        self.narrow(mask, true)
    }

    /// Narrows the candidates of a pick by the mask that the table was built with.
    ///
    /// The other policy then need not check for each member whether it may be chosen. With a mask
    /// other than the table's, it may choose a member outside the mask. No allocation, **O(1)**.
    #[must_use]
    pub fn as_built<'b>(&'b self, mask: &'b Mask) -> Candidates<'b, A, S> {
        self.narrow(mask, false)
    }

    fn narrow<'b>(&'b self, mask: &'b Mask, is_narrowed: bool) -> Candidates<'b, A, S> {
        Candidates {
            members: self.members,
            filter: Some(Filter {
                mask,
                kind: Kind::Only,
                is_narrowed: is_narrowed || self.is_narrowed(),
                before: self.filter.as_ref(),
            }),
        }
    }

    /// Returns every member of the snapshot, whether it is a candidate or not.
    #[inline]
    #[must_use]
    pub const fn members(&self) -> &'a [Member<A, S>] {
        self.members
    }

    /// Returns whether the member at `position` may be chosen. **O(1)**.
    #[must_use]
    pub fn contains(&self, position: usize) -> bool {
        self.members.get(position).is_some_and(Member::is_candidate)
            && self.filters().all(|filter| filter.keeps(position))
    }

    /// Returns whether the member at `position` is draining, and otherwise may be chosen. **O(1)**.
    ///
    /// It is no candidate, but [`Choice::EvenDraining`](crate::Choice::EvenDraining) chooses it.
    #[must_use]
    pub fn is_draining(&self, position: usize) -> bool {
        self.members
            .get(position)
            .is_some_and(|member| member.drains)
            && self.filters().all(|filter| filter.keeps(position))
    }

    /// Returns whether the member at `position` is in every [`only`](Self::only) mask. **O(1)**.
    ///
    /// Unlike [`contains`](Self::contains), it ignores whether the member is available.
    #[must_use]
    pub fn includes(&self, position: usize) -> bool {
        let mut masks = self.filters().filter(|filter| filter.kind == Kind::Only);
        masks.all(|filter| filter.keeps(position))
    }

    /// Returns whether members have been passed over since the table was built.
    ///
    /// While this is false, the candidates are exactly those that the table was built with. A
    /// policy that keeps them in its table need not call [`contains`](Self::contains).
    #[inline]
    #[must_use]
    pub const fn is_narrowed(&self) -> bool {
        match &self.filter {
            Some(filter) => filter.is_narrowed,
            None => false,
        }
    }

    /// Iterates over the candidates and their positions. **O(n)** in all.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &'a Member<A, S>)> + use<'a, A, S> {
        let candidates = *self;
        self.members
            .iter()
            .enumerate()
            .filter(move |(position, _)| candidates.contains(*position))
    }

    fn filters(&self) -> impl Iterator<Item = &Filter<'a>> {
        std::iter::successors(self.filter.as_ref(), |filter| filter.before)
    }
}

impl Filter<'_> {
    fn keeps(&self, position: usize) -> bool {
        self.mask.contains(position) == (self.kind == Kind::Only)
    }
}

impl Mask {
    /// Makes an empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a position; returns whether it is new.
    pub fn insert(&mut self, position: usize) -> bool {
        let (word, bit) = (position / 64, 1 << (position % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    /// Removes a position.
    pub fn remove(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word &= !(1 << (position % 64));
        }
    }

    /// Returns whether no position has been added.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of positions in the set.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Returns whether the position is in the set.
    #[must_use]
    pub fn contains(&self, position: usize) -> bool {
        self.0
            .get(position / 64)
            .is_some_and(|word| word & (1 << (position % 64)) != 0)
    }
}

impl FromIterator<usize> for Mask {
    fn from_iter<I: IntoIterator<Item = usize>>(positions: I) -> Self {
        let mut mask = Self::new();
        mask.extend(positions);
        mask
    }
}

impl Extend<usize> for Mask {
    fn extend<I: IntoIterator<Item = usize>>(&mut self, positions: I) {
        for position in positions {
            self.insert(position);
        }
    }
}

impl<A, S> Clone for Candidates<'_, A, S> {
    #[inline]
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
