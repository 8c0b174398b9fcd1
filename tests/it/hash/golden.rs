//! Values on which all implementations agree.

use super::*;

#[test]
fn ring_of_six_equal_hosts() {
    let policy = policy!(RingHash).total(12, 8_388_608).unwrap();
    let table = table(&policy, &ports(&[1; 6]));
    let points: Vec<_> = table
        .get_ref()
        .points()
        .map(|(hash, i)| (hash, 90 + i))
        .collect();
    let expected = [
        (833437586790550860, 94),
        (928266305478181108, 92),
        (1033482794131418490, 90),
        (3551244743356806947, 95),
        (3851675632748031481, 93),
        (5583722120771150861, 91),
        (6311230543546372928, 91),
        (7700377290971790572, 93),
        (13144177310400110813, 95),
        (13444792449719432967, 92),
        (15516499411664133160, 94),
        (16117243373044804889, 90),
    ];
    assert_eq!(points, expected);
    for (hash, port) in [
        (0, 94),
        (u64::MAX, 94),
        (3551244743356806947, 95),
        (3551244743356806948, 93),
    ] {
        assert_eq!(table.order(hash).next(), Some(port - 90), "{hash}");
    }
}

#[test]
fn ring_by_weight_within_a_fixed_total() {
    let policy = policy!(RingHash).total(6, 6).unwrap();
    let points: Vec<_> = table(&policy, &ports(&[1, 2, 3]))
        .get_ref()
        .points()
        .map(|(hash, i)| (hash, 90 + i))
        .collect();
    let expected = [
        (928266305478181108, 92),
        (4443673547860492590, 92),
        (5583722120771150861, 91),
        (6311230543546372928, 91),
        (13444792449719432967, 92),
        (16117243373044804889, 90),
    ];
    assert_eq!(points, expected);
}

/// Where there are fewer points than endpoints, the first endpoints of the order get them.
#[test]
fn a_ring_deals_out_its_points_by_key_or_as_given() {
    let hosts = [("c".into(), 1), ("b".into(), 1), ("a".into(), 1)];
    let counts = |order| {
        let policy = policy!(RingHash).total(1, 2).unwrap().endpoint_order(order);
        let table = table(&policy, &hosts);
        let mut counts = [0; 3];
        table.get_ref().points().for_each(|(_, i)| counts[i] += 1);
        counts
    };
    assert_eq!(counts(EndpointOrder::AsGiven), [1, 1, 0]);
    assert_eq!(counts(EndpointOrder::ByKey), [0, 1, 1]);
}

#[test]
fn maglev_tables() {
    let slots = |size, weights: &[u32]| -> Vec<usize> {
        let policy = policy!(Maglev).table_size(size).unwrap();
        let table = table(&policy, &ports(weights));
        table
            .get_ref()
            .slots()
            .map(|host| 90 + host.unwrap())
            .collect()
    };
    assert_eq!(slots(7, &[1; 6]), [92, 94, 90, 91, 95, 90, 93]);
    assert_eq!(
        slots(17, &[1, 2]),
        [
            91, 90, 90, 91, 90, 91, 91, 90, 91, 91, 91, 91, 91, 90, 91, 90, 91
        ]
    );
}

#[test]
fn keys_have_the_hashes_of_other_languages() {
    let ring = policy!(RingHash).table_for([("127.0.0.1:90", 1), ("127.0.0.1:91", 1)]);
    // XXH64 of "foo" and "bar", seed 0.
    for (key, hash) in [("foo", 3728699739546630719), ("bar", 5234164152756840025)] {
        assert_eq!(ring.owner(key.as_bytes()), ring.order(hash).next());
    }
}

/// The expected values come from an independent program, written from the description in the docs.
#[test]
fn owners_of_some_keys() {
    fn of<C: HashScheme>(policy: HashPolicy<C, impl Sized>, weights: &[u32]) -> Vec<usize> {
        let table = table(&policy, &ports(weights));
        let keys = ["", "foo", "bar", "key", "1", "user:7", "user:8", "/a/b.png"];
        keys.map(|key| 90 + table.owner(key.as_bytes()).unwrap())
            .to_vec()
    }
    let equal = [1; 6];
    let unequal = [1, 2, 3, 4, 5, 6];
    assert_eq!(of(policy!(RingHash), &equal), RING);
    assert_eq!(of(policy!(RingHash), &unequal), RING_WEIGHTED);
    assert_eq!(of(policy!(RingHash).hash_seed(7), &equal), RING_SEEDED);
    assert_eq!(of(policy!(Maglev), &equal), MAGLEV);
    assert_eq!(of(policy!(Maglev), &unequal), MAGLEV_WEIGHTED);
    assert_eq!(of(policy!(Rendezvous), &equal), RENDEZVOUS);
    assert_eq!(of(policy!(Rendezvous), &unequal), RENDEZVOUS_WEIGHTED);
}

const RING: [usize; 8] = [91, 93, 92, 92, 91, 90, 93, 92];
const RING_WEIGHTED: [usize; 8] = [91, 93, 94, 94, 92, 95, 93, 92];
const RING_SEEDED: [usize; 8] = [90, 92, 93, 92, 91, 94, 91, 94];
const MAGLEV: [usize; 8] = [90, 90, 95, 94, 94, 91, 92, 90];
const MAGLEV_WEIGHTED: [usize; 8] = [95, 95, 95, 94, 94, 91, 92, 94];
const RENDEZVOUS: [usize; 8] = [95, 90, 93, 93, 91, 90, 92, 90];
const RENDEZVOUS_WEIGHTED: [usize; 8] = [95, 93, 93, 93, 91, 90, 92, 91];
