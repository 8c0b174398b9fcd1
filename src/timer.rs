//! Timers where there may be none: outside a tokio runtime, or in one without `enable_time`.

use std::{pin::Pin, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Sleep, sleep},
};

use crate::guard::guarded;

/// Starts a timer; `None` where there are none.
///
/// Without a runtime this is quiet. In a runtime without timers, which tokio tells only by a panic,
/// the panic is caught here.
pub(crate) fn start(duration: Duration) -> Option<Pin<Box<Sleep>>> {
    Handle::try_current().ok()?;
    guarded(|| Box::pin(sleep(duration))).ok()
}
