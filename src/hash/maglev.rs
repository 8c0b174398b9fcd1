use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use super::{
    error::HashSettingError,
    hosts::{Host, Hosts},
    key::hash_bytes,
    table::{Lookup, Scheme, sealed::Sealed},
};

/// The settings of a [`Maglev`](super::Maglev) policy: the size of its table.
#[derive(Clone, Debug)]
pub struct MaglevScheme {
    slots: u32,
}

/// A table of slots that hosts share evenly, to within one slot each, or by weight.
///
/// A key belongs to the host of slot `hash mod slots`; the hosts of the slots after it follow. Cost: a
/// lookup is **O(1)**, a multiplication and two reads; to build, O(slots log slots); 1, 2 or 4 bytes
/// a slot, as the number of hosts requires.
///
/// Source: Eisenbud et al., "Maglev", NSDI 2016, with the weights of Envoy's `MAGLEV`.
#[derive(Debug)]
pub struct MaglevTable {
    slots: Arc<Slots>,
    divisor: Divisor,
    /// The position of each host, as long as it may be picked.
    positions: Box<[u32]>,
}

/// The number of the host of each slot, in no wider numbers than the hosts need.
#[derive(Debug)]
enum Slots {
    U8(Box<[u8]>),
    U16(Box<[u16]>),
    U32(Box<[u32]>),
}

/// Divides by the same number again and again.
#[derive(Clone, Copy, Debug)]
struct Divisor {
    divisor: u64,
    /// 2^64 / divisor, rounded down.
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

impl Scheme for MaglevScheme {
    type Table = MaglevTable;

    fn build(&self, hosts: &Hosts, previous: Option<(&Hosts, &MaglevTable)>) -> MaglevTable {
        let slots = match previous {
            // Who may be picked makes no difference: who may not is passed over.
            Some((before, table))
                if table.divisor.divisor == u64::from(self.slots) && before.are_alike(hosts) =>
            {
                table.slots.clone()
            }
            _ => Arc::new(Slots::build(hosts, self.slots)),
        };
        let position = |host: &Host| {
            if host.is_candidate {
                host.position
            } else {
                NOT_NOW
            }
        };
        MaglevTable {
            slots,
            divisor: Divisor::new(self.slots),
            positions: hosts.as_slice().iter().map(position).collect(),
        }
    }
}

impl MaglevTable {
    /// Returns the position of each slot's host; `None` where the host may not be picked, or there is none.
    pub fn slots(&self) -> impl Iterator<Item = Option<usize>> {
        (0..self.divisor.divisor as usize).map(|slot| self.position(slot))
    }

    #[inline]
    fn position(&self, slot: usize) -> Option<usize> {
        let host = match &*self.slots {
            Slots::U8(slots) => usize::from(*slots.get(slot)?),
            Slots::U16(slots) => usize::from(*slots.get(slot)?),
            Slots::U32(slots) => *slots.get(slot)? as usize,
        };
        let position = *self.positions.get(host)?;
        (position != NOT_NOW).then_some(position as usize)
    }
}

impl Lookup for MaglevTable {
    /// The next slot, and how many are left.
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
        while *left > 0 {
            *left -= 1;
            let slot = *next;
            *next = if slot + 1 == self.divisor.divisor as usize {
                0
            } else {
                slot + 1
            };
            let position = self.position(slot);
            if position.is_some() {
                return position;
            }
        }
        None
    }
}

impl Slots {
    fn build(hosts: &Hosts, slots: u32) -> Self {
        // The conversions lose nothing: a host's number is below the number of hosts.
        match hosts.as_slice().len() {
            0..=0x100 => Self::U8(fill(hosts, slots, |host| host as u8)),
            0x101..=0x1_0000 => Self::U16(fill(hosts, slots, |host| host as u16)),
            _ => Self::U32(fill(hosts, slots, |host| host as u32)),
        }
    }
}

/// Has the hosts take free slots in turns, each along its own permutation of them.
fn fill<T: Clone + Default>(hosts: &Hosts, slots: u32, number: impl Fn(usize) -> T) -> Box<[T]> {
    let mut walks: Vec<Walk> = hosts
        .as_slice()
        .iter()
        .map(|host| Walk::new(host, slots))
        .collect();
    let mut owners = vec![T::default(); slots as usize];
    // A bit a slot stays in the nearest cache, where the slots themselves would not: each is looked at 12 times.
    let mut taken = vec![0_u64; slots as usize / 64 + 1];
    let mut left = slots;
    let mut take = |host: usize| {
        let slot = walks[host].next_free(&mut taken, slots);
        owners[slot as usize] = number(host);
        left -= 1;
        left > 0
    };
    for_each_turn(hosts, &mut take);
    owners.into()
}

/// Where a host looks next for a free slot, and how far it goes from there.
struct Walk {
    slot: u32,
    skip: u32,
}

impl Walk {
    fn new(host: &Host, slots: u32) -> Self {
        let hash = |seed| hash_bytes(host.key.as_bytes(), seed);
        Self {
            slot: (hash(0) % u64::from(slots)) as u32,
            // The number of slots is prime: any skip leads to all of them.
            skip: (hash(1) % u64::from(slots - 1)) as u32 + 1,
        }
    }

    /// Takes the next slot that is not taken; there must be one.
    #[inline]
    fn next_free(&mut self, taken: &mut [u64], slots: u32) -> u32 {
        let mut slot = self.slot;
        loop {
            let this = slot;
            // Both are below the number of slots: five million.
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

/// Has the hosts take a slot in turns, while `take` says so: round after round, the lighter ones passed over in some.
///
/// In round `k` (from 1) a host of weight `w` that has had `j` turns has another if `k * w >= j * max w`.
fn for_each_turn(hosts: &Hosts, take: &mut impl FnMut(usize) -> bool) {
    let weights: Vec<u64> = hosts
        .as_slice()
        .iter()
        .map(|host| host.weight.into())
        .collect();
    let heaviest = weights.iter().copied().max().unwrap_or(0);
    let sum: u64 = weights.iter().sum();
    // At most five million turns of a weight below 2^32.
    let mut targets = vec![0_u64; weights.len()];
    if heaviest * weights.len() as u64 > sum * MOST_PASSES {
        return for_each_turn_by_heap(&weights, heaviest, take);
    }
    for round in 1_u64.. {
        for (host, (target, &weight)) in targets.iter_mut().zip(&weights).enumerate() {
            if round * weight < *target {
                continue;
            }
            *target += heaviest;
            if !take(host) {
                return;
            }
        }
        if weights.is_empty() {
            return;
        }
    }
}

/// The same where in most rounds nearly all hosts would be passed over.
fn for_each_turn_by_heap(weights: &[u64], heaviest: u64, take: &mut impl FnMut(usize) -> bool) {
    // The next turns, by round and then by host. Everyone has one in the first round.
    let mut next: BinaryHeap<_> = (0..weights.len())
        .map(|host| Reverse((1_u64, host, 0_u64)))
        .collect();
    while let Some(mut turn) = next.peek_mut() {
        let Reverse((round, host, had)) = *turn;
        let had = had + 1;
        let round = (had * heaviest).div_ceil(weights[host]).max(round + 1);
        *turn = Reverse((round, host, had));
        drop(turn);
        if !take(host) {
            return;
        }
    }
}

impl Divisor {
    const fn new(divisor: u32) -> Self {
        let divisor = divisor as u64;
        Self {
            divisor,
            // The largest u64 in place of 2^64: the same for what is not a power of two; 2 is one too low.
            inverse: u64::MAX / divisor,
        }
    }

    /// Returns `n mod divisor` by multiplication: a division takes many times as long.
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

const NOT_NOW: u32 = u32::MAX;

/// So many hosts are passed over for each turn, on average, before a heap finds the next one sooner.
const MOST_PASSES: u64 = 16;

/// A hundred slots each for 655 hosts: shares within 1 %. Envoy's and the paper's choice.
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
            let hosts = Hosts::of_keys(keys.iter().map(|key| &**key).zip(weights.iter().copied()));
            let weights: Vec<u64> = weights.iter().map(|&weight| weight.into()).collect();
            let heaviest = weights.iter().copied().max().unwrap();
            type Take<'a> = &'a mut dyn FnMut(usize) -> bool;
            let first = |turns: &dyn Fn(Take<'_>)| {
                let mut hosts = Vec::new();
                turns(&mut |host| {
                    hosts.push(host);
                    hosts.len() < 500
                });
                hosts
            };
            let by_rounds = first(&|mut take| for_each_turn(&hosts, &mut take));
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
