//! What foreign code hears of, once no lock is held.

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
    pub(crate) fn run(self) {
        self.0.into_iter().for_each(|tell| tell());
    }
}
