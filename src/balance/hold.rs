use std::{
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// A handle's hold on what all handles share, which goes when the last hold does.
///
/// A handle that is cloned often, or that lends parts to requests, has a count of its own for them: so threads that
/// clone their handles for each request do not write one count in turns.
#[derive(Debug)]
pub(super) struct Hold<T> {
    part: Part<T>,
    /// What clones and requests have, from the [`OFTEN`]th on.
    of_clones: OnceLock<Part<T>>,
    /// How many clones and requests have had one.
    clones: AtomicU64,
}

/// A reference to what is shared, by way of the count that it is counted in.
pub(super) type Part<T> = Arc<CacheLine<T>>;

/// Keeps the counts of two handles' clones out of each other's cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct CacheLine<T>(Arc<T>);

impl<T> Deref for CacheLine<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Hold<T> {
    pub(super) fn new(shared: Arc<T>) -> Self {
        Self::of(Arc::new(CacheLine(shared)))
    }

    const fn of(part: Part<T>) -> Self {
        Self {
            part,
            of_clones: OnceLock::new(),
            clones: AtomicU64::new(0),
        }
    }

    /// Returns another hold, and which one of this hold's it is: from 1 on.
    #[inline]
    pub(super) fn share(&self) -> (Self, u64) {
        // Relaxed: only the number must differ.
        let number = self.clones.fetch_add(1, Relaxed) + 1;
        (Self::of(self.part(number)), number)
    }

    /// Returns a part for a request.
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
            .get_or_init(|| Arc::new(CacheLine(self.part.0.clone())));
        part.clone()
    }
}

impl<T> Deref for Hold<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.part
    }
}

/// A clone for one request is cloned a few times itself, by layers above; it is not worth an allocation.
const OFTEN: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_that_is_shared_often_counts_apart() {
        let shared = Arc::new(());
        let mut root = Hold::new(shared.clone());
        let numbers: Vec<u64> = (1..OFTEN).map(|_| root.share().1).collect();
        assert!(numbers.iter().copied().eq(1..OFTEN));
        // The test's, and the root's.
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
