use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::BoxError;
use tracing::trace;

use super::{
    CopyRequest, Retry, RetryPolicy,
    delay::Began,
    error::{Attempt, AttemptsFailed, Stopped},
    hedge::Shared,
};
use crate::balance::{CallExcluding, Tried};

pin_project! {
    /// The response future of a [`Hedge`](super::Hedge).
    ///
    /// # Cancel safety
    ///
    /// Dropped at any time, it drops the tries that are under way.
    pub struct HedgeFuture<S, Req, P, K>
    where
        S: CallExcluding<Req>,
    {
        #[pin]
        first: First<S::Future>,
        #[pin]
        second: Second<S, Req, S::Future>,
        // What the policy judges by, and the second request is made from; `None` if it is not to be sent twice.
        copy: Option<Req>,
        trace: S::Trace,
        tried: Option<Tried<S::Address>>,
        // The answer of the try that failed while the other one is under way.
        failed: Option<Result<S::Response, BoxError>>,
        began: Began,
        timer: Option<Pin<Box<Sleep>>>,
        shared: Arc<Shared<S, P, K>>,
    }
}

pin_project! {
    #[project = FirstProj]
    enum First<F> {
        Trying { #[pin] future: F },
        Failed,
    }
}

pin_project! {
    #[project = SecondProj]
    enum Second<S, Req, F> {
        NotSent,
        GettingReady { service: S, request: Option<Req> },
        Trying { #[pin] future: F },
        /// It has failed, or is not to be sent.
        Over,
    }
}

impl<S, Req, P, K> HedgeFuture<S, Req, P, K>
where
    S: CallExcluding<Req>,
{
    pub(super) fn first(
        future: S::Future,
        trace: S::Trace,
        copy: Option<Req>,
        shared: Arc<Shared<S, P, K>>,
    ) -> Self {
        Self::new(future, trace, None, copy, shared)
    }

    pub(super) fn excluding(
        future: S::Future,
        tried: Tried<S::Address>,
        copy: Option<Req>,
        shared: Arc<Shared<S, P, K>>,
    ) -> Self {
        Self::new(future, S::Trace::default(), Some(tried), copy, shared)
    }

    fn new(
        future: S::Future,
        trace: S::Trace,
        tried: Option<Tried<S::Address>>,
        copy: Option<Req>,
        shared: Arc<Shared<S, P, K>>,
    ) -> Self {
        Self {
            first: First::Trying { future },
            second: match copy {
                Some(_) => Second::NotSent,
                None => Second::Over,
            },
            copy,
            trace,
            tried,
            failed: None,
            began: shared.delay.begin(),
            timer: None,
            shared,
        }
    }

    /// Returns the endpoints that the request has been sent to.
    pub(super) fn tried(&self) -> Tried<S::Address> {
        match (&self.tried, &self.first) {
            (Some(tried), ..) => tried.clone(),
            (None, First::Trying { future }) => self.shared.service.tried(future, &self.trace),
            _ => Tried::new(),
        }
    }
}

impl<S, Req, P, K> Future for HedgeFuture<S, Req, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            // 1. The first try.
            let this = self.as_mut().project();
            let answer = match this.first.project() {
                FirstProj::Trying { future } => future.poll(cx),
                FirstProj::Failed => Poll::Pending,
            };
            if let Poll::Ready(answer) = answer {
                let answer = answer.map_err(Into::into);
                if let Some(answer) = self.as_mut().after_first(answer) {
                    return Poll::Ready(answer);
                }
            }
            // 2. The second one.
            let mut this = self.as_mut().project();
            match this.second.as_mut().project() {
                SecondProj::Trying { future } => {
                    if let Poll::Ready(answer) = future.poll(cx) {
                        let answer = answer.map_err(Into::into);
                        if let Some(answer) = self.as_mut().after_second(answer) {
                            return Poll::Ready(answer);
                        }
                    }
                    return Poll::Pending;
                }
                SecondProj::GettingReady { service, request } => match service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        let (Some(request), Some(tried)) = (request.take(), this.tried) else {
                            unreachable!("a second try has a request, and another before it");
                        };
                        let future = service.call_excluding(request, tried);
                        this.second.set(Second::Trying { future });
                    }
                    Poll::Ready(Err(error)) => {
                        match self.as_mut().after_second(Err(error.into())) {
                            Some(answer) => return Poll::Ready(answer),
                            None => return Poll::Pending,
                        }
                    }
                    Poll::Pending => return Poll::Pending,
                },
                SecondProj::NotSent => {
                    // 3. Or the wait for it.
                    if this.timer.is_none() {
                        let Some(delay) = this.shared.delay.get() else {
                            this.second.set(Second::Over);
                            return Poll::Pending;
                        };
                        *this.timer = Some(Box::pin(sleep(delay)));
                    }
                    let elapsed = this.timer.as_mut().map(|timer| timer.as_mut().poll(cx));
                    if elapsed == Some(Poll::Pending) {
                        return Poll::Pending;
                    }
                    if let Some(answer) = self.as_mut().send_second() {
                        return Poll::Ready(answer);
                    }
                }
                // The first try has registered the waker.
                SecondProj::Over => return Poll::Pending,
            }
        }
    }
}

impl<S, Req, P, K> HedgeFuture<S, Req, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    /// Returns the first answer if it is the caller's.
    fn after_first(
        mut self: Pin<&mut Self>,
        answer: Result<S::Response, BoxError>,
    ) -> Option<Result<S::Response, BoxError>> {
        self.shared.delay.end(self.began);
        let retry = self.retry(&answer);
        if retry == Retry::No {
            return Some(answer);
        }
        // While the future is there to ask.
        let tried = self.tried();
        let mut this = self.as_mut().project();
        *this.tried = Some(tried);
        this.first.set(First::Failed);
        *this.failed = Some(answer);
        match (this.second.as_mut().project(), retry) {
            (SecondProj::NotSent, Retry::After(pause)) => {
                *this.timer = Some(Box::pin(sleep(pause)));
                None
            }
            (SecondProj::NotSent, _) => self.send_second(),
            (SecondProj::Over, _) => self.both_failed(),
            _ => None,
        }
    }

    /// Returns the second answer if it is the caller's.
    fn after_second(
        mut self: Pin<&mut Self>,
        answer: Result<S::Response, BoxError>,
    ) -> Option<Result<S::Response, BoxError>> {
        let retry = self.retry(&answer);
        let mut this = self.as_mut().project();
        if retry == Retry::No && answer.is_ok() {
            this.shared.delay.end(*this.began);
            return Some(answer);
        }
        this.second.set(Second::Over);
        match this.first.project() {
            // The first try may still be answered, which no error of a second one is to hide.
            FirstProj::Trying { .. } => None,
            FirstProj::Failed if retry == Retry::No => Some(answer),
            FirstProj::Failed => {
                let failed = this.failed.replace(answer);
                Some(self.join(failed))
            }
        }
    }

    /// Starts the second try if it is paid for, or returns what there is if it is not.
    fn send_second(mut self: Pin<&mut Self>) -> Option<Result<S::Response, BoxError>> {
        let tried = self.tried();
        let mut this = self.as_mut().project();
        *this.timer = None;
        if tried.is_empty() && this.failed.is_none() {
            // The first one has not been sent, for nobody is ready: a second one would wait no less.
            return None;
        }
        *this.tried = Some(tried);
        let copy = this.copy.as_ref();
        let request = copy.and_then(|request| this.shared.copy.copy(request));
        if let Some(request) = request.filter(|_| this.shared.budget.withdraw()) {
            trace!("hedging");
            let (service, request) = (this.shared.service.clone(), Some(request));
            this.second.set(Second::GettingReady { service, request });
            return None;
        }
        this.second.set(Second::Over);
        self.both_failed()
    }

    /// Returns the failure that there is, if no try is under way any more.
    fn both_failed(self: Pin<&mut Self>) -> Option<Result<S::Response, BoxError>> {
        self.project().failed.take()
    }

    /// Returns the last answer, or an error that names both tries, of which `first` is the one before.
    fn join(
        self: Pin<&mut Self>,
        first: Option<Result<S::Response, BoxError>>,
    ) -> Result<S::Response, BoxError> {
        let this = self.project();
        let last = this.failed.take();
        let names = this.tried.as_ref().map(Tried::endpoints);
        let mut names = names.into_iter().flatten().map(|e| e.to_string());
        let (first, last) = match (first, last) {
            (Some(Err(first)), Some(Err(last))) => (first, last),
            (Some(answer @ Ok(_)), _) | (_, Some(answer)) => return answer,
            (Some(answer), None) => return answer,
            (None, None) => unreachable!("both tries have failed"),
        };
        let attempts = [first, last].map(|error| Attempt::new(names.next(), false, error));
        Err(AttemptsFailed::new(attempts.into(), Stopped::Attempts).into())
    }

    fn retry(&self, answer: &Result<S::Response, BoxError>) -> Retry {
        match &self.copy {
            Some(request) => self.shared.policy.retry(request, answer.as_ref()),
            None => Retry::No,
        }
    }
}

impl<S, Req, P, K> fmt::Debug for HedgeFuture<S, Req, P, K>
where
    S: CallExcluding<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = match &self.second {
            Second::NotSent => "not sent",
            Second::GettingReady { .. } => "getting ready",
            Second::Trying { .. } => "trying",
            Second::Over => "over",
        };
        f.debug_struct("HedgeFuture")
            .field("second", &second)
            .finish_non_exhaustive()
    }
}
