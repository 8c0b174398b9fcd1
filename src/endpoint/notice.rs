use std::{fmt, sync::Arc};

use tokio::sync::Notify;
use tracing::info;

use super::{Endpoint, Status};

/// What is to be told of a change once no lock is held: a wake of the driver, and an event.
#[must_use = "tell it once no lock is held"]
pub(crate) struct Notice<A> {
    pub(super) endpoint: Endpoint<A>,
    /// The status before and after, if it has changed.
    pub(super) change: Option<(Status, Status)>,
    pub(super) driver: Option<Arc<Notify>>,
}

impl<A: fmt::Display> Notice<A> {
    pub(crate) fn tell(self) {
        // First, so that a subscriber that panics does not lose it.
        wake(self.driver);
        if let Some((from, to)) = self.change {
            info!(endpoint = %self.endpoint, ?from, ?to, "status changed");
        }
    }
}

pub(super) fn wake(driver: Option<Arc<Notify>>) {
    if let Some(driver) = driver {
        driver.notify_one();
    }
}
