use std::cmp::Reverse;

use crate::{endpoint::Address, member::Member, policy::Candidates};

/// The members of one snapshot that have a weight, sorted by key. The keys are distinct.
///
/// The order of the snapshot's list affects only the positions.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyedMembers {
    list: Box<[KeyedMember]>,
    /// Members whose key another member in `list` has. They have no share of the keys, and are
    /// tried last.
    namesakes: Box<[KeyedMember]>,
    /// A number above all positions, 0 if there are none.
    positions: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct KeyedMember {
    pub(super) key: Box<str>,
    pub(super) weight: u32,
    /// The member's place in the list that it came from.
    pub(super) position: u32,
    /// Whether the member may be picked. If not, it still keeps its place in the order.
    pub(super) is_candidate: bool,
}

impl KeyedMembers {
    /// Takes the included members that have a weight. Draining members have none.
    pub(super) fn of_candidates<A: Address, S>(candidates: Candidates<'_, A, S>) -> Self {
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
                is_candidate: candidates.contains(position),
            };
            (keyed, address)
        };
        let members = candidates.members().iter().enumerate();
        let included = members.filter(|(position, _)| candidates.includes(*position));
        Self::sorted(included.map(keyed))
    }

    /// Takes a list of keys and weights.
    pub(super) fn of_keys<'a>(members: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let member = |(position, (key, weight)): (usize, (&str, u32))| {
            let member = KeyedMember {
                key: key.into(),
                weight,
                position: position as u32,
                is_candidate: true,
            };
            (member, String::new())
        };
        Self::sorted(members.into_iter().enumerate().map(member))
    }

    /// Sorts members by key. Each comes with a text that ranks members of the same key.
    fn sorted(members: impl Iterator<Item = (KeyedMember, String)>) -> Self {
        let mut members: Vec<_> = members.filter(|(member, _)| member.weight > 0).collect();
        // Of members with one key, the first gets it. Candidates come first, then the least
        // address, then the largest weight.
        let rank = |(member, address): &(KeyedMember, String)| {
            (
                !member.is_candidate,
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
        }
    }

    pub(super) const fn as_slice(&self) -> &[KeyedMember] {
        &self.list
    }

    /// Returns a number above all positions.
    pub(super) const fn positions(&self) -> usize {
        self.positions
    }

    /// Returns all members that may be picked; members that share another one's key come last.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &KeyedMember> {
        let all = self.list.iter().chain(&self.namesakes);
        all.filter(|member| member.is_candidate)
    }

    /// Returns the weight of all members, if it is the same for all.
    pub(super) fn common_weight(&self) -> Option<u32> {
        let first = self.list.first()?.weight;
        let is_common = self.list.iter().all(|member| member.weight == first);
        is_common.then_some(first)
    }

    /// Returns whether both have the same keys and weights.
    ///
    /// If so, a table built from keys and weights alone is the same for both.
    pub(super) fn are_alike(&self, other: &Self) -> bool {
        let is_alike =
            |(a, b): (&KeyedMember, &KeyedMember)| a.key == b.key && a.weight == b.weight;
        self.list.len() == other.list.len() && self.list.iter().zip(&other.list).all(is_alike)
    }
}
