//! Limits: layers that reject requests locally, or let them wait.
//!
//! | what is limited | layer | what the caller sees at the limit |
//! |---|---|---|
//! | one endpoint | tower's `ConcurrencyLimitLayer` in [`each`](crate::each()) | the endpoint is passed over; when all are full, `poll_ready` waits |
//! | one endpoint, without waiting | the same, and tower's `LoadShedLayer` above the balancer | tower's `Overloaded` |
//! | all endpoints together | tower's `ConcurrencyLimitLayer` above the balancer | `poll_ready` waits |
//! | all endpoints together, without waiting | [`LimitLayer`] above the balancer | [`LimitReached`](crate::error::LimitReached), which names the limit |
//! | requests a second | tower's `RateLimitLayer` | `poll_ready` waits |
//!
//! [`DeadlineLayer`] limits the time of each request, with the wait for an endpoint that is ready.
//! Put it above layers that let requests wait.
//!
//! [`AdaptiveThrottleLayer`] sets no fixed limit: it rejects what the backends would reject.
//!
//! A limit that rejects does not belong below the balancer, because an endpoint that rejects at
//! once looks like the fastest one.

mod adaptive_throttle;
mod deadline;
mod limit;

pub use self::{
    adaptive_throttle::{AdaptiveThrottle, AdaptiveThrottleLayer},
    deadline::{Deadline, DeadlineLayer},
    limit::{Limit, LimitLayer},
};

/// The response futures of the services here.
pub mod future {
    pub use super::{
        adaptive_throttle::ThrottleFuture, deadline::DeadlineFuture, limit::LimitFuture,
    };
}
