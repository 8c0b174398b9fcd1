use super::{
    hash_table::{HashScheme, Lookup, sealed::Sealed},
    key::{hash_bytes, rehash},
    keyed_members::KeyedMembers,
};

/// The settings of a [`Rendezvous`](super::Rendezvous) policy. There are none.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RendezvousScheme;

/// Scores every member for each key; the highest score has it.
///
/// The score of a member of weight `w` is `-w / ln(u)`, with `u` between 0 and 1 from
/// `XXH64(key's hash, seed XXH64(member's key))`. Cost: a lookup is **O(n)**, some nanoseconds a
/// member, and more if weights differ. There is no table except for 24 bytes a member.
///
/// Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN
/// 6(1), 1998; weights: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005.
#[derive(Debug)]
pub struct RendezvousTable {
    members: Box<[Scored]>,
    /// Whether scores need the logarithm. With one weight for all, the order is that of `u`.
    weighted: bool,
}

#[derive(Debug)]
struct Scored {
    hash: u64,
    weight: f64,
    position: u32,
}

/// A place in a key's order.
#[derive(Clone, Debug)]
pub struct RendezvousCursor {
    hash: u64,
    /// The last member yielded: its score and its number in `members`.
    last: Option<(f64, usize)>,
}

impl Sealed for RendezvousScheme {}
impl Sealed for RendezvousTable {}

impl HashScheme for RendezvousScheme {
    type Table = RendezvousTable;

    fn makes(&self, _: &RendezvousTable) -> bool {
        true
    }

    fn build(
        &self,
        members: &KeyedMembers,
        _: Option<(&KeyedMembers, &RendezvousTable)>,
    ) -> RendezvousTable {
        let scored = members.as_slice().iter().map(|member| Scored {
            hash: hash_bytes(member.key.as_bytes(), 0),
            weight: member.weight.into(),
            position: member.position,
        });
        RendezvousTable {
            members: scored.collect(),
            weighted: members.common_weight().is_none(),
        }
    }
}

impl RendezvousTable {
    /// Returns a member's score for a key, always above 0.
    #[inline]
    fn score(&self, member: &Scored, hash: u64) -> f64 {
        // 52 random bits plus one half fit in 53 bits, so `u` is neither 0 nor 1.
        let u = ((rehash(hash, member.hash) >> 12) as f64 + 0.5) / 2_f64.powi(52);
        if self.weighted {
            // The standard library's logarithm differs between platforms.
            -member.weight / libm::log(u)
        } else {
            u
        }
    }

    /// Finds the best accepted score of the members that come after `last`.
    ///
    /// Of equal scores, the lower number comes first.
    #[inline]
    fn best(
        &self,
        hash: u64,
        last: Option<(f64, usize)>,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<(f64, usize)> {
        let mut best: Option<(f64, usize)> = None;
        for (number, member) in self.members.iter().enumerate() {
            let score = self.score(member, hash);
            let was_before = last
                .is_some_and(|(before, at)| score > before || (score == before && number <= at));
            let is_better = best.is_none_or(|(best, _)| score > best);
            if is_better && !was_before && accept(member.position as usize) {
                best = Some((score, number));
            }
        }
        best
    }
}

impl Lookup for RendezvousTable {
    type Cursor = RendezvousCursor;

    fn start(&self, hash: u64) -> RendezvousCursor {
        RendezvousCursor { hash, last: None }
    }

    fn step(&self, cursor: &mut RendezvousCursor) -> Option<usize> {
        cursor.last = Some(self.best(cursor.hash, cursor.last, |_| true)?);
        cursor
            .last
            .map(|(_, number)| self.members[number].position as usize)
    }

    #[inline]
    fn find(&self, hash: u64, accept: impl FnMut(usize) -> bool) -> Option<usize> {
        let (_, number) = self.best(hash, None, accept)?;
        Some(self.members[number].position as usize)
    }

    /// Looks once at each member: **O(n)**, and **O(most)** for each that is among the best so far.
    fn find_first(
        &self,
        hash: u64,
        most: usize,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<Vec<usize>> {
        // The best first. Of equal scores, the lower number comes first.
        let mut best: Vec<(f64, usize)> = Vec::with_capacity(most + 1);
        for member in &self.members {
            let score = self.score(member, hash);
            let is_better = best.len() < most || best.last().is_some_and(|last| score > last.0);
            let position = member.position as usize;
            if is_better && accept(position) {
                let before = best.partition_point(|&(other, _)| other >= score);
                best.insert(before, (score, position));
                best.truncate(most);
            }
        }
        Some(best.into_iter().map(|(_, position)| position).collect())
    }
}
