use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Timeout;

pin_project! {
    /// One check under way.
    pub(super) struct Run<F> {
        id: u64,
        #[pin]
        check: Timeout<F>,
    }
}

impl<F: Future> Run<F> {
    pub(super) fn new(id: u64, timeout: Duration, check: F) -> Self {
        let check = tokio::time::timeout(timeout, check);
        Self { id, check }
    }
}

impl<F, E> Future for Run<F>
where
    F: Future<Output = Result<(), E>>,
    E: fmt::Display,
{
    type Output = (u64, Result<(), String>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // A check is the user's code and runs on the driver's task: its panic must only fail the
        // check.
        let poll = catch_unwind(AssertUnwindSafe(|| {
            let result = ready!(this.check.poll(cx));
            Poll::Ready(match result {
                Ok(result) => result.map_err(|error| error.to_string()),
                Err(_) => Err("no answer in time".into()),
            })
        }));
        let result = match poll {
            Ok(poll) => ready!(poll),
            Err(_) => Err(PANICKED.into()),
        };
        Poll::Ready((*this.id, result))
    }
}

/// The error of a check that panics.
pub(super) const PANICKED: &str = "the check panicked";
