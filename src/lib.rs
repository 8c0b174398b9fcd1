//! Client-side load balancing for the tower ecosystem.
//!
//! What a service puts between itself and the many copies of a service that it calls: endpoints come from
//! discovery and may change at any time, each one is measured, and a policy chooses one for every
//! request. Everything is an ordinary tower [`Layer`](tower::Layer); read a stack bottom-up and you have the way of the data:
//!
//! ```
//! use std::{convert::Infallible, net::SocketAddr, time::Duration};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{BalanceLayer, Endpoint, OutlierLayer, P2c, PeakEwmaLayer, WatchLayer, each};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! # let [a, b, c] = [1, 2, 3].map(|i| SocketAddr::from(([10, 0, 0, i], 80)));
//! let (addresses, rx) = tokio::sync::watch::channel(vec![a, b, c]);
//!
//! let mut client = ServiceBuilder::new()
//!     .timeout(Duration::from_secs(1))                // any tower layer, above
//!     .layer(BalanceLayer::new(P2c::default()))       // members -> one Service
//!     .layer(OutlierLayer::default())                 // keeps sick endpoints out
//!     .layer(each(PeakEwmaLayer::default()))          // wraps every endpoint's service
//!     .layer(WatchLayer::new(rx))                     // factory -> discovery
//!     .service(|endpoint: &Endpoint| {                // your client for one address
//!         let address = *endpoint.address();
//!         service_fn(move |path: &'static str| async move {
//!             Ok::<_, Infallible>(format!("{address}{path}"))
//!         })
//!     });
//!
//! let answer = client.ready().await?.call("/").await?;
//! assert!(answer.starts_with("10.0.0."));
//! addresses.send_replace(vec![b]);                    // the others get no new requests
//! # Ok(())
//! # }
//! ```
//!
//! The balancer's handles are `Clone + Send + Sync`: keep one wherever you send from. What readiness means, and
//! what callers get while there is nobody to call, is in [`balance`].
//!
//! # Where things are
//!
//! | question | module | first names |
//! |---|---|---|
//! | who exists? | [`discover`] | [`WatchLayer`], [`fixed`], [`from_discover`], [`each`] |
//! | what is known of one backend? | [`endpoint`] | [`Target`], [`Endpoint`], [`Status`] |
//! | how busy is it? | [`load`] | [`PendingRequests`], [`PeakEwma`] |
//! | which one takes this request? | [`policy`] | [`P2c`], [`LeastLoaded`], [`RoundRobin`], ... and [which one when](policy#which-one-when) |
//! | which one for this key? | [`hash`] | [`RingHash`], [`Maglev`], [`Rendezvous`], and [which one when](hash#which-one-when) |
//! | may it be used now? | [`health`] | [`OutlierLayer`], [`HealthCheckLayer`], [`Heartbeats`], [`SlowStart`] |
//! | where do all meet? | [`balance`] | [`BalanceLayer`], [`Balance`] |
//! | may it be tried again, elsewhere? | [`retry`] | [`FailoverLayer`], [`HedgeLayer`], [`Budget`](retry::Budget) |
//! | what can go wrong? | [`error`] | [`NoEndpoints`], [`Unavailable`], [`NotReady`] |
//!
//! # Features
//!
//! | feature | brings |
//! |---|---|
//! | `net` | `health::tcp_connect`, a check that connects |
//! | `http` | module `http`: what makes the balancer understand HTTP and gRPC |
//! | `hdrhistogram` | `HedgeLayer::at_percentile`, hedging after a measured percentile |
//!
//! None is on by default.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod atomic;
pub mod balance;
mod chance;
pub mod discover;
pub mod endpoint;
pub mod error;
pub mod hash;
pub mod health;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod http;
#[cfg(all(test, tower_lb_loom))]
mod interleavings;
pub mod load;
pub mod metric;
pub mod policy;
pub mod retry;

pub use self::{
    balance::{Balance, BalanceLayer, Driver},
    discover::{WatchLayer, each, fixed, from_discover},
    endpoint::{Address, Ejection, Endpoint, IntoTarget, Status, Target},
    error::{AllTried, MissingKey, NoEndpoints, NotChosen, NotReady, Unavailable},
    hash::{Maglev, Rendezvous, RingHash},
    health::{HealthCheckLayer, Heartbeats, OutlierLayer, SlowStart},
    load::{
        Classify, CompleteOnResponse, Constant, ConstantLayer, ErrorsAreFailures, Load, Outcome,
        PeakEwma, PeakEwmaLayer, PendingRequests, PendingRequestsLayer, TrackCompletion,
    },
    metric::{Cost, InFlight, PickClock, TotalInFlight},
    policy::{
        Candidates, Choice, LeastLoaded, Member, P2c, PickContext, Policy, Random, RoundRobin,
        WeightedRoundRobin,
    },
    retry::{AdaptiveThrottleLayer, AttemptsFailed, FailoverLayer, HedgeLayer, LimitLayer},
};
