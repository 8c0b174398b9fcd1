use super::{
    Bounded,
    error::HashSettingError,
    hosts::Hosts,
    key::{Bytes, HashKey, OnMissing},
    maglev::MaglevScheme,
    ring::{HostOrder, RingScheme},
    table::{HashTable, Scheme},
};
use crate::{
    endpoint::Address,
    policy::{Candidates, Choice, Member, PickContext, Policy},
};

/// Sends equal keys to the same endpoint, by a [scheme](super#which-one-when) and a [`HashKey`].
///
/// Written by its aliases: [`RingHash`](super::RingHash), [`Maglev`](super::Maglev),
/// [`Rendezvous`](super::Rendezvous). Hosts are told apart by [`Target::hash_key`](crate::Target::hash_key), or their address as
/// text where they have none; weights come from the endpoints. A host that is not available is passed over
/// for the next one in the key's own order, and no other key moves; when it is back, so are
/// its keys.
///
/// ```
/// use tower_lb::hash::{OnMissing, RingHash, borrowed};
///
/// struct Request { path: String, user: Option<String> }
///
/// // Every request has a key:
/// let by_path = RingHash::by(|request: &Request| request.path.as_bytes());
/// // Some have none:
/// let by_user = RingHash::by_key(borrowed(|request: &Request| request.user.as_deref().map(str::as_bytes)))
///     .on_missing(OnMissing::Reject);
/// # let _ = (by_path, by_user);
/// ```
#[derive(Clone, Debug)]
pub struct HashPolicy<C, K> {
    scheme: C,
    key: K,
    on_missing: OnMissing,
    hash_seed: u64,
    seed: Option<u64>,
}

impl<C: Scheme, F> HashPolicy<C, Bytes<F>> {
    /// Spreads by bytes that every request lends: a path, a user's name.
    pub fn by<Req>(key: F) -> Self
    where
        F: Fn(&Req) -> &[u8] + Send + Sync + 'static,
    {
        Self::by_key(Bytes(key))
    }
}

impl<C: Scheme, K> HashPolicy<C, K> {
    /// Spreads by any key: one that may miss, is made, is a number, or a combination.
    #[must_use]
    pub fn by_key(key: K) -> Self {
        Self {
            scheme: C::default(),
            key,
            on_missing: OnMissing::default(),
            hash_seed: 0,
            seed: None,
        }
    }

    /// Sets what becomes of a request without a key. Default: a random endpoint.
    #[must_use]
    pub const fn on_missing(mut self, on_missing: OnMissing) -> Self {
        self.on_missing = on_missing;
        self
    }

    /// Sets the seed of the keys' hashes. Default 0, that of other implementations.
    ///
    /// One that nobody knows keeps clients from choosing keys that all go to one endpoint. Every
    /// process that is to agree needs the same one, and to change it moves nearly all keys.
    #[must_use]
    pub const fn hash_seed(mut self, seed: u64) -> Self {
        self.hash_seed = seed;
        self
    }

    /// Draws with a fixed seed for requests without a key, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Bounds the load of every endpoint to `bound` times the mean, see [`Bounded`].
    ///
    /// # Errors
    ///
    /// If it is below 1 or no finite number.
    pub fn bounded(self, bound: f64) -> Result<Bounded<C, K>, HashSettingError> {
        Bounded::new(self, bound)
    }

    /// Builds the table of this policy for a list of host keys and weights, without a balancer.
    ///
    /// Its positions are those of the list; hosts of weight 0 have no share, and of equal keys only the heaviest.
    ///
    /// ```
    /// use tower_lb::hash::{Maglev, hashed};
    ///
    /// let maglev = Maglev::by_key(hashed(|key: &u64| Some(*key)));
    /// let table = maglev.table_for([("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
    /// let hosts: Vec<usize> = table.replicas(b"user 7", 2).collect();
    /// assert_eq!(hosts[0], table.owner(b"user 7").unwrap());
    /// ```
    pub fn table_for<'a>(
        &self,
        hosts: impl IntoIterator<Item = (&'a str, u32)>,
    ) -> HashTable<C::Table> {
        self.build(Hosts::of_keys(hosts), None)
    }

    /// Builds the table of another list from one that this policy made before.
    ///
    /// The same table as [`table_for`](Self::table_for) makes, sooner: a balancer does so with each change.
    pub fn table_from<'a>(
        &self,
        hosts: impl IntoIterator<Item = (&'a str, u32)>,
        previous: &HashTable<C::Table>,
    ) -> HashTable<C::Table> {
        self.build(Hosts::of_keys(hosts), Some(previous))
    }

    pub(super) fn build(
        &self,
        hosts: Hosts,
        previous: Option<&HashTable<C::Table>>,
    ) -> HashTable<C::Table> {
        HashTable::new(&self.scheme, hosts, self.hash_seed, previous)
    }

    /// Returns the hash that a request is placed by; `None` if it has no key.
    ///
    /// What [`HashTable::order`] asks for.
    pub fn hash_of<Req>(&self, request: &Req) -> Option<u64>
    where
        K: HashKey<Req>,
    {
        self.key.hash(request, self.hash_seed)
    }

    /// Returns the hash of a request's key, or what to answer without one.
    #[inline]
    pub(super) fn hash<Req>(&self, cx: &mut PickContext<'_, Req>) -> Result<u64, Choice>
    where
        K: HashKey<Req>,
    {
        let request = cx.request().ok_or(Choice::NeedsRequest)?;
        match self.hash_of(request) {
            Some(hash) => Ok(hash),
            None if self.on_missing == OnMissing::Random => Ok(cx.random()),
            None => Err(Choice::MissingKey),
        }
    }

    pub(super) const fn random_seed(&self) -> Option<u64> {
        self.seed
    }
}

impl<K> HashPolicy<RingScheme, K> {
    /// Sets the points of a host for each unit of its weight, 1 to 65 536. Default 256.
    ///
    /// More of them share more evenly, to some `1 / sqrt(points)`, and cost memory and time to build. A
    /// change of one host's weight, or of the set, moves only that host's keys.
    ///
    /// With large weights, set fewer: a ring of more than eight million points has half as many for each unit, or a
    /// quarter, and so on, and says so in a `warn` event. When the set grows or shrinks past that border, half
    /// of all keys move.
    ///
    /// # Errors
    ///
    /// If it is none of these.
    pub fn points(mut self, points: u32) -> Result<Self, HashSettingError> {
        self.scheme.set_points(points)?;
        Ok(self)
    }

    /// Sizes the ring as Envoy and gRPC do: by its number of points in all.
    ///
    /// `min` or more, so that the lightest host has whole ones, but at most `max`. Envoy's are 1 024 and 8 388 608,
    /// gRPC's 1 024 and 4 096.
    ///
    /// For rings that must be the same as theirs: a change of the set moves keys between hosts that did not
    /// change, for each gets more points or fewer. A host may have none where there are fewer points
    /// than hosts.
    ///
    /// # Errors
    ///
    /// Unless `1 <= min <= max <= 8388608`.
    pub fn total(mut self, min: usize, max: usize) -> Result<Self, HashSettingError> {
        self.scheme.set_total(min, max)?;
        Ok(self)
    }

    /// Sets the order in which a ring of [`total`](Self::total) size deals out its points. Default: by key.
    #[must_use]
    pub fn host_order(mut self, order: HostOrder) -> Self {
        self.scheme.set_order(order);
        self
    }
}

impl<K> HashPolicy<MaglevScheme, K> {
    /// Sets the number of slots of the table, a prime up to 5 000 011. Default 65 537.
    ///
    /// A hundred or more for each host keep the shares within 1 %. More move fewer keys between hosts
    /// that did not change, and cost memory and time to build.
    ///
    /// # Errors
    ///
    /// If it is not prime, or too large.
    pub fn table_size(mut self, slots: u32) -> Result<Self, HashSettingError> {
        self.scheme = MaglevScheme::new(slots)?;
        Ok(self)
    }
}

impl<C, K, A, S, Req> Policy<A, S, Req> for HashPolicy<C, K>
where
    C: Scheme,
    K: HashKey<Req>,
    A: Address,
{
    type Table = HashTable<C::Table>;

    fn table(&self, members: &[Member<A, S>], previous: Option<&Self::Table>) -> Self::Table {
        self.build(Hosts::of_members(members), previous)
    }

    #[inline]
    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        let hash = match self.hash(cx) {
            Ok(hash) => hash,
            Err(choice) => return choice,
        };
        let is_left = |position| !candidates.is_narrowed() || candidates.contains(position);
        if candidates.is_narrowed() && candidates.iter().next().is_none() {
            return Choice::None;
        }
        table
            .find(hash, is_left)
            .map_or(Choice::None, Choice::Member)
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}
