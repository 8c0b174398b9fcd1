//! The atomics of the lock-free parts, in one place: under `cfg(tower_lb_loom)` they are loom's.

#[cfg(all(test, tower_lb_loom))]
pub(super) use loom::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
#[cfg(not(all(test, tower_lb_loom)))]
pub(super) use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
