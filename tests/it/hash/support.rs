//! Helpers that the tests and the simulations of hashing share.

use tower_lb::hash::{
    HashPolicy,
    table::{HashScheme, HashTable},
};

/// A request that is its own key.
pub(crate) fn number(request: &u64) -> Option<u64> {
    Some(*request)
}

macro_rules! policy {
    ($scheme:ident) => {
        $scheme::by_key(::tower_lb::hash::hashed(number))
    };
}

/// 127.0.0.1:90 and the ports that follow.
pub(crate) fn ports(weights: &[u32]) -> Vec<(String, u32)> {
    let host = |(port, &weight)| (format!("127.0.0.1:{port}"), weight);
    (90..).zip(weights).map(host).collect()
}

pub(crate) fn table<C: HashScheme, K>(
    policy: &HashPolicy<C, K>,
    hosts: &[(String, u32)],
) -> HashTable<C::Table> {
    policy.table_for(hosts.iter().map(|(key, weight)| (&**key, *weight)))
}

/// Returns `n` endpoints by name, each of weight 1.
pub(crate) fn names(n: usize) -> Vec<(String, u32)> {
    (0..n).map(|i| (format!("host-{i}"), 1)).collect()
}

/// Keys that are spread like hashes.
pub(crate) fn keys(n: u64) -> impl Iterator<Item = [u8; 8]> {
    (0..n).map(u64::to_le_bytes)
}

/// Returns the name of the endpoint to which each key belongs.
pub(crate) fn owners<C: HashScheme, K>(
    policy: &HashPolicy<C, K>,
    hosts: &[(String, u32)],
    n: u64,
) -> Vec<String> {
    let table = table(policy, hosts);
    keys(n)
        .map(|key| hosts[table.owner(&key).unwrap()].0.clone())
        .collect()
}

pub(crate) use policy;
