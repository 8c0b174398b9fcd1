use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    error::HashSettingError,
    hash_table::{HashScheme, Lookup, sealed::Sealed},
    key::hash_bytes,
    keyed_members::{KeyedMember, KeyedMembers},
};

/// The settings of a [`Maglev`](super::Maglev) policy: the size of its table.
#[derive(Clone, Debug)]
pub struct MaglevScheme {
    slots: u32,
}

/// A table of slots that members share evenly, to within one slot each, or by weight.
///
/// A key belongs to the member of slot `hash mod slots`. The members of the following slots come
/// next. Cost: a lookup is **O(1)**, a multiplication and two reads. Building is O(slots log
/// slots). A slot takes 1, 2 or 4 bytes, as the number of members requires.
///
/// Source: Eisenbud et al., "Maglev", NSDI 2016, with the weights of Envoy's `MAGLEV`.
#[derive(Debug)]
pub struct MaglevTable {
    slots: Slots,
    divisor: Divisor,
    /// The position of each member.
    positions: Box<[u32]>,
}

/// The number of each slot's member, in the narrowest integers that hold it.
#[derive(Debug)]
enum Slots {
    U8(Box<[u8]>),
    U16(Box<[u16]>),
    U32(Box<[u32]>),
}

/// Computes remainders by one fixed divisor without a division.
#[derive(Clone, Copy, Debug)]
struct Divisor {
    divisor: u64,
    /// 2^64 / divisor, rounded down; for 2 it is one less.
    inverse: u64,
}

impl MaglevScheme {
    pub(super) fn new(slots: u32) -> Result<Self, HashSettingError> {
        if slots > MOST_SLOTS || !is_prime(slots) {
            return Err(HashSettingError::TableSize(slots));
        }
        Ok(Self { slots })
    }
}

impl Default for MaglevScheme {
    fn default() -> Self {
        Self { slots: SLOTS }
    }
}

impl Sealed for MaglevScheme {}
impl Sealed for MaglevTable {}

impl HashScheme for MaglevScheme {
    type Table = MaglevTable;

    fn makes(&self, table: &MaglevTable) -> bool {
        table.divisor.divisor == u64::from(self.slots)
    }

    fn build(
        &self,
        members: &KeyedMembers,
        _: Option<(&KeyedMembers, &MaglevTable)>,
    ) -> MaglevTable {
        let positions = members.as_slice().iter().map(|member| member.position);
        MaglevTable {
            slots: Slots::build(members, self.slots),
            divisor: Divisor::new(self.slots),
            positions: positions.collect(),
        }
    }
}

impl MaglevTable {
    /// Returns the position of each slot's member; `None` if there are no members.
    pub fn slots(&self) -> impl Iterator<Item = Option<usize>> {
        (0..self.divisor.divisor as usize).map(|slot| self.position(slot))
    }

    #[inline]
    fn position(&self, slot: usize) -> Option<usize> {
        let member = match &self.slots {
            Slots::U8(slots) => usize::from(*slots.get(slot)?),
            Slots::U16(slots) => usize::from(*slots.get(slot)?),
            Slots::U32(slots) => *slots.get(slot)? as usize,
        };
        self.positions
            .get(member)
            .map(|&position| position as usize)
    }
}

impl Lookup for MaglevTable {
    /// The next slot, and how many slots are left.
    type Cursor = (usize, usize);

    #[inline]
    fn start(&self, hash: u64) -> Self::Cursor {
        if self.positions.is_empty() {
            return (0, 0);
        }
        (
            self.divisor.remainder(hash) as usize,
            self.divisor.divisor as usize,
        )
    }

    #[inline]
    fn step(&self, (next, left): &mut Self::Cursor) -> Option<usize> {
        *left = left.checked_sub(1)?;
        let slot = *next;
        *next = if slot + 1 == self.divisor.divisor as usize {
            0
        } else {
            slot + 1
        };
        self.position(slot)
    }
}

impl Slots {
    fn build(members: &KeyedMembers, slots: u32) -> Self {
        // The conversions lose nothing: a member's number is below the number of members.
        match members.as_slice().len() {
            0..=0x100 => Self::U8(fill(members, slots, |member| member as u8)),
            0x101..=0x1_0000 => Self::U16(fill(members, slots, |member| member as u16)),
            _ => Self::U32(fill(members, slots, |member| member as u32)),
        }
    }
}

/// Lets the members take free slots in turns, each along its own permutation of the slots.
fn fill<T: Clone + Default>(
    members: &KeyedMembers,
    slots: u32,
    number: impl Fn(usize) -> T,
) -> Box<[T]> {
    let mut walks: Vec<Walk> = members
        .as_slice()
        .iter()
        .map(|member| Walk::new(member, slots))
        .collect();
    let mut owners = vec![T::default(); slots as usize];
    // One bit for each slot fits in the nearest cache, and the slots themselves do not. Each slot
    // is looked at about 12 times.
    let mut taken = vec![0_u64; slots as usize / 64 + 1];
    let mut left = slots;
    let mut take = |member: usize| {
        let slot = walks[member].next_free(&mut taken, slots);
        owners[slot as usize] = number(member);
        left -= 1;
        left > 0
    };
    for_each_turn(members, &mut take);
    owners.into()
}

/// A member's walk over the slots: the slot to try next, and the distance to the one after it.
struct Walk {
    slot: u32,
    skip: u32,
}

impl Walk {
    fn new(member: &KeyedMember, slots: u32) -> Self {
        let hash = |seed| hash_bytes(member.key.as_bytes(), seed);
        Self {
            slot: (hash(0) % u64::from(slots)) as u32,
            // The number of slots is prime, so any skip reaches all of them.
            skip: (hash(1) % u64::from(slots - 1)) as u32 + 1,
        }
    }

    /// Takes the next free slot. There must be one.
    #[inline]
    fn next_free(&mut self, taken: &mut [u64], slots: u32) -> u32 {
        let mut slot = self.slot;
        loop {
            let this = slot;
            // No overflow: both are below the number of slots, at most five million.
            let next = slot + self.skip;
            slot = if next >= slots { next - slots } else { next };
            let word = &mut taken[this as usize / 64];
            let bit = 1 << (this % 64);
            if *word & bit == 0 {
                *word |= bit;
                self.slot = slot;
                return this;
            }
        }
    }
}

/// Lets the members take a slot in turns, round after round, until `take` returns false.
///
/// Lighter members are passed over in some rounds. In round `k` (from 1) a member of weight `w`
/// that has had `j` turns gets another if `k * w >= j * max w`.
fn for_each_turn(members: &KeyedMembers, take: &mut impl FnMut(usize) -> bool) {
    let weights: Vec<u64> = members
        .as_slice()
        .iter()
        .map(|member| member.weight.into())
        .collect();
    let heaviest = weights.iter().copied().max().unwrap_or(0);
    let sum: u64 = weights.iter().sum();
    // No overflow: at most five million turns, each of a weight below 2^32.
    let mut targets = vec![0_u64; weights.len()];
    if heaviest * weights.len() as u64 > sum * MOST_PASSES {
        return for_each_turn_by_heap(&weights, heaviest, take);
    }
    for round in 1_u64.. {
        for (member, (target, &weight)) in targets.iter_mut().zip(&weights).enumerate() {
            if round * weight < *target {
                continue;
            }
            *target += heaviest;
            if !take(member) {
                return;
            }
        }
        if weights.is_empty() {
            return;
        }
    }
}

/// Does the same as [`for_each_turn`] with a heap.
///
/// It is faster if most rounds would pass over nearly all members.
fn for_each_turn_by_heap(weights: &[u64], heaviest: u64, take: &mut impl FnMut(usize) -> bool) {
    // The next turns, by round and then by member. Every member has one in the first round.
    let mut next: BinaryHeap<_> = (0..weights.len())
        .map(|member| Reverse((1_u64, member, 0_u64)))
        .collect();
    while let Some(mut turn) = next.peek_mut() {
        let Reverse((round, member, had)) = *turn;
        let had = had + 1;
        let round = (had * heaviest).div_ceil(weights[member]).max(round + 1);
        *turn = Reverse((round, member, had));
        drop(turn);
        if !take(member) {
            return;
        }
    }
}

impl Divisor {
    const fn new(divisor: u32) -> Self {
        let divisor = divisor as u64;
        Self {
            divisor,
            // `u64::MAX` in place of 2^64 gives the same quotient unless the divisor is a power of
            // two. For 2, the only prime among those, it is one too low.
            inverse: u64::MAX / divisor,
        }
    }

    /// Returns `n mod divisor` by multiplication, because a division takes many times as long.
    #[inline]
    const fn remainder(self, n: u64) -> u64 {
        let quotient = ((n as u128 * self.inverse as u128) >> 64) as u64;
        // The quotient is right or one too low.
        let remainder = n - quotient * self.divisor;
        if remainder >= self.divisor {
            remainder - self.divisor
        } else {
            remainder
        }
    }
}

const fn is_prime(n: u32) -> bool {
    let mut divisor = 2;
    while divisor * divisor <= n {
        if n % divisor == 0 {
            return false;
        }
        divisor += 1;
    }
    n > 1
}

/// If a turn would pass over more members than this on average, the heap is faster.
const MOST_PASSES: u64 = 16;

/// A hundred slots each for 655 members keep shares within 1 %. Envoy and the paper use the same
/// number.
const SLOTS: u32 = 65_537;

/// Envoy's limit.
const MOST_SLOTS: u32 = 5_000_011;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_remainder_is_exact(n: u64, divisor in 2_u32..) {
            let remainder = Divisor::new(divisor).remainder(n);
            prop_assert_eq!(remainder, n % u64::from(divisor));
        }
    }

    #[test]
    fn the_remainder_is_exact_at_the_ends() {
        for divisor in [2, 3, 7, 65_537, MOST_SLOTS, u32::MAX] {
            for n in [
                0,
                1,
                u64::MAX,
                u64::MAX - 1,
                u64::from(divisor),
                u64::from(divisor) - 1,
            ] {
                let remainder = Divisor::new(divisor).remainder(n);
                assert_eq!(remainder, n % u64::from(divisor), "{n} mod {divisor}");
            }
        }
    }

    #[test]
    fn both_ways_to_find_the_next_turn_agree() {
        for weights in [
            &[1, 1, 1][..],
            &[1, 2],
            &[5, 1, 1],
            &[7, 3, 2, 2, 9],
            &[1, 1_000, 1],
        ] {
            let keys: Vec<String> = (0..weights.len()).map(|i| i.to_string()).collect();
            let members =
                KeyedMembers::of_keys(keys.iter().map(|key| &**key).zip(weights.iter().copied()));
            let weights: Vec<u64> = weights.iter().map(|&weight| weight.into()).collect();
            let heaviest = weights.iter().copied().max().unwrap();
            type Take<'a> = &'a mut dyn FnMut(usize) -> bool;
            let first = |turns: &dyn Fn(Take<'_>)| {
                let mut members = Vec::new();
                turns(&mut |member| {
                    members.push(member);
                    members.len() < 500
                });
                members
            };
            let by_rounds = first(&|mut take| for_each_turn(&members, &mut take));
            let by_heap = first(&|mut take| for_each_turn_by_heap(&weights, heaviest, &mut take));
            assert_eq!(by_rounds, by_heap, "{weights:?}");
        }
    }

    #[test]
    fn primes() {
        let primes: Vec<u32> = (0..30).filter(|&n| is_prime(n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(SLOTS) && is_prime(MOST_SLOTS) && !is_prime(65_536));
    }
}
