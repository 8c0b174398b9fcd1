//! What makes the balancer understand HTTP and gRPC (feature `http`).
//!
//! | question | names |
//! |---|---|
//! | how does one pooled client reach all endpoints? | [`AuthorityLayer`] |
//! | when is a request over? | [`CompleteOnBody`], [`CompleteOnFirstData`] |
//! | what does an answer say of its endpoint? | [`HttpStatus`], [`GrpcStatus`] |
//! | what is a request spread by? | [`key`] for the [hash policies](crate::hash), [`SessionLayer`] for servers that keep sessions |
//! | how much can a server do, as it says? | [`load_report`], for weights by [`ReportedWeightsLayer`](crate::load::ReportedWeightsLayer) |
//! | how much has it in hand, as it says? | [`load_number`], [`load_metric`], for loads by [`ReportedLayer`](crate::load::ReportedLayer) |
//! | what may be tried again? | [`HttpRetry`], [`UnsentBody`] for bodies that cannot be cloned, [`retry_after`] |
//! | which layers may stand between retries and the balancer? | any, between [`TagTriedLayer`] and [`ExcludeTriedLayer`] |
//!
//! Where this crate's names are imported by `*`, the crate `http` is `::http`.
//!
//! A stack for HTTP, from the top:
//!
//! ```
//! # use std::{convert::Infallible, time::Duration};
//! # use ::http::{Request, Response};
//! # use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{
//!     BalanceLayer, Endpoint, FailoverLayer, OutlierLayer, P2c, PeakEwmaLayer, WatchLayer, each,
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
//!     .timeout(Duration::from_secs(2))
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
mod orca;
mod retry;
mod retry_after;
mod session;
mod tried;
mod unsent;

pub use self::{
    authority::{
        AuthorityDiscover, AuthorityFuture, AuthorityLayer, EndpointError, NoAuthority, ToAuthority,
    },
    classify::{GrpcStatus, HttpStatus},
    completion::{BodiesSayNothing, ClassifyEnd, CompleteOnBody, CompleteOnFirstData, TrackedBody},
    orca::{load_metric, load_number, load_report},
    retry::HttpRetry,
    retry_after::retry_after,
    session::{Session, SessionDiscover, SessionFuture, SessionLayer, Sticky, StickyTable},
    tried::{ExcludeTried, ExcludeTriedLayer, TagFuture, TagTried, TagTriedLayer},
    unsent::{BodyMoved, UnsentBody},
};
