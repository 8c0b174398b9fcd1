//! The atomics of the lock-free parts, in one place: under `cfg(tower_lb_loom)` they are loom's.

#[cfg(all(test, tower_lb_loom))]
pub(super) use loom::sync::{
    Mutex,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};
#[cfg(not(all(test, tower_lb_loom)))]
pub(super) use std::sync::{
    Mutex,
    atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
};
