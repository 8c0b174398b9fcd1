//! Notices outcomes that are left to the end of an answer where nobody waits for it.

use std::cell::Cell;

thread_local! {
    static AT_HEAD: Cell<bool> = const { Cell::new(false) };
}

/// Runs a completion for an answer whose head left the outcome undecided.
///
/// A handle that is dropped meanwhile never learns the outcome: the completion does not wait for
/// the answer's end.
pub(crate) fn complete_at_head<T>(complete: impl FnOnce() -> T) -> T {
    let _reset = Reset(AT_HEAD.replace(true));
    complete()
}

/// Returns whether this thread is in [`complete_at_head`].
pub(crate) fn is_at_head() -> bool {
    AT_HEAD.get()
}

/// The event of it.
pub(crate) const NOBODY_DECIDES: &str = "answers leave their outcome to their end, but the \
    completion does not wait for it: nothing is learnt; set both by `outcomes`, such as \
    `.outcomes(GrpcStatus::new())`";

struct Reset(bool);

impl Drop for Reset {
    fn drop(&mut self) {
        AT_HEAD.set(self.0);
    }
}
