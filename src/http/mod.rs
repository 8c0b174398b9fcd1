//! Support for HTTP and gRPC (feature `http`).
//!
//! | question | names |
//! |---|---|
//! | how does one pooled client reach all endpoints? | [`AuthorityLayer`] |
//! | when is a request over? | [`CompleteOnBody`], [`CompleteOnFirstData`] |
//! | what does an answer say about its endpoint? | [`HttpStatus`], [`GrpcStatus`] |
//! | what is a request spread by? | [`key`] for the [hash policies](crate::hash), [`SessionLayer`] for servers that keep sessions |
//! | how much load does a server report? | [`load_report`], for weights by [`ReportedWeightsLayer`](crate::report::ReportedWeightsLayer) |
//! | how many requests does a server report in flight? | [`load_number`], [`load_metric`], for loads by [`ReportedLayer`](crate::report::ReportedLayer) |
//! | what may be retried? | [`HttpRetry`], [`UnsentBody`] for bodies that cannot be cloned, [`retry_after`] |
//! | which layers may stand between retries and the balancer? | any, between [`TagTriedLayer`] and [`ExcludeTriedLayer`] |
//!
//! If you import this crate's names by `*`, refer to the crate `http` as `::http`.
//!
//! A stack for HTTP, from the top:
//!
//! ```
//! # use std::{convert::Infallible, time::Duration};
//! # use ::http::{Request, Response};
//! # use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{
//!     BalanceLayer, DeadlineLayer, Endpoint, FailoverLayer, OutlierLayer, P2c, PeakEwmaLayer,
//!     WatchLayer, each,
//!     http::{AuthorityLayer, CompleteOnBody, HttpRetry, HttpStatus},
//! };
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! # #[derive(Default)] struct Body;
//! # impl http_body::Body for Body {
//! #     type Data = &'static [u8];
//! #     type Error = Infallible;
//! #     fn poll_frame(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>)
//! #         -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Infallible>>> { std::task::Poll::Ready(None) }
//! # }
//! # let pooled_client = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Body)) });
//! # let (_addresses, rx) = tokio::sync::watch::channel(vec![std::net::SocketAddr::from(([10, 0, 0, 1], 80))]);
//! let client = ServiceBuilder::new()
//!     .layer(DeadlineLayer::new(Duration::from_secs(2)))
//!     .layer(FailoverLayer::new(HttpRetry::new()))
//!     .layer(BalanceLayer::new(P2c::default()))
//!     .layer(OutlierLayer::default().classify(HttpStatus::new()))
//!     .layer(each(
//!         PeakEwmaLayer::default().classify(HttpStatus::new()).completion(CompleteOnBody::new()),
//!     ))
//!     .layer(AuthorityLayer::new())
//!     .layer(WatchLayer::new(rx))
//!     .service(move |_: &Endpoint| pooled_client.clone());
//! # client.oneshot(Request::new(())).await?;
//! # Ok::<_, tower::BoxError>(()) })?;
//! # Ok::<_, tower::BoxError>(())
//! ```

mod authority;
mod classify;
mod completion;
pub mod key;
mod load_number;
#[cfg(feature = "orca")]
mod orca;
mod retry;
mod retry_after;
#[cfg(feature = "session")]
mod session;
mod tried;
mod unsent;

#[cfg(feature = "orca")]
#[cfg_attr(docsrs, doc(cfg(feature = "orca")))]
pub use self::orca::{load_metric, load_report};
#[cfg(feature = "session")]
#[cfg_attr(docsrs, doc(cfg(feature = "session")))]
pub use self::session::{BoundedSticky, SameSite, Session, SessionLayer, Sticky};
pub use self::{
    authority::{AuthorityLayer, EndpointError, NoAuthority, ToAuthority},
    classify::{GrpcStatus, HttpStatus},
    completion::{ClassifyEnd, CompleteOnBody, CompleteOnFirstData, EndIsSuccess, TrackedBody},
    load_number::load_number,
    retry::HttpRetry,
    retry_after::retry_after,
    tried::{ExcludeTried, ExcludeTriedLayer, TagTried, TagTriedLayer},
    unsent::{BodyMoved, UnsentBody},
};

/// The response futures of this module's services.
pub mod future {
    #[cfg(feature = "session")]
    #[cfg_attr(docsrs, doc(cfg(feature = "session")))]
    pub use super::session::SessionFuture;
    pub use super::{authority::AuthorityFuture, tried::TagFuture};
}

/// The tables of this module's policies.
#[cfg(feature = "session")]
#[cfg_attr(docsrs, doc(cfg(feature = "session")))]
pub mod table {
    pub use super::session::StickyTable;
}
