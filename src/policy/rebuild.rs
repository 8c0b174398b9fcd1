use std::sync::{Arc, Weak};

use tokio::sync::Notify;

/// Makes the driver of a balancer build the policy's table again.
///
/// Passed to [`Policy::attach`](super::Policy::attach). Clones are for the same balancer. After
/// that balancer is gone, they do nothing.
#[derive(Clone, Debug)]
pub struct Rebuild(Weak<Notify>);

impl Rebuild {
    pub(crate) fn new(driver: &Arc<Notify>) -> Self {
        Self(Arc::downgrade(driver))
    }

    /// Asks the driver to build the table as soon as it runs.
    ///
    /// Several calls before that cause one build.
    pub fn now(&self) {
        if let Some(driver) = self.0.upgrade() {
            driver.notify_one();
        }
    }
}
