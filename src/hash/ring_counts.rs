use tracing::warn;

use super::keyed_members::KeyedMember;

/// Selects the order in which endpoints get the points of a ring of fixed size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointOrder {
    /// By their keys. The order of the list has no effect.
    #[default]
    ByKey,
    /// As listed. A balancer lists its members in the order in which they joined.
    AsGiven,
}

/// Returns `points` for each unit of weight, halved until the total is at most [`MOST_POINTS`].
///
/// Every member gets at least one.
pub(super) fn counts_per_weight(members: &[KeyedMember], points: u32) -> Box<[u32]> {
    let sum: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
    // Fits: at most 2^32 members of a weight below 2^32, and 2^16 points, are 80 bits.
    let total = u128::from(sum) * u128::from(points);
    let mut halvings = 0;
    while total >> halvings > MOST_POINTS as u128 {
        halvings += 1;
    }
    if halvings > 0 {
        warn!(
            total,
            most = MOST_POINTS,
            halvings,
            "too many points for a ring: fewer points a unit of weight suit such weights"
        );
    }
    let count = |member: &KeyedMember| (u64::from(member.weight) * u64::from(points)) >> halvings;
    members
        .iter()
        .map(|member| count(member).max(1) as u32)
        .collect()
}

/// Sizes a ring as Envoy and gRPC do, with their arithmetic.
///
/// The lightest member gets whole points.
pub(super) fn counts_of_total(
    members: &[KeyedMember],
    min: usize,
    max: usize,
    order: EndpointOrder,
) -> Box<[u32]> {
    let sum: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let share = |member: &KeyedMember| f64::from(member.weight) / sum;
    let least = members.iter().map(share).fold(1.0, f64::min);
    let scale = ((least * min as f64).ceil() / least).min(max as f64);
    let mut in_order: Vec<usize> = (0..members.len()).collect();
    if order == EndpointOrder::AsGiven {
        in_order.sort_by_key(|&member| members[member].position);
    }
    let mut counts = vec![0; members.len()];
    let (mut current, mut target) = (0.0, 0.0);
    for member in in_order {
        target += scale * share(&members[member]);
        while current < target {
            counts[member] += 1;
            current += 1.0;
        }
    }
    counts.into()
}

/// Eight million points take 130 MB. They suffice for 320 members of weight 100, or 32 000 of
/// weight 1. Envoy's configuration has the same limit.
pub(super) const MOST_POINTS: usize = 1 << 23;
