use std::{cmp::Reverse, sync::Arc};

use crate::{endpoint::Address, member::Member, policy::Candidates};

/// The members of one snapshot that have a weight, sorted by key. The keys are distinct.
///
/// The order of the snapshot's list affects only the positions. What does not depend on who may be
/// picked now is shared with the snapshots before and after.
#[derive(Debug, Default)]
pub struct KeyedMembers {
    list: Arc<[KeyedMember]>,
    /// Members whose key another member in `list` has. They have no share of the keys, and are
    /// tried last.
    namesakes: Arc<[KeyedMember]>,
    /// A number above all positions, 0 if there are none.
    positions: usize,
    /// What the lists were made from; empty if they were not made for a balancer.
    made_from: Arc<[Identity]>,
    set_aside: SetAside,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyedMember {
    pub(super) key: Box<str>,
    pub(super) weight: u32,
    /// The member's place in the list that it came from.
    pub(super) position: u32,
}

/// All that a member's key and weight depend on.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    position: usize,
    id: u64,
    weight: u32,
    hash_key: Option<Arc<str>>,
}

/// The positions of members that may not be picked now, one bit each. They keep their places in the
/// order, and lookups pass over them.
#[derive(Clone, Debug, Default)]
pub(super) struct SetAside(Box<[u64]>);

impl SetAside {
    fn of(positions: impl Iterator<Item = usize>) -> Self {
        let mut words = Vec::new();
        for position in positions {
            if position / 64 >= words.len() {
                words.resize(position / 64 + 1, 0);
            }
            words[position / 64] |= 1 << (position % 64);
        }
        Self(words.into())
    }

    /// Returns whether there is any.
    #[inline]
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[inline]
    pub(super) fn contains(&self, position: usize) -> bool {
        let word = self.0.get(position / 64);
        word.is_some_and(|word| word & (1 << (position % 64)) != 0)
    }
}

impl KeyedMembers {
    /// Takes the included members that have a weight. Draining members have none.
    ///
    /// Shares the lists of `previous` if only who may be picked has changed. **O(n)** then, and
    /// O(n log n) otherwise.
    pub(super) fn of_candidates<A: Address, S>(
        candidates: Candidates<'_, A, S>,
        previous: Option<&Self>,
    ) -> Self {
        let included = || {
            let members = candidates.members().iter().enumerate();
            members.filter(|(position, _)| candidates.includes(*position))
        };
        let identity = |(position, member): (usize, &Member<A, S>)| Identity {
            position,
            id: member.id,
            weight: member.weight,
            hash_key: member.endpoint.hash_key(),
        };
        let positions = included().map(|(position, _)| position);
        let set_aside = SetAside::of(positions.filter(|&position| !candidates.contains(position)));
        // Among members of one key, it matters who may be picked.
        let shared = previous.filter(|previous| {
            let before = previous.made_from.iter();
            previous.namesakes.is_empty()
                && before.eq(included().map(identity).collect::<Vec<_>>().iter())
        });
        if let Some(previous) = shared {
            return previous.with(set_aside);
        }
        let keyed = |(position, member): (usize, &Member<A, S>)| {
            let address = member.endpoint.to_string();
            let (key, address) = match member.endpoint.hash_key() {
                Some(key) => (Box::from(&*key), address),
                None => (address.into(), String::new()),
            };
            let keyed = KeyedMember {
                key,
                weight: member.weight,
                position: position as u32,
            };
            (keyed, address)
        };
        let mut keyed = Self::sorted(included().map(keyed), set_aside);
        keyed.made_from = included().map(identity).collect();
        keyed
    }

    /// Returns the same members with other ones set aside.
    fn with(&self, set_aside: SetAside) -> Self {
        Self {
            list: self.list.clone(),
            namesakes: self.namesakes.clone(),
            positions: self.positions,
            made_from: self.made_from.clone(),
            set_aside,
        }
    }

    /// Takes a list of keys and weights.
    pub(super) fn of_keys<'a>(members: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let member = |(position, (key, weight)): (usize, (&str, u32))| {
            let member = KeyedMember {
                key: key.into(),
                weight,
                position: position as u32,
            };
            (member, String::new())
        };
        let members = members.into_iter().enumerate().map(member);
        Self::sorted(members, SetAside::default())
    }

    /// Sorts members by key. Each comes with a text that ranks members of the same key.
    fn sorted(members: impl Iterator<Item = (KeyedMember, String)>, set_aside: SetAside) -> Self {
        let mut members: Vec<_> = members.filter(|(member, _)| member.weight > 0).collect();
        // Of members with one key, the first gets it. Candidates come first, then the least
        // address, then the largest weight.
        let rank = |(member, address): &(KeyedMember, String)| {
            (
                set_aside.contains(member.position as usize),
                address.clone(),
                Reverse(member.weight),
            )
        };
        members.sort_by(|a, b| {
            let by_rank = || rank(a).cmp(&rank(b));
            a.0.key.cmp(&b.0.key).then_with(by_rank)
        });
        let ends = members
            .iter()
            .map(|(member, _)| member.position as usize + 1);
        let positions = ends.max().unwrap_or(0);
        let mut list: Vec<KeyedMember> = Vec::with_capacity(members.len());
        let mut namesakes = Vec::new();
        for (member, _) in members {
            match list.last() {
                Some(last) if last.key == member.key => namesakes.push(member),
                _ => list.push(member),
            }
        }
        Self {
            list: list.into(),
            namesakes: namesakes.into(),
            positions,
            made_from: Arc::default(),
            set_aside,
        }
    }

    pub(super) fn as_slice(&self) -> &[KeyedMember] {
        &self.list
    }

    /// Returns a number above all positions.
    pub(super) const fn positions(&self) -> usize {
        self.positions
    }

    /// Returns all members that may be picked; members that share another one's key come last.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &KeyedMember> {
        let all = self.list.iter().chain(&*self.namesakes);
        all.filter(|member| !self.set_aside.contains(member.position as usize))
    }

    /// Returns the members that may not be picked now.
    pub(super) const fn set_aside(&self) -> &SetAside {
        &self.set_aside
    }

    /// Returns the weight of all members, if it is the same for all.
    pub(super) fn common_weight(&self) -> Option<u32> {
        let first = self.list.first()?.weight;
        let is_common = self.list.iter().all(|member| member.weight == first);
        is_common.then_some(first)
    }

    /// Returns whether both have the same keys and weights at the same positions.
    ///
    /// If so, a table built from these alone is the same for both.
    pub(super) fn are_alike(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.list, &other.list) || self.list == other.list
    }
}
