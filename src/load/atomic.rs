//! The atomics of the lock-free parts, in one place: the loom tests put loom's in their stead.

pub(super) use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
