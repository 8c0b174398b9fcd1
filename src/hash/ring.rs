use std::cmp::Ordering;

use super::{
    error::HashSettingError,
    hash_table::{HashScheme, Lookup, sealed::Sealed},
    key::hash_bytes,
    keyed_members::{KeyedMember, KeyedMembers},
    ring_counts::{EndpointOrder, MOST_POINTS, counts_of_total, counts_per_weight},
};

/// The settings of a [`RingHash`](super::RingHash) policy: how many points each endpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingScheme {
    sizing: Sizing,
    /// The order in which a fixed total is dealt out.
    order: EndpointOrder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sizing {
    PerWeight(u32),
    Total { min: usize, max: usize },
}

/// Places each member at many points of a ring of 2^64 places.
///
/// Point `j` of a member is at `XXH64(key + "_" + decimal(j))`. A key belongs to the first point at
/// or after its own hash. Cost: a lookup is **O(log points)**, but usually takes a few steps,
/// because an index by the top bits leads to the few points around the place. A point takes 14 to
/// 16 bytes.
///
/// Source: Karger et al., "Consistent Hashing and Random Trees", STOC 1997; the points are those of
/// Envoy's `RING_HASH` and gRPC's `ring_hash` (A42).
#[derive(Debug)]
pub struct RingTable {
    points: Points,
    /// The number of points of each member.
    counts: Box<[u32]>,
    scheme: RingScheme,
}

#[derive(Debug, Default)]
struct Points {
    len: usize,
    /// The points' hashes, followed by [`PADDING`] copies of the largest hash.
    hashes: Vec<u64>,
    /// The position of the member at each point. A copy of the first one follows, because the first
    /// point comes after the last.
    owners: Vec<u32>,
    /// The first point at or after the start of each range of hashes with equal top bits.
    index: Vec<u32>,
    shift: u32,
}

impl RingScheme {
    pub(super) const fn set_points(&mut self, points: u32) -> Result<(), HashSettingError> {
        if points == 0 || points > MOST_POINTS_A_UNIT {
            return Err(HashSettingError::Points(points));
        }
        self.sizing = Sizing::PerWeight(points);
        Ok(())
    }

    pub(super) const fn set_total(
        &mut self,
        min: usize,
        max: usize,
    ) -> Result<(), HashSettingError> {
        if min == 0 || min > max || max > MOST_POINTS {
            return Err(HashSettingError::RingSize { min, max });
        }
        self.sizing = Sizing::Total { min, max };
        Ok(())
    }

    pub(super) const fn set_order(&mut self, order: EndpointOrder) {
        self.order = order;
    }

    /// Returns how many points each member gets.
    fn counts(&self, members: &[KeyedMember]) -> Box<[u32]> {
        match self.sizing {
            Sizing::PerWeight(points) => counts_per_weight(members, points),
            Sizing::Total { min, max } => counts_of_total(members, min, max, self.order),
        }
    }
}

impl Default for RingScheme {
    fn default() -> Self {
        Self {
            sizing: Sizing::PerWeight(POINTS_A_UNIT),
            order: EndpointOrder::default(),
        }
    }
}

impl Sealed for RingScheme {}
impl Sealed for RingTable {}

impl HashScheme for RingScheme {
    type Table = RingTable;

    fn makes(&self, table: &RingTable) -> bool {
        table.scheme == *self
    }

    fn build(
        &self,
        members: &KeyedMembers,
        previous: Option<(&KeyedMembers, &RingTable)>,
    ) -> RingTable {
        let counts = self.counts(members.as_slice());
        let points = Points::build(members, &counts, previous);
        RingTable {
            points,
            counts,
            scheme: self.clone(),
        }
    }
}

impl RingTable {
    /// Returns every point of the ring in order: its hash, and its member's position.
    pub fn points(&self) -> impl Iterator<Item = (u64, usize)> {
        let Points {
            len,
            hashes,
            owners,
            ..
        } = &self.points;
        let owners = owners.iter().map(|&owner| owner as usize);
        hashes.iter().copied().zip(owners).take(*len)
    }
}

impl Points {
    /// Builds the points of all members. Reuses those of the previous ring that have not changed.
    ///
    /// **O(points)** if most have not changed, otherwise O(points log points).
    fn build(
        members: &KeyedMembers,
        counts: &[u32],
        previous: Option<(&KeyedMembers, &RingTable)>,
    ) -> Self {
        // Of points with equal hashes, the one with the lesser key comes first.
        let mut rank = vec![0; members.positions()];
        for (i, member) in members.as_slice().iter().enumerate() {
            rank[member.position as usize] = i;
        }
        let order = |a: &(u64, u32), b: &(u64, u32)| {
            let by_key = || rank[a.1 as usize].cmp(&rank[b.1 as usize]);
            a.0.cmp(&b.0).then_with(by_key)
        };
        let (kept, changed) = compare(members, counts, previous);
        let mut new = Vec::new();
        for member in changed {
            push_points(&members.as_slice()[member], counts[member], &mut new);
        }
        new.sort_unstable_by(order);
        let total: u32 = counts.iter().sum();
        let mut all = Self {
            len: total as usize,
            hashes: Vec::with_capacity(total as usize + PADDING),
            owners: Vec::with_capacity(total as usize + 1),
            ..Self::default()
        };
        all.merge(previous.map(|(_, ring)| &ring.points), &kept, &new, order);
        all.hashes.resize(all.len + PADDING, u64::MAX);
        all.owners.extend(all.owners.first().copied());
        all.make_index();
        all
    }

    /// Adds the kept points of the previous ring and the new points, in order.
    fn merge(
        &mut self,
        old: Option<&Self>,
        kept: &[u32],
        new: &[(u64, u32)],
        order: impl Fn(&(u64, u32), &(u64, u32)) -> Ordering,
    ) {
        let (hashes, owners) = old.map_or((&[][..], &[][..]), |old| {
            (&old.hashes[..old.len], &old.owners[..old.len])
        });
        let mut from = 0;
        for point in new {
            let mut to = from + hashes[from..].partition_point(|&hash| hash < point.0);
            let is_before = |at: usize| {
                let owner = kept[owners[at] as usize];
                owner == GONE || order(&(hashes[at], owner), point).is_lt()
            };
            while to < hashes.len() && hashes[to] == point.0 && is_before(to) {
                to += 1;
            }
            self.keep(&hashes[from..to], &owners[from..to], kept);
            self.push(*point);
            from = to;
        }
        self.keep(&hashes[from..], &owners[from..], kept);
    }

    /// Adds the listed points whose members keep them.
    fn keep(&mut self, mut hashes: &[u64], mut owners: &[u32], kept: &[u32]) {
        let is_gone = |&owner: &u32| kept[owner as usize] == GONE;
        while !owners.is_empty() {
            // Copying whole runs is faster than copying point by point.
            let run = owners.iter().position(is_gone).unwrap_or(owners.len());
            self.hashes.extend_from_slice(&hashes[..run]);
            let owners_now = owners[..run].iter().map(|&owner| kept[owner as usize]);
            self.owners.extend(owners_now);
            let next = (run + 1).min(owners.len());
            (hashes, owners) = (&hashes[next..], &owners[next..]);
        }
    }

    fn push(&mut self, (hash, owner): (u64, u32)) {
        self.hashes.push(hash);
        self.owners.push(owner);
    }

    /// Builds the index, with one to two points for each entry.
    fn make_index(&mut self) {
        let bits = self.len.max(2).ilog2();
        self.shift = u64::BITS - bits;
        self.index = vec![GONE; 1 << bits];
        // Backwards, so that the first of an entry's points is written last. There is no branch,
        // because half of them would be mispredicted.
        for (point, hash) in self.hashes[..self.len].iter().enumerate().rev() {
            self.index[(hash >> self.shift) as usize] = point as u32;
        }
        let mut next = self.len as u32;
        for entry in self.index.iter_mut().rev() {
            next = if *entry == GONE { next } else { *entry };
            *entry = next;
        }
    }

    /// Returns the first point at or after `hash`.
    ///
    /// If there is none, it returns the number of points.
    #[inline]
    fn at_or_after(&self, hash: u64) -> usize {
        let entry = (hash >> self.shift) as usize;
        let from = self.index[entry] as usize;
        // The place is among the next few points. Comparing all of them costs less than a
        // mispredicted branch.
        let next = &self.hashes[from..from + PADDING];
        let before: usize = next.iter().map(|&point| usize::from(point < hash)).sum();
        if before < PADDING {
            from + before
        } else {
            self.farther_on(entry, from + PADDING, hash)
        }
    }

    /// Finds the point when an entry of the index has many.
    #[cold]
    fn farther_on(&self, entry: usize, from: usize, hash: u64) -> usize {
        let to = self
            .index
            .get(entry + 1)
            .map_or(self.len, |&to| to as usize);
        from + self.hashes[from..to.max(from)].partition_point(|&point| point < hash)
    }
}

impl Lookup for RingTable {
    /// The next point, and how many points are left.
    type Cursor = (usize, usize);

    #[inline]
    fn start(&self, hash: u64) -> Self::Cursor {
        (self.points.at_or_after(hash), self.points.len)
    }

    #[inline]
    fn step(&self, (next, left): &mut Self::Cursor) -> Option<usize> {
        *left = left.checked_sub(1)?;
        let point = *next;
        *next = if point < self.points.len {
            point + 1
        } else {
            1
        };
        self.points.owners.get(point).map(|&owner| owner as usize)
    }
}

/// Finds which members keep their points, by previous position, and which need new ones.
///
/// Both lists are sorted by key.
fn compare(
    members: &KeyedMembers,
    counts: &[u32],
    previous: Option<(&KeyedMembers, &RingTable)>,
) -> (Vec<u32>, Vec<usize>) {
    let mut kept = vec![GONE; previous.map_or(0, |(before, _)| before.positions())];
    let before = previous.into_iter().flat_map(|(before, ring)| {
        let counts = ring.counts.iter().copied();
        before.as_slice().iter().zip(counts)
    });
    let mut before = before.peekable();
    let mut changed = Vec::new();
    for (i, member) in members.as_slice().iter().enumerate() {
        while before.next_if(|(old, _)| old.key < member.key).is_some() {}
        let same =
            |&(old, count): &(&KeyedMember, u32)| old.key == member.key && count == counts[i];
        match before.next_if(same) {
            Some((old, _)) => kept[old.position as usize] = member.position,
            None => changed.push(i),
        }
    }
    (kept, changed)
}

/// Adds the points of a member.
fn push_points(member: &KeyedMember, count: u32, points: &mut Vec<(u64, u32)>) {
    use std::fmt::Write;

    let mut name = format!("{}_", member.key);
    let prefix = name.len();
    for point in 0..count {
        name.truncate(prefix);
        // Writing to a string does not fail.
        let _ = write!(name, "{point}");
        points.push((hash_bytes(name.as_bytes(), 0), member.position));
    }
}

/// Stands for no position or no point. There are at most eight million of either.
const GONE: u32 = u32::MAX;

/// How many points a lookup compares at once. An index entry rarely has more points than this
/// before a hash.
const PADDING: usize = 4;

/// Makes shares even to some 6 % (1 / sqrt 256). A member of weight 1 takes 4 kB.
const POINTS_A_UNIT: u32 = 256;
const MOST_POINTS_A_UNIT: u32 = 1 << 16;
