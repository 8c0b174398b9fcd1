use std::{fmt, sync::Arc};

use super::{key::hash_bytes, keyed_members::KeyedMembers};

/// Decides which members a key belongs to: a ring, a Maglev table or rendezvous hashing.
///
/// Sealed, because it may get more methods.
pub trait HashScheme:
    sealed::Sealed + Clone + Default + fmt::Debug + Send + Sync + 'static
{
    /// The table that is built once for a set of members.
    type Table: Lookup;

    /// Returns whether a table has these settings.
    #[doc(hidden)]
    fn makes(&self, table: &Self::Table) -> bool;

    #[doc(hidden)]
    fn build(
        &self,
        members: &KeyedMembers,
        previous: Option<(&KeyedMembers, &Self::Table)>,
    ) -> Self::Table;
}

/// Finds the members of a key in a table. Sealed, like [`HashScheme`].
pub trait Lookup: sealed::Sealed + fmt::Debug + Send + Sync + 'static {
    #[doc(hidden)]
    type Cursor: Clone + fmt::Debug;

    #[doc(hidden)]
    fn start(&self, hash: u64) -> Self::Cursor;

    /// Yields the members' positions in the key's own order, some more than once.
    #[doc(hidden)]
    fn step(&self, cursor: &mut Self::Cursor) -> Option<usize>;

    /// Finds the first position in the key's own order that is accepted.
    #[doc(hidden)]
    #[inline]
    fn find(&self, hash: u64, mut accept: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut cursor = self.start(hash);
        while let Some(position) = self.step(&mut cursor) {
            if accept(position) {
                return Some(position);
            }
        }
        None
    }

    /// Finds the first positions in the key's own order that are accepted, if that is cheaper than
    /// to find one after the other.
    #[doc(hidden)]
    fn find_first(
        &self,
        hash: u64,
        most: usize,
        accept: impl FnMut(usize) -> bool,
    ) -> Option<Vec<usize>> {
        let _ = (hash, most, accept);
        None
    }
}

/// Maps hashes to the members of one snapshot.
///
/// A position is a member's place in the list that the table was made for: the balancer's members
/// (see [`Balance::with_table`](crate::Balance::with_table)) or the list passed to
/// [`HashPolicy::table_for`](super::HashPolicy::table_for).
#[derive(Debug)]
pub struct HashTable<T> {
    pub(super) lookup: Arc<T>,
    pub(super) members: KeyedMembers,
    seed: u64,
}

/// Iterates over the members of one key, see [`HashTable::order`].
#[derive(Clone, Debug)]
pub struct Order<'a, T: Lookup> {
    table: &'a HashTable<T>,
    cursor: T::Cursor,
    /// How many candidates the last pass, for members without a share, has looked at.
    without_share: usize,
    seen: Seen,
}

/// The positions that an [`Order`] has already yielded.
#[derive(Clone, Debug)]
enum Seen {
    /// A bit for each position.
    Few([u64; INLINE_WORDS]),
    /// The positions met so far, if `Few` has too few bits.
    First {
        len: usize,
        positions: [u32; INLINE_POSITIONS],
        of: usize,
    },
    Many(Box<[u64]>),
}

impl<T: Lookup> HashTable<T> {
    pub(super) fn new<C>(
        scheme: &C,
        members: KeyedMembers,
        seed: u64,
        previous: Option<&Self>,
    ) -> Self
    where
        C: HashScheme<Table = T>,
    {
        // The settings do not change within one balancer, but a caller may pass the table of
        // another policy.
        let same = previous
            .filter(|table| table.members.are_alike(&members) && scheme.makes(&table.lookup));
        let lookup = match (same, previous) {
            // Lookups pass over members that may not be picked, so who these are makes no
            // difference.
            (Some(table), _) => table.lookup.clone(),
            (None, previous) => {
                let previous = previous.map(|table| (&table.members, &*table.lookup));
                Arc::new(scheme.build(&members, previous))
            }
        };
        Self {
            lookup,
            members,
            seed,
        }
    }

    /// Returns the scheme's own table: a ring, slots or scored members.
    ///
    /// It also has the members that may not be picked now.
    pub fn get_ref(&self) -> &T {
        &self.lookup
    }

    /// Returns the position of the member that a key of bytes belongs to.
    ///
    /// `None` if there is no member. Cost: that of a pick.
    #[must_use]
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        self.owner_of_hash(hash_bytes(key, self.seed))
    }

    /// Returns the position of the member that a key with this hash belongs to.
    #[must_use]
    pub fn owner_of_hash(&self, hash: u64) -> Option<usize> {
        self.find(hash, |_| true)
    }

    /// Returns the positions of the first `r` members of a key of bytes.
    ///
    /// They are distinct, and the owner comes first. Fewer than `r` if there are fewer members.
    /// Cost: as [`order`](Self::order).
    pub fn replicas(&self, key: &[u8], r: usize) -> std::iter::Take<Order<'_, T>> {
        self.order(hash_bytes(key, self.seed)).take(r)
    }

    /// Returns the positions of all members in the order of a key with this hash.
    ///
    /// [`HashPolicy::key_hash`](super::HashPolicy::key_hash) returns the hash of a request.
    ///
    /// Each position comes once. The first ones cost about as much as a pick each. The last ones of
    /// many members cost more, because the lookup meets earlier members again. It does not
    /// allocate, with one exception: when more than 32 are asked for out of more than 1 024, it
    /// allocates n / 8 bytes.
    pub fn order(&self, hash: u64) -> Order<'_, T> {
        Order {
            table: self,
            cursor: self.lookup.start(hash),
            without_share: 0,
            seen: Seen::new(self.members.positions()),
        }
    }

    /// Returns the number of members that have a weight and may be picked. **O(n)**.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.candidates().count()
    }

    /// Returns whether no member may be picked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.candidates().next().is_none()
    }

    /// Finds the first accepted positions in the key's own order, if that is cheaper than to find
    /// one after the other, and if there are `most` of them.
    pub(super) fn find_first(
        &self,
        hash: u64,
        most: usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<Vec<usize>> {
        let set_aside = self.members.set_aside();
        let accept = |position| !set_aside.contains(position) && accept(position);
        // Members without a share come last, and only `find` knows them.
        let found = self.lookup.find_first(hash, most, accept)?;
        (found.len() == most).then_some(found)
    }

    /// Finds the first position in the key's own order that is accepted.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut accept: impl FnMut(usize) -> bool) -> Option<usize> {
        let set_aside = self.members.set_aside();
        let found = if set_aside.is_empty() {
            self.lookup.find(hash, &mut accept)
        } else {
            let accept = |position| !set_aside.contains(position) && accept(position);
            self.lookup.find(hash, accept)
        };
        // As in `Order`: members without a share come last.
        found.or_else(|| {
            let mut positions = self
                .members
                .candidates()
                .map(|member| member.position as usize);
            positions.find(|&position| accept(position))
        })
    }
}

impl<T: Lookup> Iterator for Order<'_, T> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let set_aside = self.table.members.set_aside();
        while let Some(position) = self.table.lookup.step(&mut self.cursor) {
            if !set_aside.contains(position) && self.seen.insert(position) {
                return Some(position);
            }
        }
        // With too few points or slots for all members, those without any come last.
        let rest = self.table.members.candidates().skip(self.without_share);
        for member in rest {
            self.without_share += 1;
            if self.seen.insert(member.position as usize) {
                return Some(member.position as usize);
            }
        }
        None
    }
}

impl Seen {
    const fn new(positions: usize) -> Self {
        if positions <= INLINE_WORDS * 64 {
            Self::Few([0; INLINE_WORDS])
        } else {
            Self::First {
                len: 0,
                positions: [0; INLINE_POSITIONS],
                of: positions,
            }
        }
    }

    /// Adds a position; returns whether it is new.
    fn insert(&mut self, position: usize) -> bool {
        match self {
            Self::Few(words) => set_bit(words, position),
            Self::Many(words) => set_bit(words, position),
            Self::First { len, positions, of } => {
                if positions[..*len].contains(&(position as u32)) {
                    return false;
                }
                if let Some(free) = positions.get_mut(*len) {
                    *free = position as u32;
                    *len += 1;
                    return true;
                }
                let mut words = vec![0; of.div_ceil(64)];
                for &position in &*positions {
                    set_bit(&mut words, position as usize);
                }
                set_bit(&mut words, position);
                *self = Self::Many(words.into());
                true
            }
        }
    }
}

/// Sets a bit; returns whether it was clear before.
const fn set_bit(words: &mut [u64], position: usize) -> bool {
    let (word, bit) = (position / 64, 1 << (position % 64));
    let is_new = words[word] & bit == 0;
    words[word] |= bit;
    is_new
}

pub(super) mod sealed {
    #[allow(unnameable_types)] // sealed
    pub trait Sealed {}
}

/// Bits for 1 024 positions take 128 bytes.
const INLINE_WORDS: usize = 16;

/// Replicas are few, and a scan of 32 numbers of 4 bytes is fast.
const INLINE_POSITIONS: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        endpoint::Endpoint,
        hash::{maglev::MaglevScheme, rendezvous::RendezvousScheme, ring::RingScheme},
        member::Member,
        policy::Candidates,
    };

    /// Makes members from names, weights, and whether each may be picked.
    fn members(list: &[(u8, u32, bool)]) -> KeyedMembers {
        let member = |(id, &(name, weight, candidate)): (usize, &(u8, u32, bool))| Member {
            endpoint: Endpoint::new((usize::from(name), weight)),
            service: (),
            id: id as u64,
            weight,
            share: weight,
            available: candidate && weight > 0,
            drains: false,
            unknown: false,
            candidate: candidate && weight > 0,
        };
        let members: Vec<_> = list.iter().enumerate().map(member).collect();
        KeyedMembers::of_candidates(Candidates::new(&members), None)
    }

    proptest! {
        /// A table depends only on its current members, whatever joined, left, was ejected or came
        /// back.
        #[test]
        fn a_table_made_from_another_is_the_one_that_is_made_anew(
            lists in prop::collection::vec(
                prop::collection::btree_map(0_u8..8, (0_u32..4, any::<bool>()), 0..8)
                    .prop_map(|map| map.into_iter().map(|(name, (weight, candidate))| (name, weight, candidate)).collect::<Vec<_>>())
                    .prop_shuffle(),
                1..6,
            ),
        ) {
            fn check<C: HashScheme>(scheme: &C, lists: &[Vec<(u8, u32, bool)>]) {
                let mut table = HashTable::new(scheme, members(&[]), 0, None);
                for list in lists {
                    table = HashTable::new(scheme, members(list), 0, Some(&table));
                    let built = HashTable::new(scheme, members(list), 0, None);
                    let candidates = list.iter().filter(|(_, weight, candidate)| *candidate && *weight > 0);
                    assert_eq!(table.len(), candidates.count());
                    for key in 0..50_u64 {
                        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        assert!(table.order(hash).eq(built.order(hash)), "{list:?}");
                        assert!(table.order(hash).all(|position| list[position].2));
                    }
                }
            }
            let mut ring = RingScheme::default();
            ring.set_points(7).unwrap();
            check(&ring, &lists);
            ring.set_total(20, 40).unwrap();
            check(&ring, &lists);
            check(&MaglevScheme::new(53).unwrap(), &lists);
            check(&RendezvousScheme::default(), &lists);
        }
    }

    #[test]
    fn an_ejected_host_is_passed_over_and_no_other_key_moves() {
        fn check<C: HashScheme>(scheme: &C) {
            let all: Vec<_> = (0..8)
                .map(|name| (name, 1 + u32::from(name % 3), true))
                .collect();
            let mut without = all.clone();
            without[3].2 = false;
            let before = HashTable::new(scheme, members(&all), 0, None);
            let after = HashTable::new(scheme, members(&without), 0, Some(&before));
            assert!(
                Arc::ptr_eq(&before.lookup, &after.lookup),
                "nothing is built again"
            );
            for key in 0..1_000_u64 {
                let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let others = before.order(hash).filter(|&position| position != 3);
                assert!(after.order(hash).eq(others));
            }
        }
        check(&RingScheme::default());
        check(&MaglevScheme::default());
        check(&RendezvousScheme::default());
    }
}
