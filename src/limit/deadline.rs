use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{BoxError, Layer, Service};

use crate::{
    endpoint::Endpoint,
    error::{DeadlineExceeded, WaitedFor},
    timer,
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// Limits the time of a request, with the wait for an endpoint that is ready.
///
/// tower's `TimeoutLayer` starts in `call`. The wait for an endpoint is in `poll_ready`, before
/// that: while all endpoints are full, or the set is not known yet, a request under that layer
/// waits for ever. This layer counts the time in which `poll_ready` is pending, and the time from
/// `call` to the answer. It does not count the time in which a handle is kept that is ready.
///
/// # Errors
///
/// The call fails with [`DeadlineExceeded`], which tells what was waited for. `poll_ready` does not
/// fail: when the time is over it answers that it is ready, and the call then fails at once.
///
/// Place it at the top of the stack, for all tries together. A try's own limit is
/// [`FailoverLayer::try_timeout`](crate::FailoverLayer::try_timeout). Where tokio has no timers
/// nothing is limited.
///
/// Outlier detection does not hear of a request that is given up here, unless
/// [`cancelled_after`](crate::OutlierLayer::cancelled_after) is set: the caller's impatience need
/// not be a server's fault.
///
/// Cost: one reading of the clock; a timer and an allocation for a request that is not answered at
/// once, and for one that waits for an endpoint.
///
/// ```
/// # use std::time::Duration;
/// # use tokio::sync::watch;
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::*;
/// use tower_lb::error::{DeadlineExceeded, WaitedFor};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// # let connect = |_: &Endpoint<&'static str>| service_fn(|()| async { Ok::<_, std::io::Error>(()) });
/// let (_addresses, rx) = watch::channel(Vec::<&'static str>::new());
/// let client = ServiceBuilder::new()
///     .layer(DeadlineLayer::new(Duration::from_secs(1)))
///     .layer(BalanceLayer::new(P2c::default()).wait_for_endpoints())
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(WatchLayer::new(rx))
///     .service(connect);
/// let error = client.oneshot(()).await.unwrap_err();
/// let exceeded = error.downcast_ref::<DeadlineExceeded>().expect("nobody is there");
/// assert_eq!(exceeded.waited_for(), WaitedFor::Readiness);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    after: Duration,
}

/// A service whose requests have a deadline; see [`DeadlineLayer`].
pub struct Deadline<S> {
    service: S,
    after: Duration,
    state: State,
}

/// How far the next request is.
#[derive(Debug)]
enum State {
    Idle,
    Waiting {
        since: Instant,
        timer: Option<Pin<Box<Sleep>>>,
    },
    /// `spent` is the time that it has waited.
    Ready {
        spent: Duration,
    },
    Expired,
}

pin_project! {
    /// The response future of a [`Deadline`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the request.
    pub struct DeadlineFuture<F> {
        // `None` if the time was over before the call.
        #[pin]
        future: Option<F>,
        until: Instant,
        after: Duration,
        // Set once the answer is waited for.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl DeadlineLayer {
    /// Limits requests to this time each.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub const fn new(after: Duration) -> Self {
        assert!(!after.is_zero(), "the deadline must not be zero");
        Self { after }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, service: S) -> Deadline<S> {
        Deadline {
            service,
            after: self.after,
            state: State::Idle,
        }
    }
}

impl<S> Deadline<S> {
    /// Ready once the time is over. Pending: the timer has registered the waker.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let spent = match self.state {
            // Nobody has polled for another whole deadline: that caller has given up.
            State::Waiting { since, .. } if now.duration_since(since) / 2 > self.after => {
                Some(Duration::ZERO)
            }
            State::Waiting { .. } => None,
            State::Ready { spent } => Some(spent),
            State::Idle | State::Expired => Some(Duration::ZERO),
        };
        // Begins to wait, if it does not wait already.
        if let Some(spent) = spent {
            self.state = State::Waiting {
                since: now.checked_sub(spent).unwrap_or(now),
                timer: timer::start(self.after.saturating_sub(spent)),
            };
        }
        match &mut self.state {
            State::Waiting {
                timer: Some(timer), ..
            } => timer.as_mut().poll(cx),
            _ => Poll::Pending,
        }
    }

    /// Returns the state of a request whose service has become ready.
    fn ready(&self) -> State {
        let spent = match self.state {
            State::Waiting { since, .. } => since.elapsed(),
            State::Ready { spent } => spent,
            State::Idle | State::Expired => Duration::ZERO,
        };
        match spent {
            // Nobody has polled for another whole deadline: that caller has given up.
            _ if spent / 2 > self.after => State::Ready {
                spent: Duration::ZERO,
            },
            // Timers are late by up to a millisecond.
            _ if spent > self.after => State::Expired,
            _ => State::Ready { spent },
        }
    }

    fn send<F>(&mut self, call: impl FnOnce(&mut S) -> F) -> DeadlineFuture<F> {
        let state = std::mem::replace(&mut self.state, State::Idle);
        let (is_expired, spent) = match state {
            State::Expired => (true, self.after),
            State::Ready { spent } => (false, spent),
            State::Idle | State::Waiting { .. } => (false, Duration::ZERO),
        };
        let now = Instant::now();
        let left = self.after.saturating_sub(spent);
        DeadlineFuture {
            future: (!is_expired).then(|| call(&mut self.service)),
            until: now.checked_add(left).unwrap_or(now + FAR),
            after: self.after,
            timer: None,
        }
    }
}

impl<S, Req> Service<Req> for Deadline<S>
where
    S: Service<Req, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // 1. The service. Pending: it has registered the waker.
        if let Poll::Ready(readiness) = self.service.poll_ready(cx) {
            self.state = match readiness {
                Ok(()) => self.ready(),
                Err(_) => State::Idle,
            };
            return Poll::Ready(readiness.map_err(Into::into));
        }
        // 2. The time. Pending: the timer has registered the waker. A handle that has expired stays
        // ready until it is called.
        if !matches!(self.state, State::Expired) {
            ready!(self.poll_expired(cx));
            self.state = State::Expired;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.send(|service| service.call(request))
    }
}

impl<F, T, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // 1. The answer. Pending: the service has registered the waker.
        let Some(future) = this.future.as_pin_mut() else {
            let error = DeadlineExceeded::new(*this.after, WaitedFor::Readiness);
            return Poll::Ready(Err(error.into()));
        };
        if let Poll::Ready(answer) = future.poll(cx) {
            return Poll::Ready(answer.map_err(Into::into));
        }
        // 2. The time. Pending: the timer has registered the waker.
        if this.timer.is_none() {
            let left = this.until.saturating_duration_since(Instant::now());
            *this.timer = timer::start(left);
        }
        let Some(timer) = this.timer else {
            return Poll::Pending;
        };
        ready!(timer.as_mut().poll(cx));
        let error = DeadlineExceeded::new(*this.after, WaitedFor::Answer);
        Poll::Ready(Err(error.into()))
    }
}

impl<S: SendsElsewhere> SendsElsewhere for Deadline<S> {}

impl<S, Req> CallExcluding<Req> for Deadline<S>
where
    S: CallExcluding<Req, Error: Into<BoxError>>,
{
    type Address = S::Address;

    fn called(&self, future: &Self::Future) -> Vec<Endpoint<S::Address>> {
        let sent = future.future.as_ref();
        sent.map_or_else(Vec::new, |future| self.service.called(future))
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<S::Address>) -> Self::Future {
        self.send(|service| service.call_excluding(request, tried))
    }

    fn has_other(&self, tried: &Tried<S::Address>) -> bool {
        self.service.has_other(tried)
    }
}

/// The clone is not ready, and has not waited: each handle becomes ready by itself.
impl<S: Clone> Clone for Deadline<S> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            after: self.after,
            state: State::Idle,
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Deadline<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline")
            .field("service", &self.service)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for DeadlineFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineFuture")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// Some thirty years, for a deadline that the clock cannot represent.
const FAR: Duration = Duration::from_secs(1_000_000_000);
