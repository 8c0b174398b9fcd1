use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::load::TrackCompletion;

use crate::{
    outcome::{Classify, Outcome, Settle},
    undecided::complete_at_head,
};

pin_project! {
    /// The response future of a tracked service.
    ///
    /// # Cancel safety
    ///
    /// Dropping it before it is done gives the request's count back.
    #[derive(Debug)]
    pub struct TrackFuture<F, C, H, K> {
        #[pin]
        future: F,
        handle: Option<H>,
        completion: C,
        classify: K,
    }
}

impl<F, C, H, K> TrackFuture<F, C, H, K> {
    pub(super) const fn new(future: F, handle: H, completion: C, classify: K) -> Self {
        Self {
            future,
            handle: Some(handle),
            completion,
            classify,
        }
    }
}

impl<F, C, H, K, T, E> Future for TrackFuture<F, C, H, K>
where
    F: Future<Output = Result<T, E>>,
    C: TrackCompletion<H, T>,
    H: Settle,
    K: Classify<T, E>,
{
    type Output = Result<C::Output, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // If the inner future panics, the count is given back at once, not when this future is
        // dropped.
        let release = ReleaseOnPanic(this.handle);
        let poll = this.future.poll(cx);
        std::mem::forget(release);
        let result = ready!(poll);
        let Some(mut handle) = this.handle.take() else {
            panic!("`TrackFuture` polled after completion");
        };
        if result.is_ok() {
            // An `Ok` is an answer, however it is classified. An error may have been made by the
            // client itself.
            handle.settle(Outcome::Undecided);
        }
        let outcome = this.classify.classify(result.as_ref());
        handle.settle(outcome);
        Poll::Ready(result.map(|response| {
            let complete = || this.completion.track_completion(handle, response);
            if outcome == Outcome::Undecided {
                complete_at_head(complete)
            } else {
                complete()
            }
        }))
    }
}

struct ReleaseOnPanic<'a, H>(&'a mut Option<H>);

impl<H> Drop for ReleaseOnPanic<'_, H> {
    fn drop(&mut self) {
        *self.0 = None;
    }
}
