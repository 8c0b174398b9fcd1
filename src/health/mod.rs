//! Decides whether an endpoint may be used now.
//!
//! There are two ways to find out: watch an endpoint's answers ([`OutlierLayer`]), or check the
//! endpoint itself ([`HealthCheckLayer`], [`Heartbeats`]). Each of these is a layer between
//! discovery and the balancer, and works with every policy. They decide independently: an endpoint
//! is available while none of them objects.
//!
//! ```
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{
//!     BalanceLayer, Endpoint, HealthCheckLayer, OutlierLayer, P2c, PendingRequestsLayer, SlowStart,
//!     each, fixed,
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
//! Put checks below the trackers, next to discovery, so that they do not count as load. If they
//! stood above the trackers, [`PeakEwma`](crate::PeakEwma) would see a check's answer every few
//! seconds. An endpoint whose requests failed would then never be silent for long enough to get the
//! trial that `PeakEwma` gives to silent endpoints.
//!
//! # Which detector catches what
//!
//! | fault | caught by | within |
//! |---|---|---|
//! | a dead process, a refused connection, a fast 500 | failures in a row | five requests to it |
//! | a hung process, a black hole | failures in a row, if a timeout *below* the balancer turns hanging calls into errors or [`cancelled_after`](OutlierLayer::cancelled_after) is set; checks | five timeouts; three checks |
//! | one answer in five fails | [`SuccessRate`] | an interval, from 5 endpoints with 100 requests each |
//! | most answers fail, on several endpoints at once | [`FailureRate`] | an interval, from 5 endpoints with 50 requests each |
//! | ten times slower than the others | [`SlowLatency`], off by default; [`PeakEwma`](crate::PeakEwma) sends it less without ejecting it | an interval |
//! | up but not ready yet | [`until_first_check`](HealthCheckLayer::until_first_check); [`SlowStart`](crate::SlowStart) for cold caches | the first check |
//! | a machine that lost its network and cannot be reached from anywhere | [`Heartbeats`] | their time to live |
//! | more than a tenth of the endpoints at once | checks and heartbeats, which have no cap; outlier detection ejects only as many as `max_ejected` allows | |
//!
//! # What the defaults are tuned for
//!
//! The detectors' defaults are those of Envoy and gRPC. They suit tens of endpoints, each
//! of which gets tens of requests a second from one client. There, a dead endpoint reaches five
//! failures in a row within a second, and an endpoint that fails one answer in a hundred never
//! does.
//!
//! The length of ejections is ours. A first one lasts a second and each further one twice as long,
//! where Envoy's last 30, 60, 90 s. A restart that takes .3 s would cost the server 30 s of its
//! share, while the others carry its load. With [`HealthCheckLayer`], a check that succeeds ends an
//! ejection even sooner, and a probe decides: in a test with restarts in turn, the p99 is within a
//! fifth of that without restarts. [`EjectionGrowth::Linear`] and `base_ejection` of 30 s give
//! Envoy's lengths.
//!
//! Where one client sends few requests, only consecutive failures and checks decide. The rates need
//! 50 and 100 requests to each endpoint within 10 s before they judge.
//!
//! The floor of five points under the mean is our addition. It protects sets in which every
//! endpoint is healthy: of 50 endpoints with 99 % success, the stock rule would eject one in
//! fifteen at every interval by chance alone.
//!
//! At most a tenth of the endpoints are ejected at once, but one always may be. This is enough for
//! single faults, and too few for a wrong verdict to take the service down. Raise it for small sets
//! in which several endpoints share a machine or a zone, because three of four may fail together.
//!
//! # How to keep the client's own faults from ejecting endpoints
//!
//! - Classify answers: an error that the caller caused (a malformed request, a 404) is
//!   [`Outcome::Neutral`](crate::Outcome), not a failure.
//! - A timeout or a limit of the *client's* own, above the balancer, cancels calls. By default,
//!   cancelled calls do not count: the caller may just be impatient. So a deadline above says
//!   nothing of a server that hangs, unless [`cancelled_after`](OutlierLayer::cancelled_after) is
//!   set, to somewhat less than the deadline. Below the balancer, in `each(..)`, errors of timeouts
//!   and limits count against the endpoint: put only those there that the endpoint alone can cause.
//! - A dead network at the client makes all endpoints fail. The cap keeps nine in ten of them, and
//!   the last available endpoint is never ejected. When checks make all endpoints unhealthy, the
//!   balancer [tries them all](crate::balance).
//! - With consistent hashing, a key or a tenant whose requests always fail hits one endpoint after
//!   another. Raise `consecutive_failures`, or classify that tenant's answers as neutral.
//!
//! # What it costs
//!
//! Measured by `cargo bench --bench health`, on top of an always-ready request of 50 ns:
//! consecutive failures add 8 to 11 ns, the default detectors 14 to 19 ns, all detectors 18 to 25
//! ns. Nothing is allocated.
//!
//! # What a fault costs
//!
//! Measured by `cargo test -p tower-lb-sockets --test chaos -- --nocapture`, in a simulated network
//! of four servers with round robin, timeouts of 250 ms and checks every second. A server that
//! crashes, hangs, answers 500 or is cut off fails six or seven requests before traffic leaves it
//! (the test allows ten). It is used again within ten seconds of its return.
//! `examples/clients/chaos.rs` does the same with real processes.

mod check;
mod due;
mod heartbeats;
mod outlier;

#[cfg(feature = "net")]
#[cfg_attr(docsrs, doc(cfg(feature = "net")))]
pub use self::check::tcp_connect;
pub use self::{
    check::{HealthCheckLayer, UntilFirstCheck},
    heartbeats::Heartbeats,
    outlier::{
        EjectionGrowth, FailureRate, Outlier, OutlierHandle, OutlierLayer, SlowLatency, SuccessRate,
    },
};

/// The discovery types that the layers of this module make.
pub mod discovery {
    pub use super::{
        check::{HealthCheckDiscover, IdleInterval, Traffic, Watched},
        heartbeats::HeartbeatDiscover,
        outlier::OutlierDiscover,
    };
}

/// The response futures of services that outlier detection watches.
pub mod future {
    pub use super::outlier::OutlierFuture;
}
