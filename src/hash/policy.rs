use super::{
    error::HashSettingError,
    hash_table::{HashScheme, HashTable},
    key::{Bytes, HashKey, OnMissing},
    keyed_members::KeyedMembers,
    maglev::MaglevScheme,
    ring::RingScheme,
    ring_counts::EndpointOrder,
};
use crate::{
    endpoint::Address,
    policy::{Candidates, Choice, PickContext, Policy},
};

/// Sends equal keys to the same endpoint, by a [scheme](super#which-one-when) and a [`HashKey`].
///
/// Use it through its aliases: [`RingHash`](super::RingHash), [`Maglev`](super::Maglev),
/// [`Rendezvous`](super::Rendezvous). Endpoints are told apart by their
/// [`Target::hash_key`](crate::Target::hash_key), or by their address as text if they have none.
/// Weights come from the endpoints. While an endpoint is not available, its keys go to the next one
/// in their own order, and no other key moves. When it is available again, its keys return. Nothing
/// is built again for that: a lookup passes over those that are unavailable, which takes some
/// nanoseconds each, so with one of ten thousand left some microseconds.
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
pub struct HashPolicy<Scheme, Key> {
    scheme: Scheme,
    key: Key,
    on_missing: OnMissing,
    hash_seed: u64,
    seed: Option<u64>,
}

impl<Scheme: HashScheme, F> HashPolicy<Scheme, Bytes<F>> {
    /// Spreads by bytes that every request has: a path, a user's name.
    pub fn by<Req>(key: F) -> Self
    where
        F: Fn(&Req) -> &[u8] + Send + Sync + 'static,
    {
        Self::by_key(Bytes(key))
    }
}

impl<Scheme: HashScheme, Key> HashPolicy<Scheme, Key> {
    /// Spreads by any kind of key.
    ///
    /// It may be missing, produced for the request, a number, or a combination of keys.
    #[must_use]
    pub fn by_key(key: Key) -> Self {
        Self {
            scheme: Scheme::default(),
            key,
            on_missing: OnMissing::default(),
            hash_seed: 0,
            seed: None,
        }
    }

    /// Sets what happens to a request without a key. Default: it goes to a random endpoint.
    #[must_use]
    pub const fn on_missing(mut self, on_missing: OnMissing) -> Self {
        self.on_missing = on_missing;
        self
    }

    /// Sets the seed of the keys' hashes. Default 0, as in other implementations.
    ///
    /// A secret seed keeps clients from choosing keys that all go to one endpoint. All processes
    /// that must agree need the same seed. Changing it moves nearly all keys.
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

    /// Builds this policy's table for a list of keys and weights, without a balancer.
    ///
    /// Positions are those of the list. Members of weight 0 have no share. Of members with equal
    /// keys, only the heaviest has a share.
    ///
    /// ```
    /// use tower_lb::hash::{Maglev, hashed};
    ///
    /// let maglev = Maglev::by_key(hashed(|key: &u64| Some(*key)));
    /// let table = maglev.table_for([("10.0.0.1:80", 1), ("10.0.0.2:80", 2)]);
    /// let members: Vec<usize> = table.replicas(b"user 7", 2).collect();
    /// assert_eq!(members[0], table.owner(b"user 7").unwrap());
    /// ```
    pub fn table_for<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a str, u32)>,
    ) -> HashTable<Scheme::Table> {
        self.build(KeyedMembers::of_keys(members), None)
    }

    /// Builds the table of another list from a table that this policy made before.
    ///
    /// The result equals that of [`table_for`](Self::table_for) but takes less time. A balancer
    /// uses this way for each change.
    pub fn table_from<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a str, u32)>,
        previous: &HashTable<Scheme::Table>,
    ) -> HashTable<Scheme::Table> {
        self.build(KeyedMembers::of_keys(members), Some(previous))
    }

    pub(super) fn build(
        &self,
        members: KeyedMembers,
        previous: Option<&HashTable<Scheme::Table>>,
    ) -> HashTable<Scheme::Table> {
        HashTable::new(&self.scheme, members, self.hash_seed, previous)
    }

    /// Returns the hash that a request is placed by; `None` if it has no key.
    ///
    /// Pass it to [`HashTable::order`].
    pub fn key_hash<Req>(&self, request: &Req) -> Option<u64>
    where
        Key: HashKey<Req>,
    {
        self.key.hash(request, self.hash_seed)
    }

    /// Returns the hash of a request's key, or the choice to return if it has none.
    #[inline]
    pub(super) fn hash<Req>(&self, cx: &mut PickContext<'_, Req>) -> Result<u64, Choice>
    where
        Key: HashKey<Req>,
    {
        let request = cx.request().ok_or(Choice::NeedsRequest)?;
        match self.key_hash(request) {
            Some(hash) => Ok(hash),
            None if self.on_missing == OnMissing::Random => Ok(cx.random()),
            None => Err(Choice::MissingKey),
        }
    }

    pub(super) const fn random_seed(&self) -> Option<u64> {
        self.seed
    }
}

impl<Key> HashPolicy<RingScheme, Key> {
    /// Sets the points of an endpoint for each unit of its weight, 1 to 65 536. Default 256.
    ///
    /// More points make the shares more even, to some `1 / sqrt(points)`, but cost memory and build
    /// time. A change of the set or of one endpoint's weight moves only that endpoint's keys.
    ///
    /// With large weights, set fewer points. A ring of more than eight million points uses half as
    /// many for each unit, or a quarter, and so on, and logs a `warn` event. When the set grows or
    /// shrinks past that border, half of all keys move.
    ///
    /// # Errors
    ///
    /// If `points` is 0 or above 65 536.
    pub fn points(mut self, points: u32) -> Result<Self, HashSettingError> {
        self.scheme.set_points(points)?;
        Ok(self)
    }

    /// Sizes the ring as Envoy and gRPC do: by its total number of points.
    ///
    /// The ring has `min` points, or more if the lightest endpoint needs them to get whole points,
    /// but at most `max`. Envoy uses 1 024 and 8 388 608, gRPC 1 024 and 4 096.
    ///
    /// Use it only for rings that must equal theirs. A change of the set also moves keys between
    /// endpoints that did not change, because each of these gets more or fewer points. With fewer
    /// points than endpoints, some endpoints have none.
    ///
    /// # Errors
    ///
    /// Unless `1 <= min <= max <= 8388608`.
    pub fn total(mut self, min: usize, max: usize) -> Result<Self, HashSettingError> {
        self.scheme.set_total(min, max)?;
        Ok(self)
    }

    /// Sets the order in which a ring of [`total`](Self::total) size deals out its points.
    ///
    /// Default: by key.
    #[must_use]
    pub fn endpoint_order(mut self, order: EndpointOrder) -> Self {
        self.scheme.set_order(order);
        self
    }
}

impl<Key> HashPolicy<MaglevScheme, Key> {
    /// Sets the number of slots of the table, a prime up to 5 000 011. Default 65 537.
    ///
    /// A hundred or more slots for each endpoint keep the shares within 1 %. More slots move fewer
    /// keys between endpoints that did not change, but cost memory and build time.
    ///
    /// # Errors
    ///
    /// If `slots` is not prime or is too large.
    pub fn table_size(mut self, slots: u32) -> Result<Self, HashSettingError> {
        self.scheme = MaglevScheme::new(slots)?;
        Ok(self)
    }
}

#[diagnostic::do_not_recommend]
impl<Scheme, Key, A, S, Req> Policy<A, S, Req> for HashPolicy<Scheme, Key>
where
    Scheme: HashScheme,
    Key: HashKey<Req>,
    A: Address,
{
    type Table = HashTable<Scheme::Table>;

    fn table(
        &self,
        candidates: Candidates<'_, A, S>,
        previous: Option<&Self::Table>,
    ) -> Self::Table {
        let before = previous.map(|table| &table.members);
        self.build(KeyedMembers::of_candidates(candidates, before), previous)
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
            return Choice::Nobody;
        }
        table
            .find(hash, is_left)
            .map_or(Choice::Nobody, Choice::Member)
    }

    fn any_will_do(&self) -> bool {
        true
    }

    fn pick_several(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
        most: usize,
    ) -> Option<Vec<usize>> {
        let hash = self.hash(cx).ok()?;
        table.find_first(hash, most, |position| candidates.contains(position))
    }

    fn hash_of(&self, cx: &mut PickContext<'_, Req>) -> Option<u64> {
        self.key_hash(cx.request()?)
    }

    fn seed(&self) -> Option<u64> {
        self.seed
    }
}
