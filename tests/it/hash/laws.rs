//! Laws that hold for every set and every key.

use super::*;

/// Lists of distinct names and small weights, some of them 0.
fn hosts(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(String, u32)>> {
    prop::collection::hash_map("[a-z0-9.:_]{0,12}", 0_u32..6, n)
        .prop_map(|hosts| hosts.into_iter().collect())
}

fn takes_traffic(hosts: &[(String, u32)]) -> bool {
    hosts.iter().any(|(_, weight)| *weight > 0)
}

/// Returns the old and the new owner of each key that a change of the set moved.
fn moves<C: HashScheme>(
    policy: &HashPolicy<C, impl Sized>,
    before: &[(String, u32)],
    after: &[(String, u32)],
) -> Vec<(String, String)> {
    let (before, after) = (owners(policy, before, 500), owners(policy, after, 500));
    before
        .into_iter()
        .zip(after)
        .filter(|(from, to)| from != to)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_the_list_is_of_no_account(
        (list, shuffled) in hosts(1..20).prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
    ) {
        prop_assume!(takes_traffic(&list));
        fn check<C: HashScheme>(policy: HashPolicy<C, impl Sized>, a: &[(String, u32)], b: &[(String, u32)]) {
            assert_eq!(owners(&policy, a, 300), owners(&policy, b, 300));
        }
        check(policy!(RingHash), &list, &shuffled);
        check(policy!(RingHash).total(100, 1000).unwrap(), &list, &shuffled);
        check(policy!(Maglev).table_size(211).unwrap(), &list, &shuffled);
        check(policy!(Rendezvous), &list, &shuffled);
        // The whole ring and the whole table are equal, too.
        let names = |hosts: &[(String, u32)]| {
            let ring = table(&policy!(RingHash), hosts);
            let slots = table(&policy!(Maglev).table_size(211).unwrap(), hosts);
            let ring: Vec<_> = ring.get_ref().points().map(|(hash, i)| (hash, hosts[i].0.clone())).collect();
            let slots: Vec<_> = slots.get_ref().slots().map(|i| hosts[i.unwrap()].0.clone()).collect();
            (ring, slots)
        };
        prop_assert_eq!(names(&list), names(&shuffled));
    }

    #[test]
    fn removal_moves_the_removed_hosts_keys_and_addition_moves_keys_to_the_new_one(
        list in hosts(2..20), which: prop::sample::Index,
    ) {
        let one = which.index(list.len());
        let mut others = list.clone();
        let (name, _) = others.remove(one);
        prop_assume!(takes_traffic(&others));
        fn check<C: HashScheme>(policy: &HashPolicy<C, impl Sized>, all: &[(String, u32)], others: &[(String, u32)], name: &str) {
            assert!(moves(policy, all, others).iter().all(|(from, _)| from == name));
            assert!(moves(policy, others, all).iter().all(|(_, to)| to == name));
        }
        check(&policy!(RingHash).points(20).unwrap(), &list, &others, &name);
        check(&policy!(Rendezvous), &list, &others, &name);
    }

    #[test]
    fn a_weight_change_moves_keys_to_or_from_that_host_alone(
        list in hosts(2..20), which: prop::sample::Index, weight in 0_u32..12,
    ) {
        let one = which.index(list.len());
        let mut changed = list.clone();
        changed[one].1 = weight;
        prop_assume!(takes_traffic(&list) && takes_traffic(&changed));
        fn check<C: HashScheme>(policy: &HashPolicy<C, impl Sized>, a: &[(String, u32)], b: &[(String, u32)], one: usize) {
            let (name, grows) = (&a[one].0, b[one].1 > a[one].1);
            for (from, to) in moves(policy, a, b) {
                assert_eq!(if grows { &to } else { &from }, name);
            }
        }
        check(&policy!(RingHash).points(20).unwrap(), &list, &changed, one);
        check(&policy!(Rendezvous), &list, &changed, one);
    }

    #[test]
    fn a_rebuilt_table_is_the_one_that_is_built_anew(lists in prop::collection::vec(hosts(0..12), 2..6)) {
        let ring = policy!(RingHash).points(20).unwrap();
        let total = policy!(RingHash).total(40, 400).unwrap();
        let maglev = policy!(Maglev).table_size(211).unwrap();
        fn list(hosts: &[(String, u32)]) -> impl Iterator<Item = (&str, u32)> {
            hosts.iter().map(|(key, weight)| (&**key, *weight))
        }
        let mut tables = (ring.table_for([]), total.table_for([]), maglev.table_for([]));
        // A few names, which join and leave at various positions of the list.
        for hosts in &lists {
            let hosts: Vec<_> = hosts.iter().map(|(key, weight)| (key.get(..1).unwrap_or("").to_string(), *weight)).collect();
            let mut seen = HashSet::new();
            let hosts: Vec<_> = hosts.into_iter().filter(|(key, _)| seen.insert(key.clone())).collect();
            tables = (
                ring.table_from(list(&hosts), &tables.0),
                total.table_from(list(&hosts), &tables.1),
                maglev.table_from(list(&hosts), &tables.2),
            );
            prop_assert!(tables.0.get_ref().points().eq(ring.table_for(list(&hosts)).get_ref().points()));
            prop_assert!(tables.1.get_ref().points().eq(total.table_for(list(&hosts)).get_ref().points()));
            prop_assert!(tables.2.get_ref().slots().eq(maglev.table_for(list(&hosts)).get_ref().slots()));
        }
    }

    #[test]
    fn the_order_of_a_key_has_no_repeats_and_covers_the_set(list in hosts(0..40), hash: u64) {
        fn check<C: HashScheme>(policy: HashPolicy<C, impl Sized>, hosts: &[(String, u32)], hash: u64) {
            let table = table(&policy, hosts);
            let order: Vec<_> = table.order(hash).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            let all: Vec<_> = (0..hosts.len()).filter(|&i| hosts[i].1 > 0).collect();
            assert_eq!(sorted, all, "{order:?}");
            assert_eq!(table.len(), all.len());
            let key = hash.to_le_bytes();
            let replicas: Vec<_> = table.replicas(&key, 3).collect();
            assert_eq!(replicas.first().copied(), table.owner(&key));
            assert_eq!(replicas.len(), all.len().min(3));
        }
        check(policy!(RingHash).points(3).unwrap(), &list, hash);
        // Fewer points and slots than endpoints.
        check(policy!(RingHash).total(4, 8).unwrap(), &list, hash);
        check(policy!(Maglev).table_size(7).unwrap(), &list, hash);
        check(policy!(Maglev), &list, hash);
        check(policy!(Rendezvous), &list, hash);
    }

    #[test]
    fn no_weight_leaves_a_host_of_a_maglev_table_without_a_slot(
        weights in prop::collection::vec(prop_oneof![0_u32..3, Just(u32::MAX), 0..=u32::MAX], 1..210),
    ) {
        let table = table(&policy!(Maglev).table_size(211).unwrap(), &ports(&weights));
        let with_slots: HashSet<_> = table.get_ref().slots().flatten().collect();
        prop_assert_eq!(with_slots.len(), weights.iter().filter(|&&weight| weight > 0).count());
    }
}

#[test]
fn a_key_has_an_order_over_more_hosts_than_fit_in_line() {
    let hosts = names(3_000);
    fn check<C: HashScheme>(policy: HashPolicy<C, impl Sized>, hosts: &[(String, u32)]) {
        let table = table(&policy, hosts);
        let order: HashSet<_> = table.order(7).collect();
        assert_eq!((order.len(), table.order(7).count()), (3_000, 3_000));
    }
    check(policy!(RingHash).points(8).unwrap(), &hosts);
    check(policy!(Maglev), &hosts);
    check(policy!(Rendezvous), &hosts);
}

#[test]
fn bad_settings_are_named_where_they_are_given() {
    let error = policy!(RingHash).total(20, 10).unwrap_err();
    assert_eq!(error, HashSettingError::RingSize { min: 20, max: 10 });
    assert!(error.to_string().contains("20") && error.to_string().contains("10"));
    assert!(policy!(RingHash).total(0, 10).is_err());
    assert!(policy!(RingHash).total(1, usize::MAX).is_err());
    for points in [0, 65_537, u32::MAX] {
        assert_eq!(
            policy!(RingHash).points(points).unwrap_err(),
            HashSettingError::Points(points)
        );
    }
    for slots in [0, 1, 65_536, 5_000_012, 5_000_029, u32::MAX] {
        assert_eq!(
            policy!(Maglev).table_size(slots).unwrap_err(),
            HashSettingError::TableSize(slots)
        );
    }
    assert!(policy!(Maglev).table_size(5_000_011).is_ok());
    for bound in [f64::NAN, f64::INFINITY, -1.0, 0.0, 0.999] {
        let error = policy!(Rendezvous).bounded(bound).unwrap_err();
        assert!(
            matches!(error, HashSettingError::Bound(_)),
            "{bound}: {error}"
        );
    }
    assert!(policy!(Rendezvous).bounded(1.0).is_ok());
}

#[test]
fn settings_may_come_in_any_order() {
    let counts = |policy: &RingHash<_>| {
        let hosts = [("c".into(), 1), ("b".into(), 1), ("a".into(), 1)];
        let mut counts = [0; 3];
        table(policy, &hosts)
            .get_ref()
            .points()
            .for_each(|(_, i)| counts[i] += 1);
        counts
    };
    let order = EndpointOrder::AsGiven;
    let before = policy!(RingHash).endpoint_order(order).total(1, 2).unwrap();
    let after = policy!(RingHash).total(1, 2).unwrap().endpoint_order(order);
    assert_eq!((counts(&before), counts(&after)), ([1, 1, 0], [1, 1, 0]));
}

#[test]
fn a_table_of_another_size_is_not_taken_over() {
    let small = policy!(Maglev)
        .table_size(7)
        .unwrap()
        .table_for([("a", 1), ("b", 1)]);
    let table = policy!(Maglev).table_from([("a", 1), ("b", 1)], &small);
    assert_eq!(table.get_ref().slots().flatten().count(), 65_537);
}

#[test]
fn no_hosts_have_no_keys() {
    fn check<C: HashScheme>(policy: HashPolicy<C, impl Sized>) {
        for weights in [&[][..], &[0, 0, 0]] {
            let table = table(&policy, &ports(weights));
            assert_eq!(table.owner(b"key"), None);
            assert_eq!(table.order(7).count(), 0);
            assert!(table.is_empty());
        }
    }
    check(policy!(RingHash));
    check(policy!(RingHash).total(100, 100).unwrap());
    check(policy!(Maglev));
    check(policy!(Rendezvous));
    assert_eq!(
        policy!(Maglev)
            .table_for([])
            .get_ref()
            .slots()
            .flatten()
            .count(),
        0
    );
}
