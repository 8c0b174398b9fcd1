use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crossbeam_utils::CachePadded;

/// Shares `T` between handles like an [`Arc`].
///
/// A handle that is cloned often, or that lends parts to requests, gets a reference count of its
/// own for them. Threads that clone it for every request then do not contend on one cache line.
#[derive(Debug)]
pub(super) struct SplitArc<T> {
    part: Part<T>,
    /// The part that clones and requests get, from the [`OFTEN`]th on.
    of_clones: OnceLock<Part<T>>,
    /// How many clones and requests have got a part.
    clones: AtomicU64,
}

/// A reference to the shared value, with the reference count that it is counted in.
// Padded: the counts of two handles' clones must not share a cache line.
pub(super) type Part<T> = Arc<CachePadded<Arc<T>>>;

impl<T> SplitArc<T> {
    pub(super) fn new(shared: Arc<T>) -> Self {
        Self::of(Arc::new(CachePadded::new(shared)))
    }

    const fn of(part: Part<T>) -> Self {
        Self {
            part,
            of_clones: OnceLock::new(),
            clones: AtomicU64::new(0),
        }
    }

    /// Returns another handle and its number among this handle's clones and requests, from 1 on.
    #[inline]
    pub(super) fn share(&self) -> (Self, u64) {
        // Relaxed: the numbers only have to differ.
        let number = self.clones.fetch_add(1, Relaxed) + 1;
        (Self::of(self.part(number)), number)
    }

    /// Returns the `Arc` that holds the shared value itself.
    pub(super) fn as_arc(&self) -> &Arc<T> {
        &self.part
    }

    /// Returns a part for a request to hold.
    #[inline]
    pub(super) fn lend(&mut self) -> Part<T> {
        let clones = self.clones.get_mut();
        *clones += 1;
        let number = *clones;
        self.part(number)
    }

    fn part(&self, number: u64) -> Part<T> {
        if number < OFTEN {
            return self.part.clone();
        }
        let part = self
            .of_clones
            .get_or_init(|| Arc::new(CachePadded::new(Arc::clone(&self.part))));
        part.clone()
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

#[cfg(test)]
mod tests {
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
        assert!(Arc::ptr_eq(&branch.part, &other.part));
        let lent = root.lend();
        assert!(Arc::ptr_eq(&lent, &branch.part));
        drop(root);
        drop((branch, other));
        assert_eq!(Arc::strong_count(&shared), 2, "what is lent holds");
        drop(lent);
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
