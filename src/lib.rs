//! Client-side load balancing for the tower ecosystem.
//!
//! A balancer stands between a client and the many copies of the service that it calls. Discovery
//! lists the endpoints, which may change at any time. Each endpoint is measured, and a policy
//! chooses one for every request. Everything is an ordinary tower [`Layer`](tower::Layer). Read a
//! stack from the bottom up to follow the endpoints from your factory to the balancer:
//!
//! ```
//! use std::{convert::Infallible, net::SocketAddr, time::Duration};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{
//!     BalanceLayer, DeadlineLayer, Endpoint, OutlierLayer, P2c, PeakEwmaLayer, WatchLayer, each,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower::BoxError> {
//! # let [a, b, c] = [1, 2, 3].map(|i| SocketAddr::from(([10, 0, 0, i], 80)));
//! let (addresses, rx) = tokio::sync::watch::channel(vec![a, b, c]);
//!
//! let mut client = ServiceBuilder::new()
//!     .layer(DeadlineLayer::new(Duration::from_secs(1))) // any tower layer, above
//!     .layer(BalanceLayer::new(P2c::default()))       // members -> one Service
//!     .layer(OutlierLayer::default())                 // keeps failing endpoints out
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
//! The balancer's handles are `Clone + Send + Sync`: keep one wherever you send from. [`balance`]
//! explains what readiness means, and what callers get while no endpoint can be called.
//!
//! # Where things are
//!
//! | question | module | main items |
//! |---|---|---|
//! | which endpoints exist? | [`discover`] | [`WatchLayer`], [`fixed`], [`from_discover`], [`open`](discover::open), [`poll`](discover::poll), [`follow`](discover::follow), [`each`], [`each_with`] |
//! | what is known about one endpoint? | [`endpoint`] | [`Target`], [`Endpoint`], [`Status`] |
//! | how busy is it? | [`load`] | [`PendingRequests`], [`PeakEwma`] |
//! | what does it report about itself? | [`report`] | [`ReportedLayer`], [`ReportedWeightsLayer`] |
//! | which one takes this request? | [`policy`] | [`P2c`], [`LeastLoaded`], [`RoundRobin`], and [which one when](policy#which-one-when) |
//! | which one for this key? | [`hash`] | [`RingHash`], [`Maglev`], [`Rendezvous`], and [which one when](hash#which-one-when) |
//! | may it be used now? | [`health`] | [`OutlierLayer`], [`HealthCheckLayer`], [`Heartbeats`] |
//! | what joins them into one service? | [`balance`] | [`BalanceLayer`], [`Balance`], [`SlowStart`], [`Watcher`] |
//! | may a request be tried again, elsewhere? | [`failover`] | [`FailoverLayer`], [`HedgeLayer`] |
//! | how many tries are too many, and how long may they take? | [`budget`], [`limit`] | [`Budget`], [`LimitLayer`], [`AdaptiveThrottleLayer`], [`DeadlineLayer`] |
//! | what can go wrong? | [`error`] | [`NoEndpoints`], [`Unavailable`], [`NotReady`] |
//!
//! # Keeping it in a struct
//!
//! The type of a stack spells out every layer. Make the factory a function pointer to be able to
//! name that type, or box the stack. A [`Watcher`] lists the members of either:
//!
//! ```
//! use tower::{BoxError, Service, ServiceBuilder, service_fn, util::{BoxCloneSyncService, ServiceFn}};
//! use tower_lb::{
//!     Balance, BalanceLayer, Endpoint, P2c, PendingRequests, PendingRequestsLayer, Watcher, each, fixed,
//! };
//!
//! # use std::future::{Ready, ready};
//! # use std::net::SocketAddr;
//! # type Client = ServiceFn<fn(String) -> Ready<Result<String, std::io::Error>>>;
//! # fn connect(_: &Endpoint) -> Client { service_fn(|name| ready(Ok(name))) }
//! /// Spelled out: the policy, the members' service, the request.
//! type Users = Balance<P2c, PendingRequests<Client>, String>;
//!
//! struct State {
//!     users: Users,
//!     // Boxed: for layers above that change the type. Box the body, too, where it is an HTTP answer.
//!     boxed: BoxCloneSyncService<String, String, BoxError>,
//!     members: Watcher,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let addresses = [SocketAddr::from(([10, 0, 0, 1], 80))];
//! let users: Users = ServiceBuilder::new()
//!     .layer(BalanceLayer::new(P2c::default()))
//!     .layer(each(PendingRequestsLayer::default()))
//!     .layer(fixed(addresses))
//!     .service(connect);
//! let state = State {
//!     members: users.watcher(),
//!     boxed: BoxCloneSyncService::new(users.clone()),
//!     users,
//! };
//! # tower::ServiceExt::oneshot(state.boxed, "ann".to_owned()).await?;
//! # tower::ServiceExt::oneshot(state.users.clone(), "ann".to_owned()).await?;
//! # assert_eq!(state.members.members().len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # When it does not compile
//!
//! | the message names | what is wrong | how to fix it |
//! |---|---|---|
//! | `Stream` or `DiscoverEndpoints` | a layer that needs discovery has none right below it | use this order, from the top: [`FailoverLayer`], [`BalanceLayer`], [`OutlierLayer`], [`each`]`(tracker)`, [`WatchLayer`] or [`fixed`], the factory. A layer for one endpoint's service goes into [`each`] |
//! | `OutlierDiscover` in `each` | [`OutlierLayer`] wraps discovery, not one service | take it out of `each(..)` |
//! | `SendsElsewhere`, or `Failover<X>: Service` | `X` is not a balancer, so a retry can't go elsewhere | put [`FailoverLayer`] right above [`BalanceLayer`]; in place of a timeout between them, set [`try_timeout`](FailoverLayer::try_timeout); for other layers between, `http::TagTriedLayer` |
//! | `Failover<X>: Service`, `ByClone` or `Clone` of the request | a retry sends a clone of the request, and the request is not `Clone` | [`copy_with`](FailoverLayer::copy_with); for bodies, `http::UnsentBody` |
//! | `Load` | the policy reads a load, and the services measure none | [`each`]`(PendingRequestsLayer::default())` right below the policy |
//! | `TotalInFlight` | a bound is a share of all in-flight requests, and nothing counts them | [`PendingRequestsLayer::with_total`] |
//! | `Policy` | the argument of [`BalanceLayer::new`] is not a policy for these requests | give it a policy; with a key, a closure over the type of these requests |
//! | `HashKey` | the key is for another type of request | [`hash::borrowed`], [`hash::owned`] or [`hash::hashed`] with a closure; the keys in `http::key` are for `http::Request` |
//! | `IntoTarget` | discovery lists items that are not addresses | list [`Target`]s, or implement [`IntoTarget`] for the type |
//! | `Clone` of an error | the factory returns a `Result` | put [`fallible`] above the source, or connect when the service is called |
//! | `Clone` of your service | a service is cloned for each request | [`each`]`(BufferLayer::new(16))` |
//! | `type annotations needed` in a classifier | a closure's argument has no type | `\|answer: Result<&Response, &Error>\| ..` |
//! | `CompleteOnBody` or `TrackCompletion` | the response is not an `http::Response` with a body | the default completion, or a [`TrackCompletion`] of your own |
//!
//! # Bad values
//!
//! A setter panics on a bad value, at the caller's line, and says why. The settings of [`hash`]
//! usually come from configuration, so they return a `Result` instead. No list of endpoints, no
//! response and no dropped future causes a panic.
//!
//! # Repeatable runs
//!
//! Policies are seeded by `P2c::seeded(7)` and the like, for all handles of the balancer. Layers
//! that draw have a `seeded` of their own: [`FailoverLayer`], [`OutlierLayer`],
//! [`HealthCheckLayer`], [`AdaptiveThrottleLayer`]. Without one, a run is different each time.
//!
//! # Features
//!
//! | feature | brings |
//! |---|---|
//! | `http` | module `http`: support for HTTP and gRPC |
//! | `session` | `http::SessionLayer`: keeps a session on the endpoint where it began, by a signed cookie |
//! | `http2` | [`ConnectErrors`] knows which requests an HTTP/2 server has not begun, so that they go to another one |
//! | `orca` | `http::load_report`, `http::load_metric`: read the load that servers report in ORCA's header |
//! | `hdrhistogram` | `HedgeLayer::at_quantile`: hedges after a measured quantile |
//! | `net` | `health::tcp_connect`: a health check that connects |
//! | `file` | `discover::file`: targets from a file (Rust 1.91) |
//! | `dns` | `Dns`: targets from A, AAAA and SRV records (Rust 1.88) |
//! | `consul` | `Consul`: targets from Consul |
//! | `kubernetes`, `kubernetes-rustls` | `Kubernetes`: targets from EndpointSlices; with TLS (Rust 1.89) |
//! | `cloud-map`, `cloud-map-rustls` | `CloudMap`: targets from AWS Cloud Map; with a client by the environment (Rust 1.94.1) |
//!
//! None is on by default.
#![cfg_attr(docsrs, feature(doc_cfg))]

// Which module may import which: `tests/it/floors.rs` lists it, and fails where it does not hold.
mod afterwards;
mod atomic;
pub mod balance;
pub mod budget;
mod clock;
pub mod discover;
pub mod endpoint;
pub mod error;
pub mod failover;
mod guard;
pub mod hash;
pub mod health;
#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
pub mod http;
#[cfg(all(test, tower_lb_loom))]
mod interleavings;
pub mod limit;
pub mod load;
mod member;
mod metric;
mod outcome;
pub mod policy;
mod random;
mod recycle;
pub mod report;
mod split_arc;
mod thread_number;
mod timer;
mod tried;
mod undecided;
mod upstream;
#[cfg(all(test, not(tower_lb_loom)))]
mod whole;

#[cfg(feature = "cloud-map")]
#[doc(inline)]
pub use self::discover::CloudMap;
#[cfg(feature = "consul")]
#[doc(inline)]
pub use self::discover::Consul;
#[cfg(feature = "dns")]
#[doc(inline)]
pub use self::discover::Dns;
#[cfg(feature = "kubernetes")]
#[doc(inline)]
pub use self::discover::Kubernetes;
#[doc(inline)]
pub use self::{
    balance::{Balance, BalanceLayer, Driver, SlowStart, Watcher},
    budget::Budget,
    clock::PickClock,
    discover::{WatchLayer, each, each_with, fallible, fixed, from_discover},
    endpoint::{Address, Ejection, Endpoint, IntoTarget, Status, Target},
    error::{
        AllTried, DeadlineExceeded, LimitReached, MissingKey, NoEndpoints, NotChosen, NotDriven,
        NotReady, Throttled, Unavailable,
    },
    failover::{AttemptsFailed, ConnectErrors, FailoverLayer, HedgeLayer, Idempotent},
    hash::{Maglev, Rendezvous, RingHash},
    health::{HealthCheckLayer, Heartbeats, OutlierLayer},
    limit::{AdaptiveThrottleLayer, DeadlineLayer, LimitLayer},
    load::{
        CompleteOnResponse, Constant, ConstantLayer, Load, PeakEwma, PeakEwmaLayer,
        PendingRequests, PendingRequestsLayer, TrackCompletion,
    },
    member::Member,
    metric::{Cost, InFlight, TotalInFlight},
    outcome::{Classify, ErrorsAreFailures, Outcome, Outcomes, Settle},
    policy::{
        Candidates, Choice, LeastLoaded, P2c, PickContext, Policy, Random, RoundRobin,
        WeightedRoundRobin,
    },
    report::{ReportedLayer, ReportedWeightsLayer},
    tried::{CallExcluding, SendsElsewhere, Tried},
    upstream::DiscoverEndpoints,
};
