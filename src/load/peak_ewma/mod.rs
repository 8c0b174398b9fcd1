//! Peak-EWMA: a latency estimate that rises at once and falls slowly, times the requests in flight.
//!
//! ```text
//! estimate = rtt                                              if the answer is slower
//! estimate = rtt + (estimate - rtt) * e^(-idle / decay)       otherwise
//! cost     = max(estimate, age of the oldest request) * (in flight / weight + 1)
//! ```
//!
//! `level.rs` has the first two in full, `standing.rs` what counts for an endpoint that is new or
//! fails, `ages.rs` the ages, `load.rs` what a pick compares.

mod ages;
mod gauge;
mod handle;
mod layer;
mod level;
mod load;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod service;
mod standing;

pub use self::{
    handle::PeakEwmaHandle, layer::PeakEwmaLayer, load::PeakEwmaLoad, service::PeakEwma,
};
