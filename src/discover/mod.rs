//! Discovery: which endpoints exist.
//!
//! A discovery source is any tower [`Discover`] with [`Endpoint`](crate::Endpoint)s as keys: a
//! stream of insertions and removals. [`WatchLayer`] and [`fixed`] are layers over a factory,
//! `Fn(&Endpoint<A>) -> S`, which makes the service that reaches an endpoint. [`from_discover`]
//! needs no factory.
//!
//! | source | takes |
//! |---|---|
//! | [`WatchLayer`] | the newest `Vec` of a `tokio::sync::watch` channel |
//! | [`fixed`] | a set that never changes |
//! | [`from_discover`] | any tower `Discover`, tower's `ServiceList` too |
//! | [`poll`] | what an async function of yours returns, asked at an interval |
//! | [`follow`] | a stream of lists |
//! | `Dns`, with feature `dns` | the addresses of a name, or its SRV records |
//! | `Consul`, with feature `consul` | the healthy instances of a service |
//! | `Kubernetes`, with feature `kubernetes` | the ready endpoints of a service |
//! | `CloudMap`, with feature `cloud-map` | the instances of a service in AWS Cloud Map |
//! | `file`, with feature `file` | a file, read again when it changes |
//! | [`open`] | what a text from a configuration names |
//!
//! [`each`] then applies a service layer to every discovered service.
//!
//! # A registry of your own
//!
//! [`poll`] and [`follow`] make a [`Source`], a task that asks. [`Source::start`] returns what it
//! has found, a [`Found`], which stands where `WatchLayer` does:
//!
//! ```
//! use std::{net::SocketAddr, time::Duration};
//! use tower::{ServiceBuilder, service_fn};
//! use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, discover, each};
//!
//! # async fn ask_the_registry() -> Result<Vec<SocketAddr>, std::io::Error> {
//! #     Ok(vec![SocketAddr::from(([10, 0, 0, 1], 80))])
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let found = discover::poll(Duration::from_secs(10), ask_the_registry).start()?;
//! let client = ServiceBuilder::new()
//!     .layer(BalanceLayer::new(P2c::default()))
//!     .layer(each(PendingRequestsLayer::default()))
//!     .layer(found.clone())
//!     .service(|endpoint: &Endpoint| {
//!         let address = *endpoint.address();
//!         service_fn(move |()| async move { Ok::<_, std::io::Error>(address) })
//!     });
//! assert_eq!(tower::ServiceExt::oneshot(client, ()).await?.port(), 80);
//! assert!(!found.state().is_stale());
//! # Ok::<_, tower::BoxError>(()) })?;
//! # Ok::<_, tower::BoxError>(())
//! ```
//!
//! While the registry is away, the last set stays, and it is asked again after growing pauses. An
//! empty answer is believed after 30 s, or as [`Source::when_empty`] says. [`Found::state`] tells
//! how old the set is.
//!
//! # A stream of changes of your own
//!
//! Yield [`Change::Insert`] with an [`Endpoint`](crate::Endpoint). Keep that endpoint as long as
//! its address is listed, and set its attributes in place. An insertion under a known address
//! replaces the service of that endpoint.
//!
//! A balancer waits for the first report of its source: an item, an error or the end of the stream.
//! A source that knows that there are no endpoints yields `Err(NoEndpoints::new())`. Any other
//! error is logged, and the known endpoints stay in use.
//!
//! An endpoint whose factory or layer panics is left out until it is listed again. So is one whose
//! factory returns an error, with [`fallible`] above the source. A source that fails at every poll
//! is asked again after a growing pause, 10 ms to 10 s.
//!
//! A service that has failed for good, such as a `Buffer` whose worker is gone, is made again: one
//! whose every `poll_ready` has failed for 100 ms. The factory is called after a pause that grows
//! from 100 ms to 30 s, and requests in flight end on the old service. [`from_discover`] has no
//! factory, so there the source has to insert another service.
//!
//! When the stream ends, the set stays as it is: members, checks, ejections and weights go on. A
//! stream that ends before it has yielded anything leaves an empty set.

mod again;
#[cfg(feature = "cloud-map")]
mod cloud_map;
#[cfg(feature = "consul")]
mod consul;
#[cfg(feature = "dns")]
mod dns;
mod each;
mod fallible;
#[cfg(any(feature = "cloud-map", feature = "dns", feature = "kubernetes"))]
mod family;
#[cfg(feature = "file")]
mod file;
mod fixed;
mod from;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod open;
mod roster;
mod source;
mod watch;
mod watching;

#[cfg(feature = "http")]
pub(crate) use self::each::sealed::Sealed as SealedWrap;
pub use tower::discover::{Change, Discover};

#[cfg(feature = "cloud-map")]
#[cfg_attr(docsrs, doc(cfg(feature = "cloud-map")))]
pub use self::cloud_map::{CloudMap, HealthFilter};
#[cfg(feature = "consul")]
#[cfg_attr(docsrs, doc(cfg(feature = "consul")))]
pub use self::consul::{Consistency, Consul};
#[cfg(feature = "dns")]
#[cfg_attr(docsrs, doc(cfg(feature = "dns")))]
pub use self::dns::Dns;
#[cfg(any(feature = "cloud-map", feature = "dns", feature = "kubernetes"))]
#[cfg_attr(
    docsrs,
    doc(cfg(any(feature = "cloud-map", feature = "dns", feature = "kubernetes")))
)]
pub use self::family::AddressFamily;
#[cfg(feature = "file")]
#[cfg_attr(docsrs, doc(cfg(feature = "file")))]
pub use self::file::file;
#[cfg(feature = "kubernetes")]
#[cfg_attr(docsrs, doc(cfg(feature = "kubernetes")))]
pub use self::kubernetes::{Kubernetes, ServicePort};

pub use self::{
    each::{Each, EachWith, each, each_with},
    fallible::{Fallible, fallible},
    fixed::{FixedLayer, fixed},
    from::from_discover,
    open::{OpenError, open},
    source::{Failure, Found, NoAnswer, Source, SourceState, StartError, WhenEmpty, follow, poll},
    watch::WatchLayer,
};

/// The streams that this module's sources make.
pub mod discovery {
    pub use super::{
        each::{EachDiscover, WrapEach},
        fallible::FallibleDiscover,
        fixed::FixedDiscover,
        from::FromDiscover,
        source::FoundDiscover,
        watch::WatchDiscover,
    };
}
