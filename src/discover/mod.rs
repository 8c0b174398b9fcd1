//! Who exists?
//!
//! A source of discovery is any tower [`Discover`] whose keys are [`Endpoint`](crate::Endpoint)s: a stream of insertions and
//! removals. The ones here are layers over a factory, `Fn(&Endpoint<A>) -> S`, which makes the service that
//! reaches an endpoint:
//!
//! | source | takes |
//! |---|---|
//! | [`WatchLayer`] | the newest `Vec` of a `tokio::sync::watch` channel |
//! | [`fixed`] | a set that never changes |
//! | [`from_discover`] | any tower `Discover`, tower's `ServiceList` too |
//!
//! [`each`] then lifts a service layer to every discovered service.
//!
//! # One of your own
//!
//! Yield [`Change::Insert`] with an [`Endpoint`](crate::Endpoint) kept for as long as its address is listed, and set its
//! attributes in place. An insertion under an address that is known replaces its service. Until the
//! first item, error or end, a balancer waits for the first report; a source that knows that there
//! is nothing yields `Err(NoEndpoints::new())`. Errors are logged, and what is known stays in use.

mod each;
mod fixed;
mod from;
mod roster;
mod watch;

pub use tower::discover::{Change, Discover};

pub use self::{
    each::{Each, EachDiscover, each},
    fixed::{FixedDiscover, FixedLayer, fixed},
    from::{FromDiscover, from_discover},
    watch::{WatchDiscover, WatchLayer},
};
