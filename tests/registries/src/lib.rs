//! What the tests of discovery share: registries to start, servers to find, and a client behind the
//! whole stack.
#![allow(clippy::unwrap_used)]

pub mod backends;
pub mod cloud_map;
pub mod consul;
pub mod dns;
pub mod file;
pub mod kubernetes;
pub mod program;
pub mod server;
pub mod traffic;
