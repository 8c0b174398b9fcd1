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
/// Pieces are padded, so that two endpoints do not share a cache line.
///
/// Bound: about as many pieces as were ever in use at once. A piece is in use while its endpoint
/// is. If the `reset` of [`take`](Self::take) says so, a piece also stays in use while the last
/// requests of an endpoint that has left are still in flight.
pub(crate) struct Recycled<T: 'static>(Mutex<VecDeque<&'static T>>);

impl<T> Recycled<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    /// Takes a piece that was given back and that `reset` accepts, or makes a new one.
    ///
    /// `reset` prepares the piece. It returns `false` while the piece is still in use.
    pub(crate) fn take(
        &self,
        mut reset: impl FnMut(&T) -> bool,
        make: impl FnOnce() -> T,
    ) -> &'static T {
        for _ in 0..TRIES {
            let Some(piece) = self.free().pop_front() else {
                break;
            };
            if reset(piece) {
                return piece;
            }
            self.give_back(piece);
        }
        let piece: &CachePadded<T> = Box::leak(Box::new(CachePadded::new(make())));
        piece
    }

    /// Gives back a piece that came from [`take`](Self::take).
    #[cold]
    pub(crate) fn give_back(&self, piece: &'static T) {
        self.free().push_back(piece);
    }

    fn free(&self) -> MutexGuard<'_, VecDeque<&'static T>> {
        // Nothing under this lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many pieces are tried before a new one is made.
const TRIES: usize = 4;
