//! Sends failed or slow requests to another endpoint.
//!
//! A request that failed on one endpoint may well succeed on another one. The layers here stand
//! above a balancer and send it there. A budget keeps them from turning a small fault into an
//! outage. tower's `Retry` cannot do this, because it does not know where a try went.
//!
//! | layer | what it does | when to use it |
//! |---|---|---|
//! | [`FailoverLayer`] | sends a request that failed to another endpoint | nearly always: with [`ConnectErrors`] it is safe for any request |
//! | [`HedgeLayer`] | sends a request that is slow to a second endpoint; the first answer wins | for reads where the slowest 1 % matter |
//!
//! ```
//! # use std::{io, time::Duration};
//! # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! # use tower_lb::*;
//! use tower_lb::{FailoverLayer, Idempotent};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! # let connect = |_: &Endpoint<&'static str>| service_fn(|request: &'static str| async move { Ok::<_, io::Error>(request) });
//! let client = ServiceBuilder::new()
//!     .layer(DeadlineLayer::new(Duration::from_secs(2)))                       // for all tries together
//!     .layer(
//!         FailoverLayer::new(Idempotent::when(|request: &&str| request.starts_with("GET")))
//!             .try_timeout(Duration::from_millis(500)),                        // for each
//!     )
//!     .layer(BalanceLayer::new(P2c::default()))
//!     .layer(OutlierLayer::default())
//!     .layer(each(PeakEwmaLayer::default()))
//!     .layer(fixed(["a", "b", "c"]))
//!     .service(connect);
//! # client.oneshot("GET /").await?;
//! # Ok::<_, tower::BoxError>(()) })?;
//! # Ok::<_, tower::BoxError>(())
//! ```
//!
//! # What is tried again
//!
//! | what happened | [`ConnectErrors`] | [`Idempotent`], idempotent request | [`Idempotent`], any other request |
//! |---|---|---|---|
//! | connecting failed; no endpoint became ready | yes | yes | yes |
//! | any other error | no | yes, if the classifier calls it a failure | no |
//! | the try's own timeout | no | yes | no |
//! | an answer that the classifier calls a failure | no | yes | no |
//! | the request was rejected locally: no endpoint is available, or a limit is reached | no | no | no |
//!
//! If a client cannot tell whether its request was executed, it must not send the request again,
//! unless executing it twice is as good as once. A deadline above the failover ends the request
//! with all its tries.
//!
//! # How much is tried again
//!
//! Three attempts at each of three layers make 27. A service at its limit that gets three times the
//! requests does not recover. An example: a capacity of 1000 requests a second, 700 offered, 3
//! attempts, and ten seconds with a capacity of 300. Without a budget, goodput stays at zero
//! afterwards. With a budget of 20 %, it is back within 40 s.
//!
//! So retries are paid from a [`Budget`](crate::Budget), shared by all layers that hold a clone of
//! it. Or they are allowed by a [`TokenThrottle`](crate::budget::TokenThrottle), which needs no
//! clock. Retry in one place only, the one nearest to the backends.
//!
//! # Layers between
//!
//! [`Failover`] and [`Hedge`] tell the balancer which endpoints to leave out, through
//! [`CallExcluding`](crate::CallExcluding). With the feature `http`, any layers may stand in
//! between for `http::Request`s: `http::TagTriedLayer` above them puts the list into the request's
//! extensions, and `http::ExcludeTriedLayer` below them takes it out. For other requests, implement
//! the trait for the layer in between, or call
//! [`Balance::call_excluding`](crate::Balance::call_excluding) yourself.

mod backoff;
mod connect_errors;
mod copy;
mod error;
mod failover_future;
mod hedge;
mod idempotent;
mod layer;
mod policy;
mod rest;
mod service;
mod state;

pub use self::{
    connect_errors::ConnectErrors,
    copy::{ByClone, CopyRequest},
    error::{Attempt, AttemptsFailed, Stopped, TryTimedOut, UnwantedAnswer},
    hedge::{Hedge, HedgeLayer},
    idempotent::{AllRequests, Idempotent, RequestFilter},
    layer::FailoverLayer,
    policy::{Reach, Retry, RetryPolicy},
    service::Failover,
};

/// The response futures of the services here.
pub mod future {
    pub use super::{failover_future::FailoverFuture, hedge::HedgeFuture};
}
