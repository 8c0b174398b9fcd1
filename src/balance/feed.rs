use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::time::Sleep;
use tower::{
    BoxError,
    discover::{Change, Discover},
};
use tracing::{debug, error, warn};

use crate::{error::NoEndpoints, guard::guarded, random::entropy, timer};

/// The discovery below a balancer: polls it, and bears its errors, its panics and its end.
pub(super) struct Feed<D> {
    /// `None` once discovery has ended, because it must not be polled again.
    discover: Option<Pin<Box<D>>>,
    /// Runs while discovery is left alone after an error.
    pause: Option<Pin<Box<Sleep>>>,
    /// Whether the last poll ended in an error. The next one is not before another wake.
    has_failed: bool,
    /// Errors with no change between them.
    errors: u32,
    last_error: Option<Arc<BoxError>>,
    /// Whether discovery has yielded anything yet.
    has_reported: bool,
    rng: SmallRng,
}

impl<D> Feed<D> {
    pub(super) fn new(discover: D) -> Self {
        Self {
            discover: Some(Box::pin(discover)),
            pause: None,
            has_failed: false,
            errors: 0,
            last_error: None,
            has_reported: false,
            rng: SmallRng::seed_from_u64(entropy()),
        }
    }

    pub(super) const fn has_reported(&self) -> bool {
        self.has_reported
    }

    /// Returns what callers are told while the set is empty.
    pub(super) fn no_endpoints(&self) -> NoEndpoints {
        NoEndpoints::because(self.last_error.clone(), self.discover.is_none())
    }

    /// Drops discovery, which says nothing more.
    pub(super) fn end(&mut self) {
        if let Err(panic) = guarded(|| self.discover = None) {
            error!(%panic, "discovery panicked when it was dropped");
        }
    }

    fn take_error(&mut self, error: BoxError) {
        // Discovery reports a set that is known to be empty by this error: no `Change` can say it.
        let is_empty = error.is::<NoEndpoints>();
        if is_empty {
            if self.last_error.take().is_some() {
                // The source is back.
                self.end_row();
            }
        } else {
            // Only the first error in a row is logged.
            if self.last_error.is_none() {
                warn!(%error, "discovery failed: the set stays as it is");
            }
            self.last_error = Some(Arc::new(error));
        }
        if self.pause.is_some() {
            self.has_failed = true;
            return;
        }
        self.errors = self.errors.saturating_add(1);
        // Once is no fault of the source; again at once is.
        if !is_empty || self.errors > 1 {
            self.rest();
        }
    }

    /// Leaves discovery alone for a while, longer after each error.
    fn rest(&mut self) {
        let longest = longest_pause(self.errors);
        // Half to all of it: clients of one registry must not come back together.
        let pause = longest.mul_f64(self.rng.random_range(0.5..=1.0));
        self.pause = timer::start(pause);
        self.has_failed = true;
    }

    fn end_row(&mut self) {
        self.errors = 0;
        self.last_error = None;
        self.pause = None;
    }
}

impl<D: Discover<Error: Into<BoxError>>> Feed<D> {
    /// Polls for what discovery has: a change, or `None` for an error or its end.
    ///
    /// During a pause it is polled only when something else has woken the driver: the health layers
    /// above a source that fails go on with their own work. Pending: discovery or the timer of the
    /// pause has registered the waker.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Change<D::Key, D::Service>>> {
        let has_failed = std::mem::take(&mut self.has_failed);
        if let Some(pause) = &mut self.pause {
            match pause.as_mut().poll(cx) {
                Poll::Pending if has_failed => return Poll::Pending,
                Poll::Pending => {}
                Poll::Ready(()) => self.pause = None,
            }
        }
        let Some(discover) = &mut self.discover else {
            return Poll::Pending;
        };
        let item = match guarded(|| discover.as_mut().poll_discover(cx)) {
            Ok(Poll::Pending) => {
                // A source that waits before it says again that its set is empty is in good health.
                if self.last_error.is_none() {
                    self.errors = 0;
                }
                return Poll::Pending;
            }
            Ok(Poll::Ready(item)) => item,
            Err(panic) => {
                error!(%panic, "discovery panicked: the set stays as it is from now on");
                None
            }
        };
        self.has_reported = true;
        Poll::Ready(match item {
            Some(Ok(change)) => {
                self.end_row();
                Some(change)
            }
            Some(Err(error)) => {
                self.take_error(error.into());
                None
            }
            None => {
                debug!("discovery ended: the set stays as it is");
                self.end();
                None
            }
        })
    }
}

/// Returns the longest pause after so many errors in a row: it doubles from 10 ms to 10 s.
fn longest_pause(errors: u32) -> Duration {
    let doublings = errors.saturating_sub(1).min(16);
    (SHORTEST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE)
}

/// A source that failed once is often back at once.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// A registry that comes back is heard of within ten seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_seconds() {
        let millis = [1, 2, 3, 10, 11, 12, u32::MAX].map(|n| longest_pause(n).as_millis());
        assert_eq!(millis, [10, 20, 40, 5120, 10_000, 10_000, 10_000]);
    }
}
