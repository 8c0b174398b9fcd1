//! Discovery against the real thing: servers of each kind on loopback.
#![allow(clippy::unwrap_used)]

mod consul;
mod dns;
mod kubernetes;
