//! How busy is one service?
//!
//! A tracker wraps a service and measures it. Policies compare the values of [`Load::load`]. The
//! traits are tower's own, so these trackers work in tower's balancer, and tower's trackers work
//! here.
//!
//! | tracker | measures | use it |
//! |---|---|---|
//! | [`PendingRequests`] | requests in flight | by default: cheapest, and right wherever slowness makes requests pile up |
//! | [`PeakEwma`] | recent peak latency times requests in flight | for servers that differ in speed or distance, or that can hang or fail fast |
//! | [`Reported`](crate::report::Reported) | the requests that servers report to have in hand, while the report is young, and requests in flight | where many clients share the servers, and the servers report |
//! | [`Constant`] | nothing | for tests and for costs that are known beforehand |
//!
//! Where servers report their capacity, [`ReportedWeightsLayer`](crate::ReportedWeightsLayer) turns
//! the reports into weights.
//!
//! # When is a request over?
//!
//! By default, when its response future is done ([`CompleteOnResponse`]). A [`TrackCompletion`] of
//! your own can keep the handle for longer, in a body or a stream. The request counts until the
//! handle is dropped. After an error, the count is given back before the caller sees the error. A
//! dropped future and a panic give it back too.

mod constant;
mod peak_ewma;
mod pending_requests;
mod track;

pub use tower::load::{CompleteOnResponse, Load, TrackCompletion};

pub use self::{
    constant::{Constant, ConstantLayer},
    peak_ewma::{PeakEwma, PeakEwmaLayer},
    pending_requests::{PendingRequests, PendingRequestsLayer},
};

/// The response future of tracked services.
pub mod future {
    pub use super::track::TrackFuture;
}

/// What counts a request while it is under way, for a [`TrackCompletion`] of your own.
pub mod handle {
    pub use super::{
        peak_ewma::PeakEwmaHandle,
        pending_requests::{InTotal, PendingRequestsHandle, SharedTotal, Totals},
    };
}

/// What trackers say of an endpoint: the metrics that policies compare.
pub mod metric {
    pub use super::peak_ewma::PeakEwmaLoad;
}
