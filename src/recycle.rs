//! Memory that later endpoints reuse, so that requests need not count references to it.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crossbeam_utils::CachePadded;

/// Memory of one kind that is never freed, but given back and reused.
///
/// A request can therefore hold a plain `&'static T`. An `Arc` would cost it two atomic operations
/// on a line that all requests to the endpoint share.
///
/// Pieces are padded, so that two endpoints do not share a cache line. They are made in slabs,
/// because an allocator needs more than twice the memory for single pieces of such an alignment.
///
/// Bound: about as many pieces as were ever in use at once, and one slab. A piece is in use while
/// its endpoint is. If the `reset` of [`take`](Self::take) says so, a piece also stays in use while
/// the last requests of an endpoint that has left are still in flight.
pub(crate) struct Recycled<T: 'static>(Mutex<Pieces<T>>);

struct Pieces<T: 'static> {
    free: VecDeque<&'static T>,
    made: usize,
}

impl<T> Recycled<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Pieces {
            free: VecDeque::new(),
            made: 0,
        }))
    }

    /// Takes a piece that was given back and that `reset` accepts, or a new one.
    ///
    /// `reset` prepares the piece. It returns `false` while the piece is still in use.
    pub(crate) fn take(
        &self,
        mut reset: impl FnMut(&T) -> bool,
        make: impl Fn() -> T,
    ) -> &'static T {
        for _ in 0..TRIES {
            let Some(piece) = self.pieces().free.pop_front() else {
                break;
            };
            if reset(piece) {
                return piece;
            }
            self.give_back(piece);
        }
        loop {
            let piece = self.pieces().make(&make);
            if reset(piece) {
                return piece;
            }
        }
    }

    /// Gives back a piece that came from [`take`](Self::take).
    #[cold]
    pub(crate) fn give_back(&self, piece: &'static T) {
        self.pieces().free.push_back(piece);
    }

    fn pieces(&self) -> MutexGuard<'_, Pieces<T>> {
        // Nothing under this lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Pieces<T> {
    /// Makes a slab of pieces; returns one of them. The others are taken next.
    fn make(&mut self, make: impl Fn() -> T) -> &'static T {
        let count = self.made.clamp(SMALLEST_SLAB, LARGEST_SLAB);
        self.made += count;
        let slab: Box<[_]> = (0..count).map(|_| CachePadded::new(make())).collect();
        let slab: &'static [CachePadded<T>] = Box::leak(slab);
        let (first, others) = (&slab[0], &slab[1..]);
        for piece in others {
            self.free.push_front(piece);
        }
        first
    }
}

/// How many pieces are tried before new ones are made.
const TRIES: usize = 4;

/// Enough for a small set.
const SMALLEST_SLAB: usize = 4;

/// Each slab doubles what there is, up to this many: 32 KiB where a piece takes 128 bytes.
const LARGEST_SLAB: usize = 256;

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_piece_is_taken_twice_and_few_are_made_in_vain() {
        static PIECES: Recycled<u64> = Recycled::new();
        const LINE: usize = align_of::<CachePadded<u64>>();
        let mut addresses = HashSet::new();
        let mut take = || {
            let piece = PIECES.take(|_| true, || 7);
            assert!(addresses.insert(std::ptr::from_ref(piece)), "taken twice");
            assert_eq!(std::ptr::from_ref(piece).addr() % LINE, 0, "not padded");
            piece
        };
        let pieces: Vec<_> = (0..1000).map(|_| take()).collect();
        assert!(PIECES.pieces().made <= 1256, "{}", PIECES.pieces().made);
        for piece in pieces {
            PIECES.give_back(piece);
        }
        let made = PIECES.pieces().made;
        (0..1000).for_each(|_| {
            PIECES.take(|_| true, || 7);
        });
        assert_eq!(PIECES.pieces().made, made, "all are used again");
    }
}
