use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Endpoint;

/// The endpoints that ask their source for another service.
pub(crate) struct Asking<A>(Mutex<Vec<Endpoint<A>>>);

impl<A> Asking<A> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(crate) fn take(&self) -> Vec<Endpoint<A>> {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Endpoint<A>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
