//! Which member for this key?
//!
//! Session affinity and cache locality: equal keys reach the same endpoint from every process, platform and
//! language, with little movement when the set changes. Each scheme is a [`Policy`](crate::Policy) that chooses
//! once the request is known, in `call`:
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
//! What a key is, where it comes from and what becomes of requests without one: [`HashKey`]. What hosts are known by:
//! [`Target::hash_key`](crate::Target::hash_key). Which hosts a key has, in its own order:
//! [`Balance::with_table`](crate::Balance::with_table) and [`HashTable::replicas`].
//!
//! # Which one when
//!
//! | scheme | take it |
//! |---|---|
//! | [`RingHash`] | by default: a change of the set or of a weight moves only the changed host's keys, at a few nanoseconds a lookup |
//! | [`RingHash`] of a [`total`](HashPolicy::total) size | to agree with Envoy's or gRPC's rings, which move half as many keys again |
//! | [`Maglev`] | for the most even shares and the fastest lookups, where it may move one key in two hundred that it need not |
//! | [`Rendezvous`] | for up to some twenty hosts: minimal movement without a table |
//!
//! Measured with 2 virtual cores of an Intel Xeon and equal weights (`cargo bench --bench hash`; evenness and movement:
//! `cargo test --test it tables -- --nocapture`):
//!
//! | | ring, 256 points | ring, 100 points | Maglev, 65 537 | rendezvous |
//! |---|---|---|---|---|
//! | largest share over the mean, N = 10 / 100 / 1 000 | 1.09 / 1.16 / 1.21 | 1.16 / 1.27 / 1.36 | 1.000 / 1.001 / 1.007 | 1.005 / 1.026 / 1.091 of a million keys |
//! | keys moved beside those of a removed host | none | none | .25 % / .58 % / .57 % | none |
//! | lookup, N = 10 / 1 000 / 10 000 | 3 / 13 / 25 ns | 4 / 6 / 21 ns | 3 / 3 / 3 ns | 28 ns / 2.5 us / -, weighted 5 times that |
//! | request through the balancer, N = 10 / 1 000 (p2c: 48 / 47 ns) | 100 / 105 ns | | 103 / 105 ns | 114 ns / 2.3 us |
//! | table built for N = 10 / 1 000 / 10 000 | .1 / 16 / 212 ms | .05 / 7 / 74 ms | 1.1 / 1.6 / 2.9 ms | .5 us / 85 us / 1.3 ms |
//! | one host replaced | .03 / 1.2 / 13 ms | .01 / .7 / 8 ms | 1.1 / 1.6 / 3.5 ms | as built |
//! | memory for each host, N = 10 / 1 000 / 10 000 | 4 kB | 1.5 kB | 6.6 kB / 195 B / 78 B | 84 B |
//!
//! A binary search over a plain sorted array of 100 points a host takes 12, 38 and 135 ns in the same run, the crates `hashring`
//! and `maglev` 33 / 99 / 552 ns and 15 ns. Tables are built on the driver's task, off the request path.
//!
//! # Bounded loads
//!
//! Hashing alone knows no load: one hot key melts its host. [`bounded`](HashPolicy::bounded) caps every host at so many times
//! the mean of requests in flight, and sends what is above to other hosts of the key. It costs a request some 30 ns
//! more: the shared total's increment and decrement, and the reading of both counts. A bound of 1.25 keeps
//! hosts within 25 % of the mean and displaces some keys whenever load is skewed; 2 displaces only what is really hot.
//!
//! # What moves a key
//!
//! | event | ring, rendezvous | Maglev |
//! |---|---|---|
//! | an endpoint is ejected, unhealthy, not ready | its keys go to the next host in their own order, and come home when it is back | the same |
//! | an endpoint leaves or is drained | its keys alone | and some .6 % of the others |
//! | an endpoint joins | keys to it alone | and some .6 % of the others |
//! | a ring outgrows eight million [points](HashPolicy::points) | half of all | |
//! | a weight changes | keys to or from that endpoint alone | and a few others |
//!
//! The hashes are a promise: to change what key goes where is a breaking release.

mod bounded;
mod error;
mod hosts;
mod key;
mod maglev;
mod policy;
mod rendezvous;
mod ring;
mod table;

#[doc(hidden)]
pub use self::hosts::Hosts;
#[cfg(feature = "http")]
pub(crate) use self::key::hash_bytes;
pub use self::{
    bounded::{Bounded, BoundedTable, Overflow},
    error::HashSettingError,
    key::{Borrowed, Bytes, HashKey, Hashed, OnMissing, Owned, borrowed, hashed, owned},
    maglev::{MaglevScheme, MaglevTable},
    policy::HashPolicy,
    rendezvous::{Bids, RendezvousScheme, RendezvousTable},
    ring::{HostOrder, RingScheme, RingTable},
    table::{HashTable, Lookup, Order, Scheme},
};

/// Spreads keys over a ring of points: see [`RingTable`] and [`HashPolicy`].
pub type RingHash<K> = HashPolicy<RingScheme, K>;

/// Spreads keys over a table of slots: see [`MaglevTable`] and [`HashPolicy`].
pub type Maglev<K> = HashPolicy<MaglevScheme, K>;

/// Spreads keys by the highest bid: see [`RendezvousTable`] and [`HashPolicy`].
pub type Rendezvous<K> = HashPolicy<RendezvousScheme, K>;
