//! Tests of the feature `http` over scripted services.
#![allow(clippy::unwrap_used)]

mod classify;
mod completion;
mod keys;
mod orca;
mod retry;
mod support;
