//! Runs tests of lock-free code with every interleaving of a few threads. `.ci/run` shows how.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Runs every interleaving of `check`. Panics if there is only one, because the test then tests
/// nothing.
pub(crate) fn model(check: impl Fn() + Sync + Send + 'static) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    loom::model(move || {
        counted.fetch_add(1, Relaxed);
        check();
    });
    let runs = runs.load(Relaxed);
    println!("{runs} interleavings");
    assert!(runs > 1);
}
