use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::BoxError;
use tracing::trace;

use super::{
    CopyRequest, Reach, Retry, RetryPolicy,
    error::{Attempt, AttemptsFailed, Stopped, UnwantedAnswer},
    rest::{rest, spread},
    state::FailoverState,
};
use crate::{
    endpoint::{Address, Endpoint},
    split_arc::Part,
    timer,
    tried::{CallExcluding, Tried},
};

pin_project! {
    /// The response future of a [`Failover`](super::Failover).
    ///
    /// # Cancel safety
    ///
    /// Dropping it at any time drops the try in progress. A retry that was paid for but not sent is
    /// not returned to the budget.
    pub struct FailoverFuture<S, Req, P, Copier>
    where
        S: CallExcluding<Req>,
    {
        #[pin]
        state: State<S, Req, S::Future>,
        // Further copies are made from this one. `None` if the request cannot be sent again.
        copy: Option<Req>,
        // Set only where needed: after a failed try, for a timed try, and if endpoints are left out
        // from the start.
        progress: Option<Box<Progress<S::Address>>>,
        shared: Part<FailoverState<S, P, Copier>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, F> {
        Trying { #[pin] future: F },
        // Boxed: services and requests are larger than futures, and few requests are sent again.
        Pausing { request: Option<Box<Req>> },
        GettingReady { service: Box<S>, request: Option<Box<Req>> },
        Done,
    }
}

/// The state of the tries so far.
struct Progress<A> {
    /// The endpoints that further tries leave out. `None` until the first try has failed, unless
    /// the caller has named some.
    tried: Option<Tried<A>>,
    /// The endpoints that the tries before this one went to.
    called: Vec<Endpoint<A>>,
    failed: Vec<Attempt>,
    /// Whether a try has been repeated for free, which happens once at most.
    had_free_retry: bool,
    /// Ends the try, or the pause.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S, Req, P, Copier> FailoverFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req>,
{
    #[inline(always)]
    pub(super) fn first(
        future: S::Future,
        copy: Option<Req>,
        shared: Part<FailoverState<S, P, Copier>>,
    ) -> Self {
        // Must come first: made between the state and the whole, it would cost one more copy of the
        // state.
        let progress = shared.settings.try_timeout.map(Progress::timed);
        Self {
            state: State::Trying { future },
            copy,
            progress,
            shared,
        }
    }

    pub(super) fn excluding(
        future: S::Future,
        tried: Tried<S::Address>,
        copy: Option<Req>,
        shared: Part<FailoverState<S, P, Copier>>,
    ) -> Self {
        let mut this = Self::first(future, copy, shared);
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
            called.extend(self.shared.service.called(future));
        }
        called
    }
}

impl<S, Req, P, Copier> Future for FailoverFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    type Output = Result<S::Response, BoxError>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            let StateProj::Trying { mut future } = this.state.project() else {
                ready!(self.as_mut().poll_between(cx))?;
                continue;
            };
            // 1. Get the answer, or the timeout of the try.
            let answer = match future.as_mut().poll(cx) {
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
            let asked = answer
                .as_ref()
                .ok()
                .and_then(|r| this.shared.policy.rest(r));
            if let Some(time) = asked {
                let called = this.shared.service.called(&future);
                if let Some(endpoint) = called.last() {
                    rest(
                        &this.shared.service,
                        endpoint,
                        time,
                        this.shared.draw().unit(),
                    );
                }
            }
            // 2. Usually the answer goes to the caller.
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
            // 3. Otherwise there may be another try.
            if let Some(answer) = self.as_mut().after_failure(answer, retry) {
                return Poll::Ready(answer);
            }
        }
    }
}

impl<S, Req, P, Copier> FailoverFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    /// Waits for the pause and for the service, then starts the next try.
    ///
    /// If it returns `Pending`, the timer or the service has registered the waker.
    // Both states between two tries are handled in one place, because one leads to the other.
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
                    progress.timer = timeout.and_then(timer::start);
                }
                let (service, request) = (Box::new(shared.service.clone()), request.take());
                this.state.set(State::GettingReady { service, request });
                Poll::Ready(Ok(()))
            }
            StateProj::GettingReady { service, request } => {
                let ready = match service.poll_ready(cx) {
                    Poll::Ready(ready) => ready.map_err(Into::into),
                    Poll::Pending => {
                        ready!(poll_timer(progress, cx));
                        Err(shared.timed_out())
                    }
                };
                let Err(error) = ready else {
                    let tried = progress.as_ref().and_then(|p| p.tried.as_ref());
                    let (Some(request), Some(tried)) = (request.take(), tried) else {
                        unreachable!("a further try has a request, and another before it");
                    };
                    let future = service.call_excluding(*request, tried);
                    this.state.set(State::Trying { future });
                    return Poll::Ready(Ok(()));
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

    /// Prepares another try, or returns the answer that the caller gets.
    #[cold]
    #[inline(never)]
    fn after_failure(
        self: Pin<&mut Self>,
        answer: Result<S::Response, BoxError>,
        retry: Retry,
    ) -> Option<Result<S::Response, BoxError>> {
        let mut this = self.project();
        let shared = &**this.shared;
        // 1. Find out where the try went.
        let progress = this.progress.get_or_insert_with(Progress::new);
        let called = match this.state.as_mut().project() {
            StateProj::Trying { future } => shared.service.called(&future),
            _ => Vec::new(),
        };
        let (endpoint, repeated) = progress.take_in(called);
        // 2. Decide whether there is another try.
        let made = progress.failed.len() as u32 + 1;
        let next = Next {
            retry,
            reach: match &answer {
                Err(error) if retry != Retry::No => shared.policy.reach(error),
                _ => Reach::Server,
            },
            had_free_retry: progress.had_free_retry,
            // If it went nowhere, nobody is ready.
            has_other: endpoint.is_some()
                && retry != Retry::No
                && progress
                    .tried
                    .as_ref()
                    .is_none_or(|tried| shared.service.has_other(tried)),
            made,
        };
        match shared.next_try(&next, this.copy.as_ref()) {
            Ok(request) => {
                progress.had_free_retry |= next.is_free();
                let error: Result<_, BoxError> =
                    answer.map(|response| shared.policy.reason(&response));
                let error = error.map_or_else(|error| error, |why| UnwantedAnswer::new(why).into());
                trace!(endpoint, %error, retry = made, "trying again");
                let attempt = Attempt::new(endpoint, repeated, error);
                progress.failed.push(attempt);
                let pause = shared.pause_before(&next);
                // Where no timer is, there is no pause.
                progress.timer = (!pause.is_zero()).then(|| timer::start(pause)).flatten();
                let request = Some(Box::new(request));
                this.state.set(State::Pausing { request });
                None
            }
            Err(stopped) => {
                shared.count_last(stopped, retry, answer.is_ok());
                this.state.set(State::Done);
                let failed = std::mem::take(&mut progress.failed);
                Some(answer.map_err(|error| {
                    let last = Attempt::new(endpoint, repeated, error);
                    last_error(failed, last, stopped)
                }))
            }
        }
    }
}

/// What decides on a further try.
struct Next {
    retry: Retry,
    reach: Reach,
    had_free_retry: bool,
    /// Whether an endpoint is available that the request has not been sent to.
    has_other: bool,
    /// How many tries have been made.
    made: u32,
}

impl Next {
    /// Returns whether the try takes neither an attempt nor budget.
    fn is_free(&self) -> bool {
        self.reach == Reach::Unprocessed && !self.had_free_retry
    }

    /// Returns how many tries count.
    fn counted(&self) -> u32 {
        self.made - u32::from(self.had_free_retry)
    }
}

impl<S, P, Copier> FailoverState<S, P, Copier> {
    /// Returns the pause before the next try.
    fn pause_before(&self, next: &Next) -> Duration {
        match next.retry {
            Retry::After(pause) => pause,
            Retry::Elsewhere(pause) if !next.has_other => spread(pause, self.draw().unit()),
            _ if next.reach != Reach::Server && next.has_other => Duration::ZERO,
            _ => self.pause(next.made),
        }
    }

    /// Returns the request for another try, already paid for, or why there is none.
    fn next_try<Req>(&self, next: &Next, copy: Option<&Req>) -> Result<Req, Stopped>
    where
        Copier: CopyRequest<Req>,
    {
        let copied = || copy.and_then(|copy| self.copy.copy(copy));
        let is_too_long = |pause| pause > self.settings.longest_pushback;
        match next.retry {
            Retry::No | Retry::Forbidden => Err(Stopped::Policy),
            _ if next.is_free() => copied().ok_or(Stopped::Policy),
            _ if next.counted() >= self.settings.attempts => Err(Stopped::Attempts),
            Retry::After(pause) if is_too_long(pause) => Err(Stopped::Pushback),
            Retry::Elsewhere(pause) if !next.has_other && is_too_long(pause) => {
                Err(Stopped::Pushback)
            }
            _ => match copied() {
                None => Err(Stopped::Policy),
                Some(request) if self.allowance.withdraw() => Ok(request),
                Some(_) => Err(Stopped::Budget),
            },
        }
    }

    /// Counts an answer that goes to the caller.
    fn count_last(&self, stopped: Stopped, retry: Retry, is_answer: bool) {
        match (stopped, retry) {
            // `withdraw` has counted it already.
            (Stopped::Budget, _) => {}
            (_, Retry::No) if is_answer => self.allowance.succeeded(),
            (_, Retry::No) => {}
            _ => self.allowance.failed(),
        }
    }
}

/// Returns the error that the caller gets.
///
/// It lists all tries. If the policy wanted no second try after the first, it is that try's own
/// error.
fn last_error(mut failed: Vec<Attempt>, last: Attempt, stopped: Stopped) -> BoxError {
    if failed.is_empty() && stopped == Stopped::Policy {
        return last.into_error();
    }
    failed.push(last);
    AttemptsFailed::new(failed, stopped).into()
}

impl<A> Progress<A> {
    fn new() -> Box<Self> {
        Box::new(Self {
            tried: None,
            called: Vec::new(),
            failed: Vec::new(),
            had_free_retry: false,
            timer: None,
        })
    }

    #[cold]
    fn timed(timeout: Duration) -> Box<Self> {
        let mut progress = Self::new();
        progress.timer = timer::start(timeout);
        progress
    }

    /// Records where a try went.
    ///
    /// Returns the endpoint's name, and whether it had been tried before.
    fn take_in(&mut self, called: Vec<Endpoint<A>>) -> (Option<String>, bool)
    where
        A: Address,
    {
        let tried = self.tried.get_or_insert_with(Tried::new);
        let name = called.last().map(ToString::to_string);
        let repeated = called.iter().any(|endpoint| self.called.contains(endpoint));
        for endpoint in called {
            // An excluding call has put its endpoint into the list already.
            if !tried.list().contains(&endpoint) {
                tried.insert(endpoint.clone());
            }
            self.called.push(endpoint);
        }
        (name, repeated)
    }
}

/// Becomes ready when the timer has run out. Without a timer it never does.
fn poll_timer<A>(progress: &mut Option<Box<Progress<A>>>, cx: &mut Context<'_>) -> Poll<()> {
    match progress.as_mut().and_then(|p| p.timer.as_mut()) {
        Some(timer) => timer.as_mut().poll(cx),
        None => Poll::Pending,
    }
}

impl<S, Req, P, Copier> fmt::Debug for FailoverFuture<S, Req, P, Copier>
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
