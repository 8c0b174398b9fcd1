use super::{
    error::HashSettingError,
    hosts::Hosts,
    key::{HashKey, rehash},
    policy::HashPolicy,
    table::{HashTable, Scheme},
};
use crate::{
    endpoint::Address,
    metric::TotalInFlight,
    policy::{Candidates, Choice, Member, PickContext, Policy},
};

/// Spreads by key, but bounds the load of every endpoint.
///
/// With `m` requests in flight at all endpoints that may be picked, one of weight `w` takes another while it has fewer
/// than `ceil(c * (m + 1) * w / sum of the weights)`, and at least one; otherwise the next one in the
/// key's own order does, or as [`overflow`](Self::overflow) says. Made by [`HashPolicy::bounded`], after the
/// policy's own settings.
///
/// It reads the counts of trackers that share their total:
/// `each(PendingRequestsLayer::default().with_total())`. Counts are exact up to the picks that are under way on
/// other threads at the same moment. What endpoints that have left still have in flight counts in `m`, what
/// ejected and draining ones have does not. Where an endpoint is passed over for not being ready, the
/// bound is that of the others alone.
///
/// Cost: a pick reads the total and one count for each host that it looks at, and one for each endpoint that may not be
/// picked. With many keys it looks at `2 / (c - 1)^2` hosts on average at the most. A single hot key fills one host after
/// the other of its own order, and each of its requests looks at all that are full: some microseconds for a
/// thousand of them.
///
/// Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018.
///
/// ```
/// use tower::ServiceBuilder;
/// use tower_lb::{BalanceLayer, Endpoint, PendingRequestsLayer, each, fixed, hash::{Overflow, RingHash}};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let policy = RingHash::by(|path: &String| path.as_bytes())
///     .bounded(1.25)?
///     .overflow(Overflow::Rehash);
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(policy))
///     .layer(each(PendingRequestsLayer::default().with_total()))
///     .layer(fixed(["a", "b", "c"]))
///     .service(|_: &Endpoint<&str>| tower::service_fn(|path: String| async { Ok::<_, String>(path) }));
/// # tower::ServiceExt::oneshot(client, "/".to_string()).await?;
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bounded<C, K> {
    policy: HashPolicy<C, K>,
    bound: f64,
    overflow: Overflow,
}

/// Where a request goes whose endpoint has its bounded share already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// To the next one in the key's own order.
    ///
    /// On a ring, the requests of a hot endpoint all flow over to the few that follow its points, and from
    /// those on to the next ones.
    #[default]
    Next,
    /// To where the key's hash, hashed again, leads: to a random one, but the same for the same key.
    ///
    /// Where many keys make an endpoint hot, their overflow spreads over all others. That of one hot key goes
    /// from one random endpoint to the next.
    ///
    /// Source: Chen, Coleman and Shrivastava, "Revisiting Consistent Hashing with Bounded Loads", AAAI 2021.
    Rehash,
}

/// The table of [`Bounded`].
#[derive(Debug)]
pub struct BoundedTable<T> {
    table: HashTable<T>,
    /// Of all that may be picked.
    weights: f64,
    /// The positions of those that may not: few, as a rule.
    set_aside: Box<[u32]>,
}

impl<C, K> Bounded<C, K> {
    pub(super) fn new(policy: HashPolicy<C, K>, bound: f64) -> Result<Self, HashSettingError> {
        if !bound.is_finite() || bound < 1.0 {
            return Err(HashSettingError::Bound(bound));
        }
        Ok(Self {
            policy,
            bound,
            overflow: Overflow::default(),
        })
    }

    /// Sets where a request goes whose endpoint has its share already. Default [`Overflow::Next`].
    #[must_use]
    pub const fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Returns the limit of one endpoint: it takes another request while it has fewer in flight.
    fn capacity(&self, in_flight: usize, weight: u32, weights: f64) -> f64 {
        let share = self.bound * (in_flight as f64 + 1.0) * f64::from(weight) / weights;
        share.ceil().max(1.0)
    }
}

impl<T> BoundedTable<T> {
    /// Returns the table that the bound is put on.
    pub const fn get_ref(&self) -> &HashTable<T> {
        &self.table
    }
}

impl<C: Scheme, K> Bounded<C, K> {
    /// Finds the first in the key's order, or by chance of its hash, that is accepted.
    fn find(
        &self,
        table: &HashTable<C::Table>,
        hash: u64,
        mut accept: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let mut hash = hash;
        if self.overflow == Overflow::Rehash {
            for jump in 1..=MOST_JUMPS {
                let owner = table.owner_of_hash(hash)?;
                if accept(owner) {
                    return Some(owner);
                }
                hash = rehash(hash, jump);
            }
        }
        // After so many jumps in vain, from where the last one led.
        table.find(hash, accept)
    }

    /// Finds one among candidates that are not those of the table, or whose counts have just changed.
    #[cold]
    fn find_among<A, S: TotalInFlight>(
        &self,
        table: &HashTable<C::Table>,
        hash: u64,
        candidates: Candidates<'_, A, S>,
    ) -> Option<usize> {
        let (mut in_flight, mut weights) = (0, 0.0);
        for (_, member) in candidates.iter() {
            in_flight += member.service.in_flight();
            weights += f64::from(member.weight);
        }
        if weights == 0.0 {
            return None;
        }
        let is_left = |position| candidates.contains(position);
        let has_room = |position: usize| {
            let member = &candidates.members()[position];
            let capacity = self.capacity(in_flight, member.weight, weights);
            is_left(position) && (member.service.in_flight() as f64) < capacity
        };
        // Somebody has room, unless other picks have just taken it.
        self.find(table, hash, has_room)
            .or_else(|| table.find(hash, is_left))
    }
}

impl<C, K, A, S, Req> Policy<A, S, Req> for Bounded<C, K>
where
    C: Scheme,
    K: HashKey<Req>,
    A: Address,
    S: TotalInFlight,
{
    type Table = BoundedTable<C::Table>;

    fn table(&self, members: &[Member<A, S>], previous: Option<&Self::Table>) -> Self::Table {
        let hosts = Hosts::of_members(members);
        let set_aside = members
            .iter()
            .enumerate()
            .filter(|(_, member)| !member.candidate);
        BoundedTable {
            set_aside: set_aside.map(|(position, _)| position as u32).collect(),
            weights: hosts.candidates().map(|host| f64::from(host.weight)).sum(),
            table: self
                .policy
                .build(hosts, previous.map(BoundedTable::get_ref)),
        }
    }

    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        let hash = match self.policy.hash(cx) {
            Ok(hash) => hash,
            Err(choice) => return choice,
        };
        let members = candidates.members();
        let in_flight = |position: usize| members[position].service.in_flight();
        let total = members.first().map(|member| {
            let set_aside = table
                .set_aside
                .iter()
                .map(|&position| in_flight(position as usize));
            let total = member.service.total_in_flight();
            total.saturating_sub(set_aside.sum())
        });
        let found = total
            .filter(|_| !candidates.is_narrowed())
            .and_then(|total| {
                self.find(&table.table, hash, |position| {
                    let capacity = self.capacity(total, members[position].weight, table.weights);
                    (in_flight(position) as f64) < capacity
                })
            });
        found
            .or_else(|| self.find_among(&table.table, hash, candidates))
            .map_or(Choice::None, Choice::Member)
    }

    fn seed(&self) -> Option<u64> {
        self.policy.random_seed()
    }
}

/// If nine in ten have no room, one in a thousand of many keys has not found any by then.
const MOST_JUMPS: u64 = 64;
