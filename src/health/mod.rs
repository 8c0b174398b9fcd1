//! May it be used now?
//!
//! Two ways to know: by what an endpoint's answers show ([`OutlierLayer`]), and by asking it
//! ([`HealthCheckLayer`], [`Heartbeats`]). Each is a layer between discovery and the balancer, works with every
//! policy, and says its own word: an endpoint is available while neither objects.
//!
//! ```
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{
//!     BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed,
//!     health::{HealthCheckLayer, OutlierLayer, SlowStart},
//! };
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let client = ServiceBuilder::new()
//!     .layer(BalanceLayer::new(P2c::default()).slow_start(SlowStart::new(Duration::from_secs(30))))
//!     .layer(OutlierLayer::default())
//!     .layer(each(PendingRequestsLayer::default()))
//!     .layer(HealthCheckLayer::new(|_: Endpoint<&'static str>, service| async move {
//!         ServiceExt::oneshot(service, "/healthz".to_owned()).await.map(drop)
//!     }))
//!     .layer(fixed(["a", "b", "c"]))
//!     .service(|_: &Endpoint<&'static str>| service_fn(|path: String| async move { Ok::<_, String>(path) }));
//! # client.oneshot("/".to_owned()).await?;
//! # Ok::<_, tower::BoxError>(()) })?;
//! # Ok::<_, tower::BoxError>(())
//! ```
//!
//! Checks stand below the trackers, next to discovery, so that they count as no load: with them above, an endpoint whose
//! requests failed would show [`PeakEwma`](crate::PeakEwma) a check's answer every few seconds, and never get the trial
//! that it gets when nothing is heard of it.
//!
//! # Which detector catches what
//!
//! | fault | caught by | within |
//! |---|---|---|
//! | a dead process, a refused connection, a fast 500 | failures in a row | five requests to it |
//! | a hung process, a black hole | failures in a row, if a timeout *below* the balancer makes errors of hanging calls, or [`cancelled_after`](OutlierLayer::cancelled_after) is set; checks | five timeouts; three checks |
//! | one answer in five fails | [`SuccessRate`] | an interval, from 5 endpoints with 100 requests each |
//! | most answers fail, on several endpoints at once | [`FailurePercentage`] | an interval, from 5 endpoints with 50 requests each |
//! | ten times slower than the others | [`SlowLatency`], off by default; [`PeakEwma`](crate::PeakEwma) sends it less without ejecting it | an interval |
//! | up but not ready yet | [`until_first_check`](HealthCheckLayer::until_first_check); [`SlowStart`] for cold caches | the first check |
//! | a host that lost its network, seen from nowhere | [`Heartbeats`] | their time to live |
//! | more than a tenth of the fleet at once | checks and heartbeats, which know no cap; of outliers `max_ejected` leaves the rest in | |
//!
//! # What the defaults are tuned for
//!
//! Those of outlier detection are Envoy's and gRPC's, for fleets of tens of endpoints that get tens of requests a second
//! each from one client: a busy endpoint gets five failures in a row within a second, one that fails one
//! answer in a hundred never does. Where one client sees few requests, consecutive failures and checks
//! decide; the rates need 50 and 100 requests in 10 s for each endpoint to say anything. The floor of five points under the mean,
//! which is ours, keeps healthy fleets whole: of 50 endpoints with 99 % success, chance alone would have the stock rule eject
//! one in fifteen at every interval.
//!
//! A tenth at once, at least one: enough for single faults, and too few for a wrong verdict to take the service down.
//! For small sets in which several endpoints share a host or a zone, raise it: three of four may fail together.
//!
//! # How not to be ejected by your own client's faults
//!
//! - Classify: what the caller did wrong (a malformed request, a 404) is [`Outcome::Ignore`](crate::Outcome), not a failure.
//! - A timeout or a limit of the *client's* own, above the balancer, cancels calls: those say nothing, by default. Below the
//!   balancer, in `each(..)`, its errors count against the endpoint: put there what only the endpoint can cause.
//! - A dead network at the client fails all endpoints: the cap keeps nine in ten of them, and the last available one is never
//!   ejected. Where all are out by checks, the balancer [tries them all](crate::balance).
//! - A key or a tenant whose requests always fail hits one endpoint after another under consistent hashing: raise
//!   `consecutive_failures`, or ignore what that tenant's answers say.
//!
//! # What it costs
//!
//! `cargo bench --bench health`: to an always-ready request of 50 ns consecutive failures add 8 to 11 ns, the default detectors
//! 14 to 19 ns, all of them 18 to 25 ns; nothing is allocated.
//!
//! # What a fault costs
//!
//! `cargo test --test chaos -- --nocapture`: in a simulated network of four servers with round robin, timeouts of 250 ms and
//! checks every second, a server that crashes, hangs, answers 500 or is cut off fails six or seven requests before it is left (the test
//! allows ten), and is used again within ten seconds of its return. `examples/chaos.rs` does the same with real processes.

mod check;
mod detectors;
mod ejection;
mod fleet;
mod heartbeats;
mod host;
mod outlier;
mod outlier_service;
mod patients;
mod seat;
mod slow_start;
#[cfg(feature = "net")]
mod tcp;
mod traffic;

#[cfg(feature = "net")]
#[cfg_attr(docsrs, doc(cfg(feature = "net")))]
pub use self::tcp::tcp_connect;
pub use self::{
    check::{HealthCheckDiscover, HealthCheckLayer, UntilFirstCheck},
    detectors::{FailurePercentage, SlowLatency, SuccessRate},
    heartbeats::{HeartbeatDiscover, Heartbeats},
    outlier::{OutlierDiscover, OutlierLayer},
    outlier_service::{Outlier, OutlierFuture, OutlierHandle},
    slow_start::SlowStart,
    traffic::{IdleInterval, Traffic, Watched},
};
