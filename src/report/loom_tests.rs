//! Tests the lock-free code here with every interleaving of two threads. `.ci/run` shows how to run
//! them.

use loom::{sync::Arc, thread};

use super::load::LastReport;
use crate::interleavings::model;

#[test]
fn loom_a_report_is_never_older_than_its_time() {
    model(|| {
        let report = Arc::new(LastReport::default());
        let writer = report.clone();
        // The load equals the time, so that a mismatched pair shows.
        let thread = thread::spawn(move || {
            writer.set(1.0, 1);
            writer.set(2.0, 2);
        });
        if let Some((load, reported_at)) = report.get() {
            assert!(load >= reported_at as f64, "{load} at {reported_at}");
        }
        thread.join().unwrap();
        assert_eq!(report.get(), Some((2.0, 2)));
    });
}
