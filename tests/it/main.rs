//! Tests of the crate from the outside.
#![allow(clippy::unwrap_used)]

mod balance;
mod beyond_tower;
mod conformance;
mod discovery;
mod failover;
mod fairness;
#[cfg(unix)]
mod files;
mod floors;
mod hash;
mod health;
mod laws;
mod load;
mod policies;
mod report;
mod source;
mod support;
mod tower_itself;
