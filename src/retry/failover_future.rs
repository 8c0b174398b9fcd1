use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::BoxError;
use tracing::trace;

use super::{
    CopyRequest, Retry, RetryPolicy,
    error::{Attempt, AttemptsFailed, Stopped, TryTimedOut, UnwantedAnswer},
    failover::Shared,
};
use crate::{
    balance::{CallExcluding, Tried},
    endpoint::{Address, Endpoint},
};

pin_project! {
    /// The response future of a [`Failover`](super::Failover).
    ///
    /// # Cancel safety
    ///
    /// Dropped at any time, it drops the try that is under way; a retry that was paid for and not sent is lost
    /// to the budget.
    pub struct FailoverFuture<S, Req, P, K>
    where
        S: CallExcluding<Req>,
    {
        #[pin]
        state: State<S, Req, S::Future>,
        // The copy that further ones are made from; `None` if the request cannot be sent again.
        copy: Option<Req>,
        trace: S::Trace,
        // Set once a try has failed, where a try is timed, and where endpoints are left out from the start.
        progress: Option<Box<Progress<S::Address>>>,
        shared: Arc<Shared<S, P, K>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, F> {
        Trying { #[pin] future: F },
        Pausing { request: Option<Req> },
        GettingReady { service: S, request: Option<Req> },
        Done,
    }
}

/// What is known of the tries so far.
struct Progress<A> {
    /// Whom further tries leave out: `None` until the first has failed, unless the caller has named some.
    tried: Option<Tried<A>>,
    /// Where the tries before this one went.
    called: Vec<Endpoint<A>>,
    failed: Vec<Attempt>,
    /// Ends the try, or the pause.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S, Req, P, K> FailoverFuture<S, Req, P, K>
where
    S: CallExcluding<Req>,
{
    #[inline(always)]
    pub(super) fn first(
        future: S::Future,
        trace: S::Trace,
        copy: Option<Req>,
        shared: Arc<Shared<S, P, K>>,
    ) -> Self {
        // First of all: if it were made between the state and the whole, the state would be copied once more.
        let progress = shared.settings.try_timeout.map(Progress::timed);
        Self {
            state: State::Trying { future },
            copy,
            trace,
            progress,
            shared,
        }
    }

    pub(super) fn excluding(
        future: S::Future,
        trace: S::Trace,
        tried: Tried<S::Address>,
        copy: Option<Req>,
        shared: Arc<Shared<S, P, K>>,
    ) -> Self {
        let mut this = Self::first(future, trace, copy, shared);
        this.progress.get_or_insert_with(Progress::new).tried = Some(tried);
        this
    }

    /// Returns the endpoints that the request has been sent to.
    pub(super) fn called(&self) -> Vec<Endpoint<S::Address>> {
        let mut called = self
            .progress
            .as_ref()
            .map_or_else(Vec::new, |p| p.called.clone());
        if let State::Trying { future } = &self.state {
            called.extend(self.shared.service.called(future, &self.trace));
        }
        called
    }
}

impl<S, P, K> Shared<S, P, K> {
    fn timed_out(&self) -> BoxError {
        TryTimedOut::new(self.settings.try_timeout.unwrap_or_default()).into()
    }
}

impl<S, Req, P, K> Future for FailoverFuture<S, Req, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    type Output = Result<S::Response, BoxError>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            let StateProj::Trying { future } = this.state.project() else {
                ready!(self.as_mut().poll_between(cx))?;
                continue;
            };
            // 1. The answer, or the end of the wait for it.
            let answer = match future.poll(cx) {
                Poll::Ready(answer) => answer.map_err(Into::into),
                Poll::Pending => {
                    ready!(poll_timer(this.progress, cx));
                    let answer = Err(this.shared.timed_out());
                    let retry = self.retry(&answer);
                    match self.as_mut().after_failure(answer, retry) {
                        Some(answer) => return Poll::Ready(answer),
                        None => continue,
                    }
                }
            };
            // 2. As a rule that is it.
            let retry = match this.copy {
                Some(request) => this.shared.policy.retry(request, answer.as_ref()),
                None => Retry::No,
            };
            if retry == Retry::No && this.progress.as_ref().is_none_or(|p| p.failed.is_empty()) {
                if answer.is_ok() {
                    this.shared.allowance.succeeded();
                }
                return Poll::Ready(answer);
            }
            // 3. Or there is another try.
            if let Some(answer) = self.as_mut().after_failure(answer, retry) {
                return Poll::Ready(answer);
            }
        }
    }
}

impl<S, Req, P, K> FailoverFuture<S, Req, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    /// Waits out the pause and for the service to be ready, and starts the next try.
    ///
    /// Pending: the timer or the service has registered the waker.
    #[cold]
    #[inline(never)]
    fn poll_between(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut this = self.as_mut().project();
        let (progress, shared) = (this.progress, this.shared);
        match this.state.as_mut().project() {
            StateProj::Pausing { request } => {
                let is_timed = progress.as_ref().is_some_and(|p| p.timer.is_some());
                if is_timed {
                    ready!(poll_timer(progress, cx));
                }
                if let Some(progress) = progress {
                    let timeout = shared.settings.try_timeout;
                    progress.timer = timeout.map(|timeout| Box::pin(sleep(timeout)));
                }
                let (service, request) = (shared.service.clone(), request.take());
                this.state.set(State::GettingReady { service, request });
                Poll::Ready(Ok(()))
            }
            StateProj::GettingReady { service, request } => {
                let error = match service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        let tried = progress.as_ref().and_then(|p| p.tried.as_ref());
                        let (Some(request), Some(tried)) = (request.take(), tried) else {
                            unreachable!("a further try has a request, and another before it");
                        };
                        *this.trace = service.trace();
                        let future = service.call_excluding(request, tried);
                        this.state.set(State::Trying { future });
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Err(error)) => error.into(),
                    Poll::Pending => {
                        ready!(poll_timer(progress, cx));
                        shared.timed_out()
                    }
                };
                let answer = Err(error);
                let retry = self.retry(&answer);
                let answer = self.after_failure(answer, retry);
                Poll::Ready(answer.map_or(Ok(()), |answer| answer.map(drop)))
            }
            StateProj::Trying { .. } => Poll::Ready(Ok(())),
            StateProj::Done => panic!("`FailoverFuture` polled after completion"),
        }
    }

    fn retry(&self, answer: &Result<S::Response, BoxError>) -> Retry {
        match &self.copy {
            Some(request) => self.shared.policy.retry(request, answer.as_ref()),
            None => Retry::No,
        }
    }

    /// Prepares another try, or returns what the caller gets.
    #[cold]
    #[inline(never)]
    fn after_failure(
        self: Pin<&mut Self>,
        answer: Result<S::Response, BoxError>,
        retry: Retry,
    ) -> Option<Result<S::Response, BoxError>> {
        let mut this = self.project();
        let shared = &**this.shared;
        // 1. Who it was.
        let progress = this.progress.get_or_insert_with(Progress::new);
        let called = match this.state.as_mut().project() {
            StateProj::Trying { future } => shared.service.called(&future, this.trace),
            _ => Vec::new(),
        };
        let (endpoint, repeated) = progress.take_in(called);
        // 2. Whether there is another try.
        let made = progress.failed.len() as u32 + 1;
        let next = match retry {
            Retry::No | Retry::Never => Err(Stopped::Policy),
            _ if made >= shared.settings.attempts => Err(Stopped::Attempts),
            Retry::After(pause) if pause > shared.settings.longest_pushback => {
                Err(Stopped::Pushback)
            }
            _ => match this.copy.as_ref().and_then(|copy| shared.copy.copy(copy)) {
                None => Err(Stopped::Policy),
                Some(request) if shared.allowance.withdraw() => Ok(request),
                Some(_) => Err(Stopped::Budget),
            },
        };
        match next {
            Ok(request) => {
                let error: Result<_, BoxError> =
                    answer.map(|response| shared.policy.reason(&response));
                let error = error.map_or_else(|error| error, |why| UnwantedAnswer::new(why).into());
                trace!(endpoint, %error, retry = made, "trying again");
                progress
                    .failed
                    .push(Attempt::new(endpoint, repeated, error));
                let pause = match retry {
                    Retry::After(pause) => pause,
                    _ => shared.pause(made),
                };
                progress.timer = (!pause.is_zero()).then(|| Box::pin(sleep(pause)));
                let request = Some(request);
                this.state.set(State::Pausing { request });
                None
            }
            Err(stopped) => {
                match (stopped, retry) {
                    // The withdrawal has counted it.
                    (Stopped::Budget, _) => {}
                    (_, Retry::No) if answer.is_ok() => shared.allowance.succeeded(),
                    (_, Retry::No) => {}
                    _ => shared.allowance.failed(),
                }
                this.state.set(State::Done);
                let mut failed = std::mem::take(&mut progress.failed);
                Some(answer.map_err(|error| {
                    // One that could not be tried again anyway is the caller's as it is.
                    if failed.is_empty() && stopped == Stopped::Policy {
                        return error;
                    }
                    failed.push(Attempt::new(endpoint, repeated, error));
                    AttemptsFailed::new(failed, stopped).into()
                }))
            }
        }
    }
}

impl<A> Progress<A> {
    fn new() -> Box<Self> {
        Box::new(Self {
            tried: None,
            called: Vec::new(),
            failed: Vec::new(),
            timer: None,
        })
    }

    #[cold]
    fn timed(timeout: Duration) -> Box<Self> {
        let mut progress = Self::new();
        progress.timer = Some(Box::pin(sleep(timeout)));
        progress
    }

    /// Takes in where a try went; returns its name, and whether it had been tried before.
    fn take_in(&mut self, called: Vec<Endpoint<A>>) -> (Option<String>, bool)
    where
        A: Address,
    {
        let tried = self.tried.get_or_insert_with(Tried::new);
        let name = called.last().map(ToString::to_string);
        let repeated = called.iter().any(|endpoint| self.called.contains(endpoint));
        for endpoint in called {
            // What was sent by an excluding call is in the list.
            if !tried.list().contains(&endpoint) {
                tried.insert(endpoint.clone());
            }
            self.called.push(endpoint);
        }
        (name, repeated)
    }
}

/// Ready when the timer has run out; without one, never.
fn poll_timer<A>(progress: &mut Option<Box<Progress<A>>>, cx: &mut Context<'_>) -> Poll<()> {
    match progress.as_mut().and_then(|p| p.timer.as_mut()) {
        Some(timer) => timer.as_mut().poll(cx),
        None => Poll::Pending,
    }
}

impl<S, Req, P, K> fmt::Debug for FailoverFuture<S, Req, P, K>
where
    S: CallExcluding<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Trying { .. } => "trying",
            State::Pausing { .. } => "pausing",
            State::GettingReady { .. } => "getting ready",
            State::Done => "done",
        };
        let failed = self.progress.as_ref().map_or(0, |p| p.failed.len());
        f.debug_struct("FailoverFuture")
            .field("state", &state)
            .field("failed", &failed)
            .finish_non_exhaustive()
    }
}
