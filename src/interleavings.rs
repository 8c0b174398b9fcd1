//! Every interleaving of a few threads, for tests of what is lock-free; `.ci/run` says how to run them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Runs every interleaving; one alone would mean that nothing was tried.
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
