use std::fmt;

use super::{hosts::Hosts, key::hash_bytes};

/// Decides which hosts a key belongs to: a ring, a Maglev table, rendezvous.
///
/// Sealed: what it asks for may grow.
pub trait Scheme: Clone + Default + fmt::Debug + Send + Sync + 'static {
    /// What is built once for a set of hosts.
    type Table: Lookup;

    #[doc(hidden)]
    fn build(&self, hosts: &Hosts, previous: Option<(&Hosts, &Self::Table)>) -> Self::Table;
}

/// Finds the hosts of a key in a table. Sealed, as [`Scheme`].
pub trait Lookup: fmt::Debug + Send + Sync + 'static {
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

/// A bit for each position.
#[derive(Clone, Debug)]
enum Seen {
    Few([u64; INLINE_WORDS]),
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

    /// Returns the first `r` hosts of a key of bytes, or all if there are fewer: distinct, owner first.
    ///
    /// Cost: as [`order`](Self::order).
    pub fn replicas(&self, key: &[u8], r: usize) -> std::iter::Take<Order<'_, T>> {
        self.order(hash_bytes(key, self.seed)).take(r)
    }

    /// Returns the positions of all hosts in the order in which a key with this hash takes them.
    ///
    /// Each comes once. The first ones cost about as much as a pick each, the last ones of many hosts more, for
    /// those before them are met again. No allocation, but for one of n / 8 bytes where there are more than
    /// 1 024 hosts.
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
        while let Some(host) = self.table.hosts.as_slice().get(self.without_share) {
            self.without_share += 1;
            let position = host.position as usize;
            if host.is_candidate && self.seen.insert(position) {
                return Some(position);
            }
        }
        None
    }
}

impl Seen {
    fn new(positions: usize) -> Self {
        if positions <= INLINE_WORDS * 64 {
            Self::Few([0; INLINE_WORDS])
        } else {
            Self::Many(vec![0; positions.div_ceil(64)].into())
        }
    }

    /// Adds a position; says whether it is new.
    fn insert(&mut self, position: usize) -> bool {
        let words: &mut [u64] = match self {
            Self::Few(words) => words,
            Self::Many(words) => words,
        };
        let (word, bit) = (position / 64, 1 << (position % 64));
        let is_new = words[word] & bit == 0;
        words[word] |= bit;
        is_new
    }
}

/// 1 024 positions in 128 bytes.
const INLINE_WORDS: usize = 16;
