//! How busy is one service?
//!
//! A tracker wraps a service and measures it; policies compare what [`Load::load`] says. The traits are
//! tower's own, so the trackers work in tower's balancer and tower's trackers work here.
//!
//! | tracker | measures | take it |
//! |---|---|---|
//! | [`PendingRequests`] | requests in flight | by default: cheapest, and right wherever slowness makes requests pile up |
//! | [`PeakEwma`] | recent peak latency times requests in flight | for servers of different speed or distance, and those that can hang or fail fast |
//! | [`Reported`] | what servers say they have in hand, while that is young, and requests in flight | where many clients share the servers, and these report |
//! | [`Constant`] | nothing | for tests, and costs that are known beforehand |
//!
//! Where servers say how much they could do, [`ReportedWeightsLayer`] makes weights of that.
//!
//! # When is a request over?
//!
//! When its response future is done, by default ([`CompleteOnResponse`]). A [`TrackCompletion`] of your own
//! keeps the handle for longer, with a body or a stream: the request counts until the handle is dropped.
//! An error gives the count back before the caller sees it, and so do a dropped future and a panic.

mod ages;
mod classify;
mod constant;
mod ewma;
mod gauge;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod peak_ewma;
mod pending_requests;
mod report;
mod reported;
mod reported_weights;
mod track;

pub use tower::load::{CompleteOnResponse, Load, TrackCompletion};

pub use self::{
    classify::{Classify, ErrorsAreFailures, Outcome, Settle},
    constant::{Constant, ConstantLayer},
    peak_ewma::{PeakEwma, PeakEwmaHandle, PeakEwmaLayer, PeakEwmaLoad},
    pending_requests::{
        InTotal, PendingRequests, PendingRequestsHandle, PendingRequestsLayer, SharedTotal, Totals,
    },
    report::Report,
    reported::{Reported, ReportedFuture, ReportedLayer, ReportedLoad},
    reported_weights::{
        ReportedWeights, ReportedWeightsDiscover, ReportedWeightsFuture, ReportedWeightsLayer,
    },
    track::TrackFuture,
};
