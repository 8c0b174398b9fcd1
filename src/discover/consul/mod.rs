//! Targets from Consul, with feature `consul`.

mod client;
mod consul;
mod instances;
mod query;
mod token;

pub use self::{consul::Consul, query::Consistency};
