//! Finds the endpoints that stand out. The detectors are pure functions of the counts of one
//! interval.

mod detectors;
mod failure_rate;
mod reason;
mod slow_latency;
mod success_rate;
mod tally;
#[cfg(test)]
mod tests;

pub(super) use self::{
    detectors::Detectors,
    reason::{Reason, Verdict},
    tally::Tally,
};
pub use self::{failure_rate::FailureRate, slow_latency::SlowLatency, success_rate::SuccessRate};
