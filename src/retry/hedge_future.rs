use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower::BoxError;
use tracing::trace;

use super::{
    CopyRequest, Retry, RetryPolicy,
    allowance::Allowance,
    delay::Began,
    error::{Attempt, AttemptsFailed, Stopped},
    hedge::Shared,
    policy::is_nobody,
};
use crate::{
    balance::{CallExcluding, Tried},
    endpoint::Endpoint,
};

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
        second: Second<S, Req, S::Future, S::Address>,
        // What the policy judges by, and the second request is made from; `None` if it is not to be sent twice.
        copy: Option<Req>,
        tried: Tried<S::Address>,
        // How many endpoints were tried before: by whom is above, and by the first try.
        known: [usize; 2],
        // The tries that have failed, in the order in which they did.
        failed: Vec<Failed<S::Response>>,
        began: Began,
        timer: Option<Pin<Box<Sleep>>>,
        shared: Arc<Shared<S, P, K>>,
    }
}

pin_project! {
    #[project = FirstProj]
    enum First<F> {
        Trying { #[pin] future: F },
        Over,
    }
}

pin_project! {
    #[project = SecondProj]
    enum Second<S, Req, F, A> {
        NotSent,
        GettingReady { service: S, request: Option<Req> },
        Trying { #[pin] future: F, payment: Payment<A> },
        /// It has failed, or is not to be sent.
        Over,
    }
}

/// What was paid for a hedge; given back if it was never sent.
struct Payment<A> {
    allowance: Allowance,
    tried: Tried<A>,
    known: usize,
}

/// A try that has failed.
struct Failed<T> {
    endpoint: Option<String>,
    answer: Result<T, BoxError>,
}

/// Which try.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First = 0,
    Second = 1,
}

impl<S, Req, P, K> HedgeFuture<S, Req, P, K>
where
    S: CallExcluding<Req>,
{
    pub(super) fn new(
        future: S::Future,
        tried: Tried<S::Address>,
        known: usize,
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
            tried,
            known: [known; 2],
            failed: Vec::new(),
            began: shared.delay.begin(),
            timer: None,
            shared,
        }
    }

    /// Returns the endpoints that the request has been sent to.
    pub(super) fn called(&self) -> Vec<Endpoint<S::Address>> {
        let tried = self.tried.list();
        tried.get(self.known[0]..).unwrap_or_default().to_vec()
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
                FirstProj::Over => Poll::Pending,
            };
            if let Poll::Ready(answer) = answer {
                if let Some(answer) = self
                    .as_mut()
                    .after(Which::First, answer.map_err(Into::into))
                {
                    return self.finish(answer);
                }
            }
            // 2. The second one.
            let mut this = self.as_mut().project();
            let answer = match this.second.as_mut().project() {
                SecondProj::Trying { future, .. } => match future.poll(cx) {
                    Poll::Ready(answer) => answer.map_err(Into::into),
                    Poll::Pending => return Poll::Pending,
                },
                SecondProj::GettingReady { service, request } => match service.poll_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => Err(error.into()),
                    Poll::Ready(Ok(())) => {
                        // Paid for when it goes out, and not before.
                        if let Some(request) =
                            request.take().filter(|_| this.shared.allowance.hedge())
                        {
                            trace!("hedging");
                            this.known[1] = this.tried.len();
                            let payment = Payment {
                                allowance: this.shared.allowance.clone(),
                                tried: this.tried.clone(),
                                known: this.known[1],
                            };
                            let future = service.call_excluding(request, &this.tried.strict());
                            this.second.set(Second::Trying { future, payment });
                        } else {
                            this.second.set(Second::Over);
                        }
                        continue;
                    }
                },
                SecondProj::NotSent => {
                    // 3. Or the wait for it.
                    if !self.as_mut().poll_delay(cx) {
                        return Poll::Pending;
                    }
                    self.as_mut().prepare_second();
                    continue;
                }
                SecondProj::Over => {
                    // Pending: the first try has registered the waker.
                    return match self.as_mut().last_failure() {
                        Some(answer) => self.finish(answer),
                        None => Poll::Pending,
                    };
                }
            };
            if let Some(answer) = self.as_mut().after(Which::Second, answer) {
                return self.finish(answer);
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
    /// Lets go of both tries, with what they count.
    fn finish(
        self: Pin<&mut Self>,
        answer: Result<S::Response, BoxError>,
    ) -> Poll<Result<S::Response, BoxError>> {
        let mut this = self.project();
        this.first.set(First::Over);
        this.second.set(Second::Over);
        Poll::Ready(answer)
    }

    /// Takes in the answer of a try; returns it if it is the caller's.
    fn after(
        self: Pin<&mut Self>,
        which: Which,
        answer: Result<S::Response, BoxError>,
    ) -> Option<Result<S::Response, BoxError>> {
        let mut this = self.project();
        let shared = &**this.shared;
        let retry = match this.copy {
            Some(request) => shared.policy.retry(request, answer.as_ref()),
            None => Retry::No,
        };
        // A second try that was not sent says nothing.
        let was_not_sent = which == Which::Second && answer.as_ref().err().is_some_and(is_nobody);
        if was_not_sent {
            this.second.set(Second::Over);
            return None;
        }
        match retry {
            Retry::No if answer.is_ok() => {
                shared.delay.end(*this.began);
                shared.allowance.succeeded();
                return Some(answer);
            }
            Retry::No => return Some(answer),
            Retry::Never => {
                shared.allowance.failed();
                return Some(answer);
            }
            Retry::Yes | Retry::After(_) => shared.allowance.failed(),
        }
        let endpoint = this
            .tried
            .list()
            .get(this.known[which as usize])
            .map(ToString::to_string);
        this.failed.push(Failed { endpoint, answer });
        if which == Which::Second {
            this.second.set(Second::Over);
            return None;
        }
        this.first.set(First::Over);
        if matches!(*this.second, Second::NotSent) {
            // At once, or when the server says.
            match retry {
                Retry::After(pause) if pause > shared.longest_pushback => {
                    this.second.set(Second::Over);
                }
                Retry::After(pause) => *this.timer = Some(Box::pin(sleep(pause))),
                _ => *this.timer = Some(Box::pin(sleep(Duration::ZERO))),
            }
        }
        None
    }

    /// Returns whether the second request is due. If not, a timer or the first try has registered the waker.
    fn poll_delay(self: Pin<&mut Self>, cx: &mut Context<'_>) -> bool {
        let this = self.project();
        if this.timer.is_none() {
            let Some(delay) = this.shared.delay.get() else {
                return false;
            };
            *this.timer = Some(Box::pin(sleep(delay)));
        }
        while let Some(timer) = this.timer {
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if this.tried.len() > this.known[0] || !this.failed.is_empty() {
                break;
            }
            // The first one has not been sent, for nobody is ready: a second one would wait no less.
            let delay = this.shared.delay.get().unwrap_or_default();
            *this.timer = Some(Box::pin(sleep(delay.max(SHORTEST_WAIT))));
        }
        true
    }

    fn prepare_second(self: Pin<&mut Self>) {
        let mut this = self.project();
        *this.timer = None;
        this.known[1] = this.tried.len();
        let copy = this.copy.as_ref();
        let request = copy.and_then(|request| this.shared.copy.copy(request));
        this.second.set(match request {
            Some(_) => Second::GettingReady {
                service: this.shared.service.clone(),
                request,
            },
            None => Second::Over,
        });
    }

    /// Returns what the caller gets if no try is under way any more.
    fn last_failure(self: Pin<&mut Self>) -> Option<Result<S::Response, BoxError>> {
        let this = self.project();
        if matches!(*this.first, First::Trying { .. }) {
            return None;
        }
        let last = this.failed.pop()?;
        let Some(before) = this.failed.pop() else {
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
        if self.tried.len() == self.known {
            self.allowance.give_back();
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

/// Between two looks at whether a first try was sent.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
