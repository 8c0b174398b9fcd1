use super::{
    error::HashSettingError,
    hash_table::{HashScheme, HashTable},
    key::{HashKey, rehash},
    keyed_members::KeyedMembers,
    policy::HashPolicy,
};
use crate::{
    endpoint::Address,
    member::Member,
    metric::TotalInFlight,
    policy::{Candidates, Choice, Mask, PickContext, Policy},
};

/// Spreads by key, but bounds the load of every endpoint.
///
/// Let `m` be the requests in flight at all endpoints that may be picked, and `c` the bound. An
/// endpoint of weight `w` takes another request while it has fewer than
/// `ceil(c * (m + 1) * w / sum of the weights)`, and always at least one. Otherwise the request
/// goes to the next endpoint in the key's own order, or to the one that
/// [`overflow`](Self::overflow) selects. Made by [`HashPolicy::bounded`], after the policy's own
/// settings.
///
/// It reads the counts of trackers that share their total:
/// `each(PendingRequestsLayer::default().with_total())`. Counts are exact except for picks that
/// other threads make at the same moment. Requests still in flight at endpoints that have left
/// count in `m`. Those at ejected and draining endpoints do not. When an endpoint is passed over
/// because it is not ready, the bound is computed once more, from the remaining endpoints alone.
///
/// Cost: a pick reads the total, one count for each endpoint that it looks at, and one for each
/// endpoint that may not be picked. With many keys it looks at no more than `2 / (c - 1)^2`
/// endpoints on average. A single hot key fills one endpoint of its order after another, and each
/// of its requests looks at all the full ones: some microseconds for a thousand of them.
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
pub struct Bounded<Scheme, Key> {
    policy: HashPolicy<Scheme, Key>,
    bound: f64,
    overflow: Overflow,
}

/// Selects where a request goes when its endpoint already has its bounded share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// To the next endpoint in the key's own order.
    ///
    /// On a ring, all requests that a hot endpoint can't take go to the few endpoints that follow
    /// its points, and from those to the next ones.
    #[default]
    Next,
    /// To the endpoint that the key's hash, hashed again, leads to: a random one, but always the
    /// same for one key.
    ///
    /// When many keys make an endpoint hot, their overflow spreads over all other endpoints. The
    /// overflow of one hot key moves from one random endpoint to the next.
    ///
    /// Source: Chen, Coleman and Shrivastava, "Revisiting Consistent Hashing with Bounded Loads",
    /// AAAI 2021.
    Rehash,
}

/// The table of [`Bounded`].
#[derive(Debug)]
pub struct BoundedTable<T> {
    table: HashTable<T>,
    /// The sum of the weights of all members that may be picked.
    weights: f64,
    /// The positions of the members that may not be picked. Usually there are few.
    set_aside: Box<[u32]>,
}

impl<Scheme, Key> Bounded<Scheme, Key> {
    pub(super) fn new(
        policy: HashPolicy<Scheme, Key>,
        bound: f64,
    ) -> Result<Self, HashSettingError> {
        if !bound.is_finite() || bound < 1.0 {
            return Err(HashSettingError::Bound(bound));
        }
        Ok(Self {
            policy,
            bound,
            overflow: Overflow::default(),
        })
    }

    /// Sets where a request goes when its endpoint already has its share.
    ///
    /// Default [`Overflow::Next`].
    #[must_use]
    pub const fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Returns the limit of one endpoint: it takes another request while fewer are in flight.
    fn capacity(&self, in_flight: usize, weight: u32, weights: f64) -> f64 {
        let share = self.bound * (in_flight as f64 + 1.0) * f64::from(weight) / weights;
        share.ceil().max(1.0)
    }
}

impl<Scheme: HashScheme, Key> HashPolicy<Scheme, Key> {
    /// Bounds the load of every endpoint to `bound` times the mean, see [`Bounded`].
    ///
    /// # Errors
    ///
    /// If `bound` is below 1 or not finite.
    pub fn bounded(self, bound: f64) -> Result<Bounded<Scheme, Key>, HashSettingError> {
        Bounded::new(self, bound)
    }
}

impl<T> BoundedTable<T> {
    /// Returns the table that the bound is applied to.
    pub const fn get_ref(&self) -> &HashTable<T> {
        &self.table
    }
}

impl<Scheme: HashScheme, Key> Bounded<Scheme, Key> {
    /// Finds the first accepted member, in the key's order or by repeated hashing.
    fn find(
        &self,
        table: &HashTable<Scheme::Table>,
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
        // All jumps have failed: search in order, from where the last one led.
        table.find(hash, accept)
    }

    /// Finds a member among the remaining candidates, when some are passed over or none has room.
    ///
    /// It sums up the counts of these candidates alone.
    #[cold]
    fn find_among<A, S: TotalInFlight>(
        &self,
        table: &HashTable<Scheme::Table>,
        hash: u64,
        candidates: Candidates<'_, A, S>,
    ) -> Option<usize> {
        let has_room = self.room_among(candidates)?;
        // Some candidate has room, unless other picks have just taken it. Then any candidate will
        // do.
        self.find(table, hash, has_room)
            .or_else(|| table.find(hash, |position| candidates.contains(position)))
    }

    /// Returns a test of whether a position is that of a candidate with room, by the sums of these
    /// candidates alone. `None` if none has a weight.
    fn room_among<A, S: TotalInFlight>(
        &self,
        candidates: Candidates<'_, A, S>,
    ) -> Option<impl Fn(usize) -> bool> {
        let (mut in_flight, mut weights) = (0, 0.0);
        for (_, member) in candidates.iter() {
            in_flight += member.service.in_flight();
            weights += f64::from(member.weight);
        }
        (weights > 0.0).then_some(move |position: usize| {
            let member = &candidates.members()[position];
            let capacity = self.capacity(in_flight, member.weight, weights);
            candidates.contains(position) && (member.service.in_flight() as f64) < capacity
        })
    }
}

#[diagnostic::do_not_recommend]
impl<Scheme, Key, A, S, Req> Policy<A, S, Req> for Bounded<Scheme, Key>
where
    Scheme: HashScheme,
    Key: HashKey<Req>,
    A: Address,
    S: TotalInFlight,
{
    type Table = BoundedTable<Scheme::Table>;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&Self::Table>,
    ) -> Self::Table {
        let before = previous.map(|table| &table.table.members);
        let members = KeyedMembers::of_candidates(candidates, before);
        let positions = 0..candidates.members().len();
        let set_aside = positions.filter(|&position| !candidates.contains(position));
        BoundedTable {
            set_aside: set_aside.map(|position| position as u32).collect(),
            weights: members.candidates().map(|m| f64::from(m.weight)).sum(),
            table: self
                .policy
                .build(members, previous.map(BoundedTable::get_ref)),
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
            .map_or(Choice::Nobody, Choice::Member)
    }

    fn pick_several(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
        most: usize,
    ) -> Option<Vec<usize>> {
        let hash = self.policy.hash(cx).ok()?;
        let has_room = self.room_among(candidates)?;
        let mut chosen = Mask::new();
        let mut picks = Vec::new();
        while picks.len() < most.min(MOST_BY_KEY) {
            let accept = |position| !chosen.contains(position) && has_room(position);
            let Some(position) = self.find(&table.table, hash, accept) else {
                break;
            };
            chosen.insert(position);
            picks.push(position);
        }
        if picks.len() < most {
            let load = |member: &Member<A, S>| {
                member.service.in_flight() as f64 / f64::from(member.weight)
            };
            // The sort is stable: members with room come from a position on that the key leads to.
            let start = hash as usize % candidates.members().len().max(1);
            let (before, after): (Vec<_>, Vec<_>) = candidates
                .iter()
                .filter(|(position, _)| !chosen.contains(*position))
                .map(|(position, member)| match has_room(position) {
                    true => (position, 0.0),
                    false => (position, load(member)),
                })
                .partition(|(position, _)| *position < start);
            let mut others = [after, before].concat();
            others.sort_by(|(_, a), (_, b)| a.total_cmp(b));
            picks.extend(others.into_iter().map(|(position, _)| position));
            picks.truncate(most);
        }
        Some(picks)
    }

    fn hash_of(&self, cx: &mut PickContext<'_, Req>) -> Option<u64> {
        self.policy.key_hash(cx.request()?)
    }

    fn seed(&self) -> Option<u64> {
        self.policy.random_seed()
    }
}

/// Limits the jumps of one pick. With many keys and nine in ten endpoints full, one pick in a
/// thousand has found no room by then.
const MOST_JUMPS: u64 = 64;

/// After this many members that are not ready, the key's own order is left: to find each one costs
/// a walk past those before it.
const MOST_BY_KEY: usize = 16;
