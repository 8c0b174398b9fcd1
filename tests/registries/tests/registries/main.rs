//! Discovery against the real thing: servers of each kind on loopback.
#![allow(clippy::unwrap_used)]

mod cloud_map;
mod consul;
mod dns;
mod file;
mod kubernetes;
