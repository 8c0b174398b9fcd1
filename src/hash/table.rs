use std::fmt;

use super::{hosts::Hosts, key::hash_bytes};

/// Decides which hosts a key belongs to: a ring, a Maglev table, rendezvous.
///
/// Sealed: what it asks for may grow.
pub trait Scheme: sealed::Sealed + Clone + Default + fmt::Debug + Send + Sync + 'static {
    /// What is built once for a set of hosts.
    type Table: Lookup;

    #[doc(hidden)]
    fn build(&self, hosts: &Hosts, previous: Option<(&Hosts, &Self::Table)>) -> Self::Table;
}

/// Finds the hosts of a key in a table. Sealed, as [`Scheme`].
pub trait Lookup: sealed::Sealed + fmt::Debug + Send + Sync + 'static {
    #[doc(hidden)]
    type Cursor: Clone + fmt::Debug;

    #[doc(hidden)]
    fn start(&self, hash: u64) -> Self::Cursor;

    /// Yields the candidates' positions in the key's own order, some of them repeatedly.
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
}

/// The hosts of a snapshot, spread over by hash.
///
/// A position is a host's place in the list that the table was made for: that of a balancer's members (see
/// [`Balance::with_table`](crate::Balance::with_table)) or that of
/// [`HashPolicy::table_for`](super::HashPolicy::table_for).
#[derive(Debug)]
pub struct HashTable<T> {
    pub(super) lookup: T,
    pub(super) hosts: Hosts,
    seed: u64,
}

/// The hosts of one key, see [`HashTable::order`].
#[derive(Clone, Debug)]
pub struct Order<'a, T: Lookup> {
    table: &'a HashTable<T>,
    cursor: T::Cursor,
    /// How many of the hosts that the scheme gives no share to have been looked at.
    without_share: usize,
    seen: Seen,
}

/// The positions that have been met.
#[derive(Clone, Debug)]
enum Seen {
    /// A bit for each position.
    Few([u64; INLINE_WORDS]),
    /// The first ones, of more positions than have a bit in line.
    First {
        len: usize,
        positions: [u32; INLINE_POSITIONS],
        of: usize,
    },
    Many(Box<[u64]>),
}

impl<T: Lookup> HashTable<T> {
    pub(super) fn new<C>(scheme: &C, hosts: Hosts, seed: u64, previous: Option<&Self>) -> Self
    where
        C: Scheme<Table = T>,
    {
        let previous = previous.map(|table| (&table.hosts, &table.lookup));
        Self {
            lookup: scheme.build(&hosts, previous),
            hosts,
            seed,
        }
    }

    /// Returns the ring, the slots or the bidders themselves.
    pub const fn get_ref(&self) -> &T {
        &self.lookup
    }

    /// Returns the position of the host that a key of bytes belongs to; `None` if there is no host.
    ///
    /// Cost: that of a pick.
    #[must_use]
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        self.owner_of_hash(hash_bytes(key, self.seed))
    }

    /// Returns the position of the host that a key with this hash belongs to.
    #[must_use]
    pub fn owner_of_hash(&self, hash: u64) -> Option<usize> {
        self.find(hash, |_| true)
    }

    /// Returns the first `r` hosts of a key of bytes, distinct, owner first; fewer if there are.
    ///
    /// Cost: as [`order`](Self::order).
    pub fn replicas(&self, key: &[u8], r: usize) -> std::iter::Take<Order<'_, T>> {
        self.order(hash_bytes(key, self.seed)).take(r)
    }

    /// Returns the positions of all hosts in the order of a key with this hash.
    ///
    /// [`HashPolicy::hash_of`](super::HashPolicy::hash_of) tells the hash of a request.
    /// Each comes once. The first ones cost about as much as a pick each, the last ones of many hosts more, for
    /// those before them are met again. No allocation, but for one of n / 8 bytes when more than 32 are
    /// asked for of more than 1 024.
    pub fn order(&self, hash: u64) -> Order<'_, T> {
        Order {
            table: self,
            cursor: self.lookup.start(hash),
            without_share: 0,
            seen: Seen::new(self.hosts.positions()),
        }
    }

    /// Returns the number of hosts that have a weight and may be picked. **O(n)**.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.candidates().count()
    }

    /// Returns whether no host may be picked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.candidates().next().is_none()
    }

    /// Finds the first position in the key's own order that is accepted.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut accept: impl FnMut(usize) -> bool) -> Option<usize> {
        let found = self.lookup.find(hash, &mut accept);
        // As in `Order`: who has no share comes last.
        found.or_else(|| {
            let mut positions = self.hosts.candidates().map(|host| host.position as usize);
            positions.find(|&position| accept(position))
        })
    }
}

impl<T: Lookup> Iterator for Order<'_, T> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while let Some(position) = self.table.lookup.step(&mut self.cursor) {
            if self.seen.insert(position) {
                return Some(position);
            }
        }
        // Too few points or slots for all: those who have none come last.
        let rest = self.table.hosts.candidates().skip(self.without_share);
        for host in rest {
            self.without_share += 1;
            if self.seen.insert(host.position as usize) {
                return Some(host.position as usize);
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

    /// Adds a position; says whether it is new.
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

/// Sets a bit; says whether it was not set.
const fn set_bit(words: &mut [u64], position: usize) -> bool {
    let (word, bit) = (position / 64, 1 << (position % 64));
    let is_new = words[word] & bit == 0;
    words[word] |= bit;
    is_new
}

pub(super) mod sealed {
    #[allow(unnameable_types)] // so that nobody else implements it
    pub trait Sealed {}
}

/// 1 024 positions in 128 bytes.
const INLINE_WORDS: usize = 16;

/// Replicas are few, and 32 numbers of 4 bytes soon looked through.
const INLINE_POSITIONS: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        endpoint::Endpoint,
        hash::{MaglevScheme, RendezvousScheme, RingScheme},
        policy::Member,
    };

    /// Members of a name, a weight, and whether they may be picked.
    fn hosts(list: &[(u8, u32, bool)]) -> Hosts {
        let member = |(id, &(name, weight, candidate)): (usize, &(u8, u32, bool))| Member {
            endpoint: Endpoint::new((usize::from(name), weight)),
            service: (),
            id: id as u64,
            weight,
            share: weight,
            candidate: candidate && weight > 0,
        };
        let members: Vec<_> = list.iter().enumerate().map(member).collect();
        Hosts::of_members(&members)
    }

    proptest! {
        /// Whoever comes, goes, is ejected or comes back: the table is that of the hosts that are there now.
        #[test]
        fn a_table_made_from_another_is_the_one_that_is_made_anew(
            lists in prop::collection::vec(
                prop::collection::btree_map(0_u8..8, (0_u32..4, any::<bool>()), 0..8)
                    .prop_map(|map| map.into_iter().map(|(name, (weight, candidate))| (name, weight, candidate)).collect::<Vec<_>>())
                    .prop_shuffle(),
                1..6,
            ),
        ) {
            fn check<C: Scheme>(scheme: &C, lists: &[Vec<(u8, u32, bool)>]) {
                let mut table = HashTable::new(scheme, hosts(&[]), 0, None);
                for list in lists {
                    table = HashTable::new(scheme, hosts(list), 0, Some(&table));
                    let anew = HashTable::new(scheme, hosts(list), 0, None);
                    let candidates = list.iter().filter(|(_, weight, candidate)| *candidate && *weight > 0);
                    assert_eq!(table.len(), candidates.count());
                    for key in 0..50_u64 {
                        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                        assert!(table.order(hash).eq(anew.order(hash)), "{list:?}");
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
        fn check<C: Scheme>(scheme: &C) {
            let all: Vec<_> = (0..8)
                .map(|name| (name, 1 + u32::from(name % 3), true))
                .collect();
            let mut without = all.clone();
            without[3].2 = false;
            let before = HashTable::new(scheme, hosts(&all), 0, None);
            let after = HashTable::new(scheme, hosts(&without), 0, Some(&before));
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
