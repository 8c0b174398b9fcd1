use std::{collections::BTreeMap, net::SocketAddr};

use hickory_resolver::proto::rr::rdata::SRV;

use crate::endpoint::Target;

/// Returns the weights of SRV records, each relative to those of the same priority.
///
/// RFC 2782: a weight of 0 is a small chance beside others, and all 0 means equal chances. So where
/// a 0 stands beside others, all are taken times 10, and 0 becomes 1.
pub(super) fn weights(records: &[SRV]) -> Vec<u32> {
    let mut levels: BTreeMap<u16, (bool, bool)> = BTreeMap::new();
    for record in records {
        let (has_zero, has_other) = levels.entry(record.priority).or_default();
        match record.weight {
            0 => *has_zero = true,
            _ => *has_other = true,
        }
    }
    let weight = |record: &SRV| match levels.get(&record.priority) {
        Some((true, true)) => (u32::from(record.weight) * 10).max(1),
        _ => u32::from(record.weight).max(1),
    };
    records.iter().map(weight).collect()
}

/// Makes the targets of a record: one for each address of its name.
///
/// The name outlives the address, and so is the key for hashing. Where it has several addresses,
/// these are the keys.
pub(super) fn targets(
    record: &SRV,
    weight: u32,
    addresses: &[std::net::IpAddr],
) -> Vec<Target<SocketAddr>> {
    let name = record.target.to_utf8();
    let key = format!("{}:{}", name.trim_end_matches('.'), record.port);
    let target = |ip: &_| {
        let target = Target::new(SocketAddr::new(*ip, record.port));
        let target = target.weight(weight).priority(record.priority);
        match addresses {
            [_] => target.hash_key(&*key),
            _ => target,
        }
    };
    addresses.iter().map(target).collect()
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use hickory_resolver::proto::rr::Name;

    use super::*;

    fn weights_of(records: &[(u16, u16)]) -> Vec<u32> {
        let srv = |(priority, weight)| SRV::new(priority, weight, 80, Name::root());
        weights(&records.iter().copied().map(srv).collect::<Vec<_>>())
    }

    #[test]
    fn a_weight_of_zero_is_little_and_all_zeros_are_equal() {
        for (records, expected) in [
            (&[][..], &[][..]),
            (&[(0, 5), (0, 1)], &[5, 1]),
            (&[(0, 0), (0, 0)], &[1, 1]),
            (&[(0, 0), (0, 3), (0, 65_535)], &[1, 30, 655_350]),
            // Weights compare within a priority.
            (&[(1, 0), (2, 3), (1, 2), (3, 0)], &[1, 3, 20, 1]),
        ] {
            assert_eq!(weights_of(records), expected, "{records:?}");
        }
    }

    #[test]
    fn the_name_of_a_record_is_its_key_if_it_has_one_address() {
        let name = Name::from_utf8("web-1.users.internal.").unwrap();
        let record = SRV::new(7, 2, 8080, name);
        let one = targets(&record, 3, &["10.0.0.1".parse().unwrap()]);
        let expected = Target::new("10.0.0.1:8080".parse().unwrap());
        let expected = expected.weight(3).priority(7);
        assert_eq!(one, [expected.hash_key("web-1.users.internal:8080")]);
        let ips = ["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        let two = targets(&record, 3, &ips);
        assert_eq!(two.len(), 2);
        assert!(two.iter().all(|target| target.hash_key.is_none()));
    }
}
