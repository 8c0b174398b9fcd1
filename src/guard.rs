//! Foreign code on the driver's task: its panics must not stop the driver.

use std::{
    any::Any,
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use tracing::error;

/// The message of a panic.
#[derive(Debug)]
pub(crate) struct Panicked(String);

/// Runs foreign code: a factory, a layer, a policy's table, discovery, the drop of a service.
///
/// What the code has left half done is the foreign code's own: callers drop it.
pub(crate) fn guarded<T>(foreign: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(foreign)).map_err(|payload| Panicked(message(&*payload)))
}

/// Drives a foreign future.
pub(crate) async fn guarded_future<T>(foreign: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut foreign = pin!(foreign);
    poll_fn(|cx| match guarded(|| foreign.as_mut().poll(cx)) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Drops what has a service in it.
pub(crate) fn drop_guarded<T>(service: T) {
    if let Err(panic) = guarded(|| drop(service)) {
        error!(%panic, "a service panicked when it was dropped");
    }
}

/// Drops each of them by itself: of two panics in one drop, the second would abort the process.
pub(crate) fn drop_each_guarded<T>(services: impl IntoIterator<Item = T>) {
    services.into_iter().for_each(drop_guarded);
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
