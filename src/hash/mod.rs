//! Which member for this key?
//!
//! Hash policies give session affinity and cache locality. Equal keys reach the same endpoint from
//! every process, platform and language, and few keys move when the set changes. Each scheme is a
//! [`Policy`](crate::Policy). It chooses in `call`, where the request is known:
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{BalanceLayer, Endpoint, RingHash, fixed};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let client = ServiceBuilder::new()
//!     .layer(BalanceLayer::new(RingHash::by(|path: &String| path.as_bytes())))
//!     .layer(fixed(["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]))
//!     .service(|endpoint: &Endpoint<&'static str>| {
//!         let address = *endpoint.address();
//!         service_fn(move |path| async move { Ok::<_, String>(format!("{address}{path}")) })
//!     });
//! let first = client.clone().oneshot("/logo.png".to_owned()).await?;
//! assert_eq!(client.oneshot("/logo.png".to_owned()).await?, first);
//! # Ok::<_, tower::BoxError>(()) })?;
//! # Ok::<_, tower::BoxError>(())
//! ```
//!
//! [`HashKey`] describes keys, their sources and what happens to requests without one. Endpoints
//! are known by their [`Target::hash_key`](crate::Target::hash_key). A key's endpoints, in the
//! key's own order, come from [`Balance::with_table`](crate::Balance::with_table) and
//! [`HashTable::replicas`](table::HashTable::replicas).
//!
//! # Which one when
//!
//! | scheme | take it |
//! |---|---|
//! | [`RingHash`] | by default: a change of the set or of a weight moves only the keys of the changed endpoint; a lookup takes a few nanoseconds |
//! | [`RingHash`] of a [`total`](HashPolicy::total) size | to agree with Envoy's or gRPC's rings, which move half as many keys again |
//! | [`Maglev`] | for the most even shares and the fastest lookups, if one key in two hundred may move without need |
//! | [`Rendezvous`] | for up to some twenty endpoints: minimal movement without a table |
//!
//! Measured with 2 virtual cores of an Intel Xeon and equal weights. The times are from
//! `cargo bench --bench hash`, evenness and movement from
//! `cargo test -p tower-lb-simulations --test hash_tables -- --nocapture`.
//!
//! | | ring, 256 points | ring, 100 points | Maglev, 65 537 | rendezvous |
//! |---|---|---|---|---|
//! | largest share over the mean, N = 10 / 100 / 1 000 | 1.09 / 1.16 / 1.21 | 1.16 / 1.27 / 1.36 | 1.000 / 1.001 / 1.007 | 1.005 / 1.026 / 1.091 of a million keys |
//! | keys moved besides those of a removed endpoint | none | none | .25 % / .58 % / .57 % | none |
//! | lookup, N = 10 / 1 000 / 10 000 | 3 / 13 / 25 ns | 4 / 6 / 21 ns | 3 / 3 / 3 ns | 28 ns / 2.5 us / -, weighted 5 times that |
//! | request through the balancer, N = 10 / 1 000 (p2c: 48 / 47 ns) | 100 / 105 ns | | 103 / 105 ns | 114 ns / 2.3 us |
//! | table built for N = 10 / 1 000 / 10 000 | .1 / 16 / 212 ms | .05 / 7 / 74 ms | 1.1 / 1.6 / 2.9 ms | .5 us / 85 us / 1.3 ms |
//! | one endpoint replaced | .03 / 1.2 / 13 ms | .01 / .7 / 8 ms | 1.1 / 1.6 / 3.5 ms | as built |
//! | memory for each endpoint, N = 10 / 1 000 / 10 000 | 4 kB | 1.5 kB | 6.6 kB / 195 B / 78 B | 84 B |
//!
//! In the same run, a binary search over a plain sorted array of 100 points an endpoint takes 12,
//! 38 and 135 ns, the crate `hashring` 33 / 99 / 552 ns and the crate `maglev` 15 ns. Tables are
//! built on the driver's task, off the request path.
//!
//! # Bounded loads
//!
//! Hashing alone ignores load: one hot key can overload its endpoint.
//! [`bounded`](HashPolicy::bounded) caps every endpoint at a multiple of the mean number of
//! requests in flight, and sends the excess to the key's other endpoints. It costs a request some
//! 30 ns more: the shared total is incremented and decremented, and both counts are read. A bound
//! of 1.25 keeps endpoints within 25 % of the mean and displaces some keys whenever load is skewed.
//! A bound of 2 displaces only what is really hot.
//!
//! The tighter the bound, the more is displaced. At 1.05 it is a third more than in the paper:
//! there, keys arrive once and stay, but requests come and go, and each one that ends opens a place
//! that the next request may take for the wrong key.
//!
//! [`Overflow::Rehash`] over a ring displaces more keys than walking on, unless the shares are
//! even: a jump lands on an endpoint in proportion to its share, so the largest share gets the
//! most, and is full first. Take it with [`Maglev`].
//!
//! # What moves a key
//!
//! | event | ring, rendezvous | Maglev |
//! |---|---|---|
//! | an endpoint is ejected, unhealthy or not ready | its keys go to the next endpoint in their own order, and return when it is available again | the same |
//! | an endpoint leaves or is drained | its keys alone | and some .6 % of the others |
//! | an endpoint joins | keys to it alone | and some .6 % of the others |
//! | a ring outgrows eight million [points](HashPolicy::points) | half of all | |
//! | a weight changes | keys to or from that endpoint alone | and a few others |
//!
//! The hashes are stable: a release that changes which key goes where is a breaking release.

mod bounded;
mod error;
mod hash_table;
mod key;
mod keyed_members;
mod maglev;
mod policy;
mod rendezvous;
mod ring;
mod ring_counts;

#[cfg(feature = "http")]
pub(crate) use self::key::hash_bytes;
pub use self::{
    bounded::{Bounded, Overflow},
    error::HashSettingError,
    key::{HashKey, OnMissing, RotateXor, borrowed, hashed, owned, rotate_xor},
    policy::HashPolicy,
    ring_counts::EndpointOrder,
};

/// The tables that the hash policies build, and the schemes that build them.
pub mod table {
    pub use super::{
        bounded::BoundedTable,
        hash_table::{HashScheme, HashTable, Lookup, Order},
        maglev::{MaglevScheme, MaglevTable},
        rendezvous::{RendezvousScheme, RendezvousTable},
        ring::{RingScheme, RingTable},
    };
    #[doc(hidden)]
    pub use super::{keyed_members::KeyedMembers, rendezvous::RendezvousCursor};
}

/// The types of the keys that are made from closures.
pub mod keys {
    pub use super::key::{Borrowed, Bytes, Hashed, Owned};
}

/// Spreads keys over a ring of points. See [`RingTable`](table::RingTable) and [`HashPolicy`].
pub type RingHash<Key> = HashPolicy<table::RingScheme, Key>;

/// Spreads keys over a table of slots. See [`MaglevTable`](table::MaglevTable) and [`HashPolicy`].
pub type Maglev<Key> = HashPolicy<table::MaglevScheme, Key>;

/// Spreads keys by the highest score. See [`RendezvousTable`](table::RendezvousTable) and
/// [`HashPolicy`].
pub type Rendezvous<Key> = HashPolicy<table::RendezvousScheme, Key>;
