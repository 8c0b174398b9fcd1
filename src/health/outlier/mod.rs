//! Outlier detection: judges endpoints by their answers and ejects those that stand out.
//!
//! A *detector* judges the counts of an interval. Its *verdict* ejects the endpoint: the endpoint's
//! *breaker* opens. When the ejection ends, the breaker is half-open and a *probe* decides.
//!
//! The verdict's reason (`detector/reason.rs`) is in the event "ejected" and in
//! [`Endpoint::ejection`](crate::Endpoint::ejection).

mod breaker;
mod counters;
mod detector;
mod discover;
mod endpoint_set;
mod endpoint_state;
mod layer;
mod rule;
mod service;
mod settings;
#[cfg(all(test, not(tower_lb_loom)))]
mod tests;

pub use self::{
    detector::{FailureRate, SlowLatency, SuccessRate},
    discover::OutlierDiscover,
    layer::OutlierLayer,
    rule::EjectionGrowth,
    service::{Outlier, OutlierFuture, OutlierHandle},
};
