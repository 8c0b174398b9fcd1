//! What foreign code hears of, once no lock is held.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Events and wakes that come after a change that was made under a lock.
///
/// An event runs subscribers, and a wake runs an executor: foreign code, which may come back to the
/// same lock.
#[derive(Default)]
pub(crate) struct Afterwards(Vec<Box<dyn FnOnce()>>);

impl Afterwards {
    pub(crate) fn add(&mut self, tell: impl FnOnce() + 'static) {
        self.0.push(Box::new(tell));
    }

    /// Tells everything, in the order of the changes. The caller holds no lock.
    ///
    /// A panic of one of them goes on once all are told: a subscriber's fault must not lose a wake.
    pub(crate) fn run(self) {
        let mut panic = None;
        for tell in self.0 {
            if let Err(caught) = catch_unwind(AssertUnwindSafe(tell)) {
                panic.get_or_insert(caught);
            }
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}
