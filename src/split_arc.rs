//! References to what the handles of one service share, without one count for all of them.

use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crossbeam_utils::CachePadded;

use crate::thread_number::thread_number;

/// Shares `T` between handles like an [`Arc`].
///
/// A handle that is cloned often, or that lends parts to requests, gets reference counts of its own
/// for them, one for each thread. So requests do not contend on one cache line: neither those of
/// several kept handles, nor those that each clone one shared handle.
///
/// Memory of such a handle: 136 bytes, and 256 for each thread up to eight.
#[derive(Debug)]
pub(crate) struct SplitArc<T> {
    part: Part<T>,
    /// How many clones and requests have got this handle's own part.
    clones: AtomicU64,
    /// The parts that clones and requests get from the [`OFTEN`]th on.
    parts: OnceLock<Box<Parts<T>>>,
}

/// A reference to the shared value, with the count that it is counted in.
#[derive(Debug)]
pub(crate) struct Part<T>(Arc<CachePadded<Counted<T>>>);

// Padded: the counts of two parts must not share a cache line.
#[derive(Debug)]
struct Counted<T> {
    shared: Arc<T>,
    /// The number of this part among those of its handle.
    rank: u64,
    /// How many clones of a handle this part has gone to.
    clones: AtomicU64,
}

#[derive(Debug)]
struct Parts<T> {
    of_threads: [OnceLock<Part<T>>; THREADS],
    made: AtomicU64,
}

impl<T> SplitArc<T> {
    pub(crate) fn new(shared: Arc<T>) -> Self {
        Self::of(Part::new(shared, 0))
    }

    const fn of(part: Part<T>) -> Self {
        Self {
            part,
            clones: AtomicU64::new(0),
            parts: OnceLock::new(),
        }
    }

    /// Returns another handle and its number among this handle's clones.
    ///
    /// A handle that only one thread clones numbers its clones in the same way in each run.
    #[inline]
    pub(crate) fn share(&self) -> (Self, u64) {
        let parts = match self.parts.get() {
            Some(parts) => parts,
            None => {
                // Relaxed, here and below: the numbers only have to differ.
                let number = self.clones.fetch_add(1, Relaxed) + 1;
                if number < OFTEN {
                    return (Self::of(self.part.clone()), number);
                }
                self.parts()
            }
        };
        let part = parts.of_thread(&self.part.0.shared);
        let before = part.0.clones.fetch_add(1, Relaxed);
        let number = OFTEN + before * THREADS as u64 + part.0.rank;
        (Self::of(part.clone()), number)
    }

    /// Returns the `Arc` that holds the shared value itself.
    pub(crate) fn as_arc(&self) -> &Arc<T> {
        &self.part.0.shared
    }

    /// Returns a part for a request to hold.
    #[inline]
    pub(crate) fn lend(&mut self) -> Part<T> {
        if self.parts.get().is_none() {
            let clones = self.clones.get_mut();
            *clones += 1;
            if *clones < OFTEN {
                return self.part.clone();
            }
        }
        self.parts().of_thread(&self.part.0.shared).clone()
    }

    #[inline]
    fn parts(&self) -> &Parts<T> {
        self.parts.get_or_init(|| {
            Box::new(Parts {
                of_threads: [const { OnceLock::new() }; THREADS],
                made: AtomicU64::new(0),
            })
        })
    }
}

impl<T> Parts<T> {
    #[inline]
    fn of_thread(&self, shared: &Arc<T>) -> &Part<T> {
        self.of_threads[thread_number() % THREADS].get_or_init(|| {
            let rank = self.made.fetch_add(1, Relaxed);
            Part::new(shared.clone(), rank)
        })
    }
}

impl<T> Part<T> {
    fn new(shared: Arc<T>, rank: u64) -> Self {
        Self(Arc::new(CachePadded::new(Counted {
            shared,
            rank,
            clones: AtomicU64::new(0),
        })))
    }
}

impl<T> Clone for Part<T> {
    #[inline]
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Part<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0.shared
    }
}

impl<T> Deref for SplitArc<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.part
    }
}

/// A clone for one request is itself cloned only a few times, by the layers above. Those few are
/// not worth an allocation.
const OFTEN: u64 = 16;

/// Threads beyond these share parts.
const THREADS: usize = 8;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_handle_that_is_cloned_often_counts_apart() {
        let shared = Arc::new(());
        let mut root = SplitArc::new(shared.clone());
        let numbers: Vec<u64> = (1..OFTEN).map(|_| root.share().1).collect();
        assert!(numbers.iter().copied().eq(1..OFTEN));
        // One count is the test's, the other the root's.
        assert_eq!(Arc::strong_count(&shared), 2);
        let (branch, _) = root.share();
        let (other, _) = root.share();
        assert_eq!(Arc::strong_count(&shared), 3);
        assert!(Arc::ptr_eq(&branch.part.0, &other.part.0));
        let lent = root.lend();
        assert!(Arc::ptr_eq(&lent.0, &branch.part.0));
        drop(root);
        drop((branch, other));
        assert_eq!(Arc::strong_count(&shared), 2, "what is lent holds");
        drop(lent);
        assert_eq!(Arc::strong_count(&shared), 1);
    }

    #[test]
    fn threads_that_clone_one_handle_count_apart_and_no_number_comes_twice() {
        let root = SplitArc::new(Arc::new(()));
        let barrier = std::sync::Barrier::new(2);
        let clones = || {
            let clones: Vec<_> = (0..1000).map(|_| root.share()).collect();
            // Both threads live until both have cloned, so that they have different numbers.
            barrier.wait();
            let last = Arc::as_ptr(&clones[999].0.part.0).addr();
            (last, clones.into_iter().map(|(_, number)| number))
        };
        let [(part, one), (other, two)] = std::thread::scope(|scope| {
            [scope.spawn(clones), scope.spawn(clones)].map(|thread| thread.join().unwrap())
        });
        // Unless the numbers of the threads are eight apart, because other tests have threads too.
        let same_part = part == other;
        assert_eq!(one.chain(two).collect::<HashSet<_>>().len(), 2000);
        let parts = root.parts.get().unwrap().made.load(Relaxed);
        assert_eq!(parts, if same_part { 1 } else { 2 });
    }
}
