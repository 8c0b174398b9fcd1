use std::{cmp::Ordering, sync::Arc};

use tracing::warn;

use super::{
    error::HashSettingError,
    hosts::{Host, Hosts},
    key::hash_bytes,
    table::{Lookup, Scheme, sealed::Sealed},
};

/// The settings of a [`RingHash`](super::RingHash): how many points each host has.
#[derive(Clone, Debug)]
pub struct RingScheme {
    sizing: Sizing,
    /// In which a fixed total is dealt out.
    order: HostOrder,
}

#[derive(Clone, Copy, Debug)]
enum Sizing {
    PerWeight(u32),
    Total { min: usize, max: usize },
}

/// The order in which hosts get the points of a ring of fixed size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostOrder {
    /// By their keys, so that the order of a list is of no account.
    #[default]
    ByKey,
    /// As they are listed: that of the members in a balancer is the order in which they joined.
    AsGiven,
}

/// Hosts at many points each of a ring of 2^64 places.
///
/// Point `j` of a host is at `XXH64(key + "_" + decimal(j))`; a key belongs to the first point at or after
/// its own hash. Cost: a lookup is **O(log points)** and usually a few steps, for an index by the
/// top bits leads to the few points around the place; 14 to 16 bytes a point.
///
/// Source: Karger et al., "Consistent Hashing and Random Trees", STOC 1997; the points are those of
/// Envoy's `RING_HASH` and gRPC's `ring_hash` (A42).
#[derive(Debug)]
pub struct RingTable {
    points: Arc<Points>,
    /// The number of points of each host, as long as it may be picked.
    counts: Box<[u32]>,
}

#[derive(Debug, Default)]
struct Points {
    len: usize,
    /// Followed by [`PADDING`] of the largest hash.
    hashes: Vec<u64>,
    /// The position of the host at each point. Followed by the first one, for past the last point comes the first.
    owners: Vec<u32>,
    /// For each value of a hash's top bits, the first point that has it or a larger one.
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

    pub(super) const fn set_order(&mut self, order: HostOrder) {
        self.order = order;
    }

    /// Returns how many points each host is to have.
    fn counts(&self, hosts: &[Host]) -> Box<[u32]> {
        match self.sizing {
            Sizing::PerWeight(points) => counts_per_weight(hosts, points),
            Sizing::Total { min, max } => counts_of_total(hosts, min, max, self.order),
        }
    }
}

impl Default for RingScheme {
    fn default() -> Self {
        Self {
            sizing: Sizing::PerWeight(POINTS_A_UNIT),
            order: HostOrder::default(),
        }
    }
}

impl Sealed for RingScheme {}
impl Sealed for RingTable {}

impl Scheme for RingScheme {
    type Table = RingTable;

    fn build(&self, hosts: &Hosts, previous: Option<(&Hosts, &RingTable)>) -> RingTable {
        let mut counts = self.counts(hosts.as_slice());
        for (count, host) in counts.iter_mut().zip(hosts.as_slice()) {
            *count *= u32::from(host.is_candidate);
        }
        if let Some((before, ring)) = previous {
            if before == hosts && ring.counts == counts {
                let points = ring.points.clone();
                return RingTable { points, counts };
            }
        }
        let points = Arc::new(Points::build(hosts, &counts, previous));
        RingTable { points, counts }
    }
}

impl RingTable {
    /// Returns every point of the ring in order: its hash, and the position of its host.
    pub fn points(&self) -> impl Iterator<Item = (u64, usize)> {
        let Points {
            len,
            hashes,
            owners,
            ..
        } = &*self.points;
        let owners = owners.iter().map(|&owner| owner as usize);
        hashes.iter().copied().zip(owners).take(*len)
    }
}

impl Points {
    /// Makes the points of all hosts, or takes them from the ring before where they have not changed.
    ///
    /// **O(points)** if most have not, else O(points log points).
    fn build(hosts: &Hosts, counts: &[u32], previous: Option<(&Hosts, &RingTable)>) -> Self {
        // Ties go to the lesser key: its rank among the hosts.
        let mut rank = vec![0; hosts.positions()];
        for (i, host) in hosts.as_slice().iter().enumerate() {
            rank[host.position as usize] = i;
        }
        let order = |a: &(u64, u32), b: &(u64, u32)| {
            let by_key = || rank[a.1 as usize].cmp(&rank[b.1 as usize]);
            a.0.cmp(&b.0).then_with(by_key)
        };
        let (kept, changed) = compare(hosts, counts, previous);
        let mut new = Vec::new();
        for host in changed {
            push_points(&hosts.as_slice()[host], counts[host], &mut new);
        }
        new.sort_unstable_by(order);
        let total: u32 = counts.iter().sum();
        let mut all = Self {
            len: total as usize,
            hashes: Vec::with_capacity(total as usize + PADDING),
            owners: Vec::with_capacity(total as usize + 1),
            ..Self::default()
        };
        all.merge(previous.map(|(_, ring)| &*ring.points), &kept, &new, order);
        all.hashes.resize(all.len + PADDING, u64::MAX);
        all.owners.extend(all.owners.first().copied());
        all.make_index();
        all
    }

    /// Adds the points of the ring before that are kept, and the new ones, in order.
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

    /// Adds those points of a list whose hosts keep them.
    fn keep(&mut self, mut hashes: &[u64], mut owners: &[u32], kept: &[u32]) {
        let is_gone = |&owner: &u32| kept[owner as usize] == GONE;
        while !owners.is_empty() {
            // Run by run, which copies faster than point by point.
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

    /// Makes the index: one to two points for each of its entries.
    fn make_index(&mut self) {
        let bits = self.len.max(2).ilog2();
        self.shift = u64::BITS - bits;
        self.index = vec![GONE; 1 << bits];
        // Backwards, so that of the points of one entry the first is written last. No branch, for half of
        // them would be mispredicted.
        for (point, hash) in self.hashes[..self.len].iter().enumerate().rev() {
            self.index[(hash >> self.shift) as usize] = point as u32;
        }
        let mut next = self.len as u32;
        for entry in self.index.iter_mut().rev() {
            next = if *entry == GONE { next } else { *entry };
            *entry = next;
        }
    }

    /// Returns the first point at or after `hash`; the number of points if that is past the last one.
    #[inline]
    fn at_or_after(&self, hash: u64) -> usize {
        let entry = (hash >> self.shift) as usize;
        let from = self.index[entry] as usize;
        // The place is among the next few: to compare with all of them costs less than to guess which.
        let next = &self.hashes[from..from + PADDING];
        let before: usize = next.iter().map(|&point| usize::from(point < hash)).sum();
        if before < PADDING {
            from + before
        } else {
            self.farther_on(entry, from + PADDING, hash)
        }
    }

    /// Finds the point where an entry of the index has many.
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
    /// The next point, and how many are left.
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

/// Finds which hosts keep their points, by their position before, and which are to get new ones.
///
/// Both lists of hosts are in the order of their keys.
fn compare(
    hosts: &Hosts,
    counts: &[u32],
    previous: Option<(&Hosts, &RingTable)>,
) -> (Vec<u32>, Vec<usize>) {
    let mut kept = vec![GONE; previous.map_or(0, |(before, _)| before.positions())];
    let before = previous.into_iter().flat_map(|(before, ring)| {
        let counts = ring.counts.iter().copied();
        before.as_slice().iter().zip(counts)
    });
    let mut before = before.peekable();
    let mut changed = Vec::new();
    for (i, host) in hosts.as_slice().iter().enumerate() {
        while before.next_if(|(old, _)| old.key < host.key).is_some() {}
        let same = |&(old, count): &(&Host, u32)| old.key == host.key && count == counts[i];
        match before.next_if(same) {
            Some((old, _)) => kept[old.position as usize] = host.position,
            None => changed.push(i),
        }
    }
    (kept, changed)
}

/// Adds the points of a host.
fn push_points(host: &Host, count: u32, points: &mut Vec<(u64, u32)>) {
    use std::fmt::Write;

    let mut name = format!("{}_", host.key);
    let prefix = name.len();
    for point in 0..count {
        name.truncate(prefix);
        // Writing to a string does not fail.
        let _ = write!(name, "{point}");
        points.push((hash_bytes(name.as_bytes(), 0), host.position));
    }
}

/// So many points for each unit of weight, halved as often as it takes not to have more than the most.
fn counts_per_weight(hosts: &[Host], points: u32) -> Box<[u32]> {
    let sum: u64 = hosts.iter().map(|host| u64::from(host.weight)).sum();
    // At most 2^32 hosts of a weight below 2^32, and 2^16 points: 80 bits.
    let total = u128::from(sum) * u128::from(points);
    let mut halvings = 0;
    while total >> halvings > MOST_POINTS as u128 {
        halvings += 1;
    }
    if halvings > 0 {
        warn!(
            total,
            most = MOST_POINTS,
            halvings,
            "too many points for a ring: fewer points a unit of weight suit such weights"
        );
    }
    let count = |host: &Host| (u64::from(host.weight) * u64::from(points)) >> halvings;
    hosts.iter().map(|host| count(host).max(1) as u32).collect()
}

/// Envoy's and gRPC's sizing, in their arithmetic: the lightest host gets whole points.
fn counts_of_total(hosts: &[Host], min: usize, max: usize, order: HostOrder) -> Box<[u32]> {
    let sum: f64 = hosts.iter().map(|host| f64::from(host.weight)).sum();
    let share = |host: &Host| f64::from(host.weight) / sum;
    let least = hosts.iter().map(share).fold(1.0, f64::min);
    let scale = ((least * min as f64).ceil() / least).min(max as f64);
    let mut in_order: Vec<usize> = (0..hosts.len()).collect();
    if order == HostOrder::AsGiven {
        in_order.sort_by_key(|&host| hosts[host].position);
    }
    let mut counts = vec![0; hosts.len()];
    let (mut current, mut target) = (0.0, 0.0);
    for host in in_order {
        target += scale * share(&hosts[host]);
        while current < target {
            counts[host] += 1;
            current += 1.0;
        }
    }
    counts.into()
}

/// No position and no point: there are at most eight million of either.
const GONE: u32 = u32::MAX;

/// How many points a lookup compares at once: rarely are more than so many of one index entry before a hash.
const PADDING: usize = 4;

/// Shares are even to some 6 % then (1 / sqrt 256); a host of weight 1 takes 4 kB.
const POINTS_A_UNIT: u32 = 256;
const MOST_POINTS_A_UNIT: u32 = 1 << 16;

/// Eight million points, 130 MB: weights of 100 for 320 hosts, or 32 000 hosts of weight 1. The limit of Envoy's
/// configuration, too.
const MOST_POINTS: usize = 1 << 23;
