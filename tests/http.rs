//! What the feature `http` brings, over scripted services and real sockets.
#![allow(clippy::unwrap_used)]

#[path = "http/authority.rs"]
mod authority;
#[path = "http/classify.rs"]
mod classify;
#[path = "http/completion.rs"]
mod completion;
#[path = "http/keys.rs"]
mod keys;
#[path = "http/orca.rs"]
mod orca;
#[path = "http/retry.rs"]
mod retry_http;
#[path = "http/support.rs"]
mod support;
#[path = "http/tls.rs"]
mod tls;
