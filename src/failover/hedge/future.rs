use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::{BoxError, Service};
use tracing::trace;

use super::{delay::Began, state::HedgeState};
use crate::{
    budget::{Allowance, Budget},
    endpoint::Endpoint,
    failover::{
        CopyRequest, Retry, RetryPolicy,
        error::{Attempt, AttemptsFailed, Stopped},
        policy::is_turned_away,
        rest::rest,
    },
    random::{Rng, entropy},
    split_arc::Part,
    timer,
    tried::{CallExcluding, Tried},
};

pin_project! {
    /// The response future of a [`Hedge`](super::Hedge).
    ///
    /// # Cancel safety
    ///
    /// Dropping it at any time drops the tries in progress.
    pub struct HedgeFuture<S, Req, P, Copier>
    where
        S: CallExcluding<Req>,
    {
        #[pin]
        first: First<S::Future>,
        // Boxed, because futures are moved up the stack, and a copy of a request is large.
        tries: Box<Tries<S, Req>>,
        shared: Part<HedgeState<S, P, Copier>>,
    }
}

pin_project! {
    #[project = FirstProj]
    enum First<F> {
        Trying { #[pin] future: F },
        Over,
    }
}

/// What has become of a request, apart from its first try.
struct Tries<S, Req>
where
    S: CallExcluding<Req>,
{
    second: Second<S, Req, S::Future, S::Address>,
    /// The policy judges by this copy, and the second request is made from it. `None` if the
    /// request must not be sent twice.
    copy: Option<Req>,
    tried: Tried<S::Address>,
    /// How many endpoints are in `tried` before the first try (those of the layers above), and
    /// before the second one (the first try's, too).
    known: [usize; 2],
    /// The failed tries, in the order in which they failed.
    failed: Vec<Failed<S::Response>>,
    began: Began,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the first try has taken longer than the delay.
    is_late: bool,
    /// Whether there is no hedge because many others are as slow.
    is_slow_alike: bool,
}

enum Second<S, Req, F, A> {
    NotSent,
    GettingReady {
        service: S,
        request: Option<Req>,
    },
    Trying {
        future: Pin<Box<F>>,
        /// Held until the try is over.
        _payment: Payment<A>,
    },
    /// It has failed, or will not be sent.
    Over,
}

/// The payment for a second try. Dropping it returns the payment if the try was never sent.
struct Payment<A> {
    allowance: Allowance,
    /// The hedges' own share; `None` for a try after a failure, which is a retry.
    share: Option<Budget>,
    tried: Tried<A>,
    known: usize,
}

/// A try that has failed.
struct Failed<T> {
    endpoint: Option<String>,
    answer: Result<T, BoxError>,
}

/// What the caller gets.
type Answer<S, Req> = Result<<S as Service<Req>>::Response, BoxError>;

/// One of the two tries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First = 0,
    Second = 1,
}

impl<S, Req, P, Copier> HedgeFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req>,
{
    pub(super) fn new(
        future: S::Future,
        tried: Tried<S::Address>,
        known: usize,
        copy: Option<Req>,
        shared: Part<HedgeState<S, P, Copier>>,
    ) -> Self {
        let tries = Box::new(Tries {
            second: match copy {
                Some(_) => Second::NotSent,
                None => Second::Over,
            },
            copy,
            tried,
            known: [known; 2],
            failed: Vec::new(),
            began: shared.delay.begin(),
            timer: None,
            is_late: false,
            is_slow_alike: false,
        });
        Self {
            first: First::Trying { future },
            tries,
            shared,
        }
    }

    /// Returns the endpoints that the request has been sent to.
    pub(super) fn called(&self) -> Vec<Endpoint<S::Address>> {
        let tried = self.tries.tried.list();
        tried
            .get(self.tries.known[0]..)
            .unwrap_or_default()
            .to_vec()
    }
}

impl<S, Req, P, Copier> Future for HedgeFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(answer) = self.as_mut().poll_first(cx) {
                return self.finish(answer);
            }
            if let Some(answer) = ready!(self.as_mut().poll_second(cx)) {
                return self.finish(answer);
            }
        }
    }
}

impl<S, Req, P, Copier> HedgeFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    Copier: CopyRequest<Req>,
{
    /// Polls the first try. Returns its answer if the caller gets it.
    fn poll_first(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Option<Answer<S, Req>> {
        let this = self.as_mut().project();
        let FirstProj::Trying { future } = this.first.project() else {
            return None;
        };
        match future.poll(cx) {
            Poll::Ready(answer) => self.after(Which::First, answer.map_err(Into::into)),
            Poll::Pending => None,
        }
    }

    /// Advances the second try.
    ///
    /// Ready with the caller's answer, or with `None` if it is to be polled again. If it returns
    /// `Pending`, the waker is registered by the second try, by what it waits for, or by the first
    /// try alone.
    // All states of the second try are handled in one place, in the order in which they follow.
    fn poll_second(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer<S, Req>>> {
        let this = self.as_mut().project();
        match &mut this.tries.second {
            Second::NotSent => {
                if !self.as_mut().poll_delay(cx) {
                    return Poll::Pending;
                }
                self.prepare_second();
                Poll::Ready(None)
            }
            Second::GettingReady { service, request } => {
                let answer = match ready!(service.poll_ready(cx)) {
                    Ok(()) => None,
                    Err(error) => Some(Err(error.into())),
                };
                if let Some(answer) = answer {
                    return Poll::Ready(self.after(Which::Second, answer));
                }
                // Paid for only now, because it goes out now.
                let is_hedge = this.tries.failed.is_empty();
                let is_paid = match is_hedge {
                    true => this.shared.pay_for_hedge(),
                    false => this.shared.allowance.second_try(),
                };
                let Some(request) = request.take().filter(|_| is_paid) else {
                    this.tries.second = Second::Over;
                    return Poll::Ready(None);
                };
                trace!("hedging");
                this.tries.known[1] = this.tries.tried.len();
                let payment = Payment {
                    allowance: this.shared.allowance.clone(),
                    share: is_hedge.then(|| this.shared.share.clone()),
                    tried: this.tries.tried.clone(),
                    known: this.tries.known[1],
                };
                let future = service.call_excluding(request, &this.tries.tried.strict());
                this.tries.second = Second::Trying {
                    future: Box::pin(future),
                    _payment: payment,
                };
                Poll::Ready(None)
            }
            Second::Trying { future, .. } => {
                let answer = ready!(future.as_mut().poll(cx)).map_err(Into::into);
                Poll::Ready(self.after(Which::Second, answer))
            }
            Second::Over => match self.last_failure() {
                Some(answer) => Poll::Ready(Some(answer)),
                None => Poll::Pending,
            },
        }
    }

    /// Counts the answer, and drops both tries, so that they no longer count as in flight.
    fn finish(self: Pin<&mut Self>, answer: Answer<S, Req>) -> Poll<Answer<S, Req>> {
        let mut this = self.project();
        this.first.set(First::Over);
        this.tries.second = Second::Over;
        // Only the requests that may be hedged have waited for the delay.
        if this.tries.copy.is_some() {
            this.shared.slow.note(this.tries.is_late);
        }
        Poll::Ready(answer)
    }

    /// Records the answer of a try. Returns it if the caller gets it.
    fn after(self: Pin<&mut Self>, which: Which, answer: Answer<S, Req>) -> Option<Answer<S, Req>> {
        let mut this = self.project();
        // A second try that was not sent has no answer to judge.
        if which == Which::Second && answer.as_ref().err().is_some_and(is_turned_away) {
            this.tries.second = Second::Over;
            return None;
        }
        let retry = match &this.tries.copy {
            Some(request) => this.shared.policy.retry(request, answer.as_ref()),
            None => Retry::No,
        };
        this.shared.count(retry, answer.is_ok(), this.tries.began);
        let endpoint = || {
            this.tries
                .tried
                .list()
                .get(this.tries.known[which as usize])
                .cloned()
        };
        let asked = answer
            .as_ref()
            .ok()
            .and_then(|r| this.shared.policy.rest(r));
        if let Some((time, endpoint)) = asked.and_then(|time| Some((time, endpoint()?))) {
            let random = Rng::new(entropy(), 0).unit();
            rest(&this.shared.service, &endpoint, time, random);
        }
        if matches!(retry, Retry::No | Retry::Forbidden) {
            return Some(answer);
        }
        let endpoint = endpoint().as_ref().map(ToString::to_string);
        this.tries.failed.push(Failed { endpoint, answer });
        if which == Which::Second {
            this.tries.second = Second::Over;
            return None;
        }
        this.first.set(First::Over);
        if matches!(this.tries.second, Second::NotSent) {
            // At once, or after the pause that the server asked for.
            match retry {
                Retry::After(pause) if pause > this.shared.longest_pushback => {
                    this.tries.second = Second::Over;
                }
                Retry::After(pause) => this.tries.timer = timer::start(pause),
                _ => this.tries.timer = None,
            }
        }
        None
    }

    /// Returns whether the second request is due.
    ///
    /// If not, a timer or the first try has registered the waker.
    fn poll_delay(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.project();
        if this.tries.is_slow_alike && this.tries.failed.is_empty() {
            return false;
        }
        if this.tries.timer.is_none() {
            if !this.tries.failed.is_empty() {
                return true;
            }
            // Where no timer is, there is no hedging. The first try wakes the task.
            let delay = this.shared.delay.get();
            this.tries.timer = delay.and_then(timer::start);
            if this.tries.timer.is_none() {
                return false;
            }
        }
        while let Some(timer) = &mut this.tries.timer {
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if this.tries.tried.len() > this.tries.known[0] || !this.tries.failed.is_empty() {
                break;
            }
            // The first try has not been sent, because no endpoint is ready. A second one would
            // wait just as long.
            let delay = this.shared.delay.get().unwrap_or_default();
            this.tries.timer = timer::start(delay.max(SHORTEST_WAIT));
        }
        if this.tries.failed.is_empty() {
            this.tries.is_late = true;
            // Then only a failure sends the second request. The first try wakes the task.
            this.tries.is_slow_alike = this.shared.slow.are_many(this.shared.wanted);
            return !this.tries.is_slow_alike;
        }
        true
    }

    fn prepare_second(self: Pin<&mut Self>) {
        let this = self.project();
        this.tries.timer = None;
        this.tries.known[1] = this.tries.tried.len();
        let copy = this.tries.copy.as_ref();
        let request = copy.and_then(|request| this.shared.copy.copy(request));
        this.tries.second = match request {
            Some(_) => Second::GettingReady {
                service: this.shared.service.clone(),
                request,
            },
            None => Second::Over,
        };
    }

    /// Returns what the caller gets once no try is in progress.
    fn last_failure(self: Pin<&mut Self>) -> Option<Answer<S, Req>> {
        let this = self.project();
        if matches!(*this.first, First::Trying { .. }) {
            return None;
        }
        let last = this.tries.failed.pop()?;
        let Some(before) = this.tries.failed.pop() else {
            return Some(last.answer);
        };
        let attempts = match (before.answer, last.answer) {
            (Err(a), Err(b)) => [(before.endpoint, a), (last.endpoint, b)],
            (answer @ Ok(_), _) | (_, answer) => return Some(answer),
        };
        let attempts = attempts.map(|(endpoint, error)| Attempt::new(endpoint, false, error));
        Some(Err(
            AttemptsFailed::new(attempts.into(), Stopped::Attempts).into()
        ))
    }
}

impl<A> Drop for Payment<A> {
    fn drop(&mut self) {
        if self.tried.len() != self.known {
            return;
        }
        match &self.share {
            Some(share) => {
                share.give_back();
                self.allowance.give_hedge_back();
            }
            None => self.allowance.give_back(),
        }
    }
}

impl<S, Req, P, Copier> fmt::Debug for HedgeFuture<S, Req, P, Copier>
where
    S: CallExcluding<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = match &self.tries.second {
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

/// The shortest pause between two checks of whether the first try was sent.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
