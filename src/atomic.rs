//! The atomics of the lock-free code. Under `cfg(tower_lb_loom)` they are loom's.

#[cfg(all(test, tower_lb_loom))]
pub(crate) use loom::sync::{
    Mutex,
    atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};
#[cfg(not(all(test, tower_lb_loom)))]
pub(crate) use std::sync::{
    Mutex,
    atomic::{
        AtomicI64, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

#[cfg(not(all(test, tower_lb_loom)))]
pub(crate) use arc_swap::{ArcSwap, Guard};

/// Replaces arc-swap under loom: another thread may run before and after each operation.
#[cfg(all(test, tower_lb_loom))]
pub(crate) use self::swap::{ArcSwap, Guard};

#[cfg(all(test, tower_lb_loom))]
mod swap {
    use std::{ops::Deref, sync::Arc};

    use super::Mutex;

    pub(crate) struct ArcSwap<T>(Mutex<Arc<T>>);

    pub(crate) struct Guard<T>(T);

    impl<T> ArcSwap<T> {
        pub(crate) fn from_pointee(value: T) -> Self {
            Self(Mutex::new(Arc::new(value)))
        }

        pub(crate) fn load(&self) -> Guard<Arc<T>> {
            let current = self.0.lock().expect("no panic under this lock");
            Guard(current.clone())
        }

        pub(crate) fn swap(&self, new: Arc<T>) -> Arc<T> {
            let mut current = self.0.lock().expect("no panic under this lock");
            std::mem::replace(&mut current, new)
        }
    }

    impl<T> Deref for Guard<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }
}
