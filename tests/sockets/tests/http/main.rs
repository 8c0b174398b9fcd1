//! Tests of the feature `http` over real sockets.
#![allow(clippy::unwrap_used)]

mod authority;
mod completion;
#[path = "../../../http/support.rs"]
mod support;
mod tls;
mod unprocessed;
