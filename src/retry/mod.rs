//! Another try, elsewhere.
//!
//! A request that failed on one endpoint may well succeed on another one: the layers here stand above a balancer and send
//! it there, within a budget that keeps a small fault from becoming an outage. tower's `Retry` cannot, for it does not
//! know where a try went.
//!
//! | layer | what it does | take it |
//! |---|---|---|
//! | [`FailoverLayer`] | sends a request that failed to another endpoint | nearly always: with [`ConnectErrors`] it is safe for any request |
//! | [`HedgeLayer`] | sends a request that is slow to a second endpoint, first answer wins | for reads whose slowest hundredth matters |
//! | [`AdaptiveThrottleLayer`] | rejects locally what the backends would reject | for many clients of backends that can be overloaded |
//! | [`LimitLayer`] | rejects requests beyond a number in flight | to bound what one client can have under way |
//!
//! ```
//! # use std::{io, time::Duration};
//! # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! # use tower_lb::*;
//! use tower_lb::retry::{FailoverLayer, Idempotent};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! # let connect = |_: &Endpoint<&'static str>| service_fn(|request: &'static str| async move { Ok::<_, io::Error>(request) });
//! let client = ServiceBuilder::new()
//!     .timeout(Duration::from_secs(2))                                         // for all tries together
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
//! | what happened | [`ConnectErrors`] | [`Idempotent`], such a request | [`Idempotent`], any other |
//! |---|---|---|---|
//! | connecting failed; no endpoint became ready | yes | yes | yes |
//! | any other error | no | yes, if the classifier calls it a failure | no |
//! | the try's own timeout | no | yes | no |
//! | an answer that the classifier calls a failure | no | yes | no |
//! | the balancer knows nobody to send to | no | no | no |
//!
//! A client that cannot tell whether its request was executed must not send it again unless executing it twice is as good as
//! once. A timeout above the failover ends the request, tries and all.
//!
//! # How much is tried again
//!
//! Three attempts at each of three layers are twenty-seven, and a service at its limit that gets three times the requests does
//! not come back: capacity 1000 a second, 700 offered, 3 attempts; after ten seconds at a capacity of 300, goodput stays
//! at nothing without a budget, and is what it was within 40 s with one of 20 %. So retries are paid from a
//! [`Budget`], shared by all layers that hold a clone, or allowed by a [`TokenThrottle`], which needs no clock. Retry in one place, the
//! one nearest to the backends.
//!
//! # Layers between
//!
//! [`Failover`] and [`Hedge`] tell the balancer which endpoints to leave out, through [`CallExcluding`]. For
//! `http::Request`s, with the feature `http`, any layers may stand between: `http::TagTriedLayer` above them puts the list into the request's extensions,
//! `http::ExcludeTriedLayer` below them takes it out. For other requests, implement the trait for the layer that stands
//! between, or call [`Balance::call_excluding`](crate::Balance::call_excluding) yourself.
//!
//! # Limits
//!
//! | what is limited | layer | what the caller sees at the limit |
//! |---|---|---|
//! | one endpoint | tower's `ConcurrencyLimitLayer` in [`each`](crate::each()) | the endpoint is passed over; when all are full, `poll_ready` waits |
//! | the same, with no wait | the same, and tower's `LoadShedLayer` above the balancer | tower's `Overloaded` |
//! | all endpoints together | tower's `ConcurrencyLimitLayer` above the balancer | `poll_ready` waits |
//! | the same, with no wait | [`LimitLayer`] above the balancer | [`LimitReached`], which names the limit |
//! | requests a second | tower's `RateLimitLayer` | `poll_ready` waits |
//!
//! A limit that rejects does not belong below the balancer: an endpoint that rejects at once looks like the fastest of all.

mod adaptive_throttle;
mod allowance;
mod backoff;
mod budget;
mod copy;
mod delay;
mod error;
mod failover;
mod failover_future;
mod hedge;
mod hedge_future;
mod limit;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod policy;
mod thread_number;
mod token_throttle;
mod tokens;
mod window;

pub use self::{
    adaptive_throttle::{AdaptiveThrottle, AdaptiveThrottleLayer, ThrottleFuture, Throttled},
    budget::Budget,
    copy::{ByClone, CopyRequest},
    error::{Attempt, AttemptsFailed, Stopped, TryTimedOut, UnwantedAnswer},
    failover::{Failover, FailoverLayer},
    failover_future::FailoverFuture,
    hedge::{Hedge, HedgeLayer},
    hedge_future::HedgeFuture,
    limit::{Limit, LimitFuture, LimitLayer, LimitReached},
    policy::{AllRequests, ConnectErrors, Idempotent, RequestFilter, Retry, RetryPolicy},
    token_throttle::TokenThrottle,
};
pub use crate::balance::{CallExcluding, Tried};
