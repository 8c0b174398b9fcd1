//! Hedging: sends a request that is slow to be answered to a second endpoint.

mod delay;
mod future;
mod layer;
mod service;
mod slow;
mod state;

pub use self::{future::HedgeFuture, layer::HedgeLayer, service::Hedge};
