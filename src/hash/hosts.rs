use std::cmp::Reverse;

use crate::{endpoint::Address, policy::Member};

/// The hosts of one snapshot that have a weight, in the order of their keys, which are distinct.
///
/// The order of the list that they came in is of no account then, but for their positions in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    list: Box<[Host]>,
    /// Those whose key another one has: they have no share of the keys, and are tried when nobody else is left.
    namesakes: Box<[Host]>,
    /// A number above all positions.
    positions: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) key: Box<str>,
    pub(super) weight: u32,
    /// Its place in the list that it came in.
    pub(super) position: u32,
    /// Whether it may be picked. One that may not keeps its place in the order all the same.
    pub(super) is_candidate: bool,
}

impl Hosts {
    /// Takes the members that are not draining, which is to say: those of a weight.
    pub(super) fn of_members<A: Address, S>(members: &[Member<A, S>]) -> Self {
        let host = |(position, member): (usize, &Member<A, S>)| {
            let address = member.endpoint.to_string();
            let (key, address) = match member.endpoint.hash_key() {
                Some(key) => (Box::from(&*key), address),
                None => (address.into(), String::new()),
            };
            let host = Host {
                key,
                weight: member.weight,
                position: position as u32,
                is_candidate: member.candidate,
            };
            (host, address)
        };
        Self::sorted(members.iter().enumerate().map(host))
    }

    /// Takes keys and weights.
    pub(super) fn of_keys<'a>(hosts: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let host = |(position, (key, weight)): (usize, (&str, u32))| {
            let host = Host {
                key: key.into(),
                weight,
                position: position as u32,
                is_candidate: true,
            };
            (host, String::new())
        };
        Self::sorted(hosts.into_iter().enumerate().map(host))
    }

    /// Sorts hosts, which come with what tells those of one key apart.
    fn sorted(hosts: impl Iterator<Item = (Host, String)>) -> Self {
        let mut hosts: Vec<_> = hosts.filter(|(host, _)| host.weight > 0).collect();
        // Of one key, the first has it: one that may be picked, with the least address, the heaviest.
        let rank = |(host, address): &(Host, String)| {
            (!host.is_candidate, address.clone(), Reverse(host.weight))
        };
        hosts.sort_by(|a, b| {
            let by_rank = || rank(a).cmp(&rank(b));
            a.0.key.cmp(&b.0.key).then_with(by_rank)
        });
        let ends = hosts.iter().map(|(host, _)| host.position as usize + 1);
        let positions = ends.max().unwrap_or(0);
        let mut list: Vec<Host> = Vec::with_capacity(hosts.len());
        let mut namesakes = Vec::new();
        for (host, _) in hosts {
            match list.last() {
                Some(last) if last.key == host.key => namesakes.push(host),
                _ => list.push(host),
            }
        }
        Self {
            list: list.into(),
            namesakes: namesakes.into(),
            positions,
        }
    }

    pub(super) const fn as_slice(&self) -> &[Host] {
        &self.list
    }

    /// Returns a number above all positions.
    pub(super) const fn positions(&self) -> usize {
        self.positions
    }

    /// Returns all that may be picked, those who have no share of the keys last.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Host> {
        let all = self.list.iter().chain(&self.namesakes);
        all.filter(|host| host.is_candidate)
    }

    /// Returns the common weight of all hosts, where they have one.
    pub(super) fn common_weight(&self) -> Option<u32> {
        let first = self.list.first()?.weight;
        let is_common = self.list.iter().all(|host| host.weight == first);
        is_common.then_some(first)
    }

    /// Returns whether a table by keys and weights alone is the same for both.
    pub(super) fn are_alike(&self, other: &Self) -> bool {
        let is_alike = |(a, b): (&Host, &Host)| a.key == b.key && a.weight == b.weight;
        self.list.len() == other.list.len() && self.list.iter().zip(&other.list).all(is_alike)
    }
}
