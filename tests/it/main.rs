//! Everything that is tested from the outside.
#![allow(clippy::unwrap_used)]

mod balance;
mod beyond_tower;
mod conformance;
mod discovery;
mod floors;
mod hash;
mod health;
mod laws;
mod load;
mod policies;
mod reported;
mod retry;
mod support;
mod tower_itself;
