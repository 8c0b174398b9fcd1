use crate::{endpoint::Address, policy::Member};

/// The hosts of one snapshot that have a weight, in the order of their keys.
///
/// The order of the list that they came in is of no account then, but for their positions in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    list: Box<[Host]>,
    /// A number above all positions.
    positions: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) key: Box<str>,
    /// Tells hosts of the same key apart; empty where the key is the address.
    address: Box<str>,
    pub(super) weight: u32,
    /// Its place in the list that it came in.
    pub(super) position: u32,
    /// Whether it may be picked. One that may not keeps its place in the order all the same.
    pub(super) is_candidate: bool,
}

impl Hosts {
    /// Takes the members that are not draining.
    pub(super) fn of_members<A: Address, S>(members: &[Member<A, S>]) -> Self {
        let host = |(position, member): (usize, &Member<A, S>)| {
            let address = member.endpoint.to_string();
            let (key, address) = match member.endpoint.hash_key() {
                Some(key) => (Box::from(&*key), address.into()),
                None => (address.into(), Box::default()),
            };
            Host {
                key,
                address,
                weight: member.weight,
                position: position as u32,
                is_candidate: member.candidate,
            }
        };
        Self::sorted(members.iter().enumerate().map(host))
    }

    /// Takes keys and weights.
    pub(super) fn of_keys<'a>(hosts: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let host = |(position, (key, weight)): (usize, (&str, u32))| Host {
            key: key.into(),
            address: Box::default(),
            weight,
            position: position as u32,
            is_candidate: true,
        };
        Self::sorted(hosts.into_iter().enumerate().map(host))
    }

    fn sorted(hosts: impl Iterator<Item = Host>) -> Self {
        let mut list: Vec<Host> = hosts.filter(|host| host.weight > 0).collect();
        list.sort_by(|a, b| a.identity().cmp(&b.identity()));
        let ends = list.iter().map(|host| host.position as usize + 1);
        Self {
            positions: ends.max().unwrap_or(0),
            list: list.into(),
        }
    }

    pub(super) const fn as_slice(&self) -> &[Host] {
        &self.list
    }

    /// Returns a number above all positions.
    pub(super) const fn positions(&self) -> usize {
        self.positions
    }

    pub(super) fn candidates(&self) -> impl Iterator<Item = &Host> {
        self.list.iter().filter(|host| host.is_candidate)
    }

    /// Returns the common weight of all hosts, where they have one.
    pub(super) fn common_weight(&self) -> Option<u32> {
        let first = self.list.first()?.weight;
        let is_common = self.list.iter().all(|host| host.weight == first);
        is_common.then_some(first)
    }

    /// Returns whether a table by keys and weights alone is the same for both.
    pub(super) fn are_alike(&self, other: &Self) -> bool {
        let is_alike =
            |(a, b): (&Host, &Host)| a.identity() == b.identity() && a.weight == b.weight;
        self.list.len() == other.list.len() && self.list.iter().zip(&other.list).all(is_alike)
    }
}

impl Host {
    /// What makes it the same host in another snapshot.
    pub(super) fn identity(&self) -> (&str, &str) {
        (&self.key, &self.address)
    }
}
