//! Targets, as discovery names them, and the live endpoints that are made from them.
//!
//! A [`Target`] is plain data: an address with a weight, a zone, a priority and a hash key. An
//! [`Endpoint`] is the live handle of one target in a balancer. Every stage of the stack holds the
//! same handle. So the balancer sees the status that a health check sets.

mod asking;
mod census;
mod endpoint;
mod map;
mod notice;
mod state;
mod status;
mod target;

pub(crate) use self::{
    asking::Asking,
    census::{BreakerView, Census, Counts},
    map::{EndpointMap, Removed},
    notice::Notice,
};
pub use self::{
    endpoint::Endpoint,
    status::{Ejection, Status},
    target::{Address, IntoTarget, Target},
};
