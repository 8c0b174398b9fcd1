//! Which member for this key?
//!
//! Session affinity and cache locality: equal keys reach the same endpoint from every process, platform and language, with
//! little movement when the set changes. Every scheme is a [`Policy`](crate::Policy), and chooses once the request
//! is known, in `call`.

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
