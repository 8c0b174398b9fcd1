//! What the feature `http` brings, over scripted services and real sockets.
#![allow(clippy::unwrap_used)]

#[path = "http/retry.rs"]
mod retry;
