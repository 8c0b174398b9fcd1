use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::{
    Service,
    load::{CompleteOnResponse, TrackCompletion},
};

use super::{counters::CountersRef, endpoint_state::Admitted};
use crate::{
    endpoint::Address,
    metric::forward_metrics,
    outcome::{Classify, ErrorsAreFailures, Outcome, Settle},
    undecided::{complete_at_head, is_at_head},
};

/// A service that reports its outcomes to outlier detection, made by
/// [`OutlierLayer`](super::OutlierLayer).
///
/// It is not ready while its endpoint is ejected, or while the breaker is half-open and all probes
/// are taken: the balancer passes over it. In a panic the balancer may revive the endpoint; the
/// service then lets requests through.
pub struct Outlier<S, A: Address, C = CompleteOnResponse, K = ErrorsAreFailures> {
    service: S,
    counters: CountersRef,
    /// `Some` only while the breaker is not closed.
    admitted: Option<Box<Admitted<A>>>,
    classify: K,
    completion: C,
}

pin_project! {
    /// The response future of an [`Outlier`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it before it is done counts as a cancelled call. If the call was a probe, another
    /// one may be sent.
    pub struct OutlierFuture<F, A: Address, C, K> {
        #[pin]
        future: F,
        completion: C,
        classify: K,
        record: OutlierHandle<A>,
    }
}

/// Reports the outcome of one request, at the latest when it is dropped.
pub struct OutlierHandle<A: Address = std::net::SocketAddr> {
    /// `None` once the outcome is reported.
    counters: Option<CountersRef>,
    /// The round of the probe, if the request is one.
    probe: Option<u64>,
    /// In ns; 0: not needed, or needed no longer.
    started: u64,
    address: PhantomData<fn() -> A>,
}

impl<S, A: Address, C, K> Outlier<S, A, C, K> {
    pub(super) const fn new(service: S, counters: CountersRef, completion: C, classify: K) -> Self {
        Self {
            service,
            counters,
            admitted: None,
            classify,
            completion,
        }
    }

    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }

    /// Waits until a request may go through.
    #[cold]
    #[inline(never)]
    fn poll_admission(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.admitted.as_deref_mut() {
                Some(Admitted::Probe(_)) => return Poll::Ready(()),
                Some(Admitted::Wait(changed)) => ready!(changed.as_mut().poll(cx)),
                None => {}
            }
            let state = self.counters.state();
            self.admitted = state.and_then(|state| state.admit()).map(Box::new);
            if self.admitted.is_none() {
                return Poll::Ready(());
            }
        }
    }

    /// Marks a reserved probe as sent; returns its round, or `None` if there is none.
    #[cold]
    #[inline(never)]
    fn send_probe(&mut self) -> Option<u64> {
        match *self.admitted.take()? {
            Admitted::Probe(probe) => Some(probe.send()),
            Admitted::Wait(_) => None,
        }
    }

    /// Starts to watch the next request.
    #[inline]
    fn watch(&mut self) -> OutlierHandle<A> {
        OutlierHandle {
            started: self.counters.start(),
            counters: Some(self.counters),
            address: PhantomData,
            probe: match self.admitted {
                Some(_) => self.send_probe(),
                None => None,
            },
        }
    }
}

impl<S, A, C, K, Req> Service<Req> for Outlier<S, A, C, K>
where
    S: Service<Req>,
    A: Address,
    K: Classify<S::Response, S::Error> + Clone,
    C: TrackCompletion<OutlierHandle<A>, S::Response>,
{
    type Response = C::Output;
    type Error = S::Error;
    type Future = OutlierFuture<S::Future, A, C, K>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // 1. The breaker's permission. Pending: the waker is registered for the breaker's next
        // change.
        if self.admitted.is_some() || !self.counters.is_closed() {
            ready!(self.poll_admission(cx));
        }
        // 2. The service itself. Pending: it has registered the waker.
        let readiness = ready!(self.service.poll_ready(cx));
        if readiness.is_err() {
            self.watch().settle(Outcome::Failure);
        }
        Poll::Ready(readiness)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // Made before the call, so that a call that panics gives its probe back.
        let record = self.watch();
        OutlierFuture {
            future: self.service.call(request),
            classify: self.classify.clone(),
            completion: self.completion.clone(),
            record,
        }
    }
}

impl<F, A, C, K, T, E> Future for OutlierFuture<F, A, C, K>
where
    F: Future<Output = Result<T, E>>,
    A: Address,
    K: Classify<T, E>,
    C: TrackCompletion<OutlierHandle<A>, T>,
{
    type Output = Result<C::Output, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.future.poll(cx));
        let outcome = this.classify.classify(result.as_ref());
        this.record.settle(outcome);
        Poll::Ready(result.map(|response| {
            let handle = this.record.take();
            let complete = || this.completion.track_completion(handle, response);
            if outcome == Outcome::Undecided {
                complete_at_head(complete)
            } else {
                complete()
            }
        }))
    }
}

impl<A: Address> Settle for OutlierHandle<A> {
    #[inline]
    fn settle(&mut self, outcome: Outcome) {
        match (self.counters, outcome) {
            (Some(counters), Outcome::Success) if self.probe.is_none() => {
                self.counters = None;
                counters.succeed(self.started);
            }
            (Some(counters), outcome) => self.settle_otherwise(counters, outcome),
            (None, _) => {}
        }
    }

    /// Ends a probe as a success, and stops the clock. The end of the answer still counts like that
    /// of any other request.
    fn first_data(&mut self) {
        let Some(counters) = self.counters else {
            return;
        };
        // A caller that cancels from now on has not waited in vain, so the call is no failure.
        let started = std::mem::take(&mut self.started);
        if started != 0 {
            counters.time(started);
        }
        if self.probe.is_some() {
            self.report(counters, Some(true));
            self.counters = Some(counters);
        }
    }
}

impl<A: Address> OutlierHandle<A> {
    fn take(&mut self) -> Self {
        Self {
            counters: self.counters.take(),
            probe: self.probe.take(),
            started: self.started,
            address: PhantomData,
        }
    }

    /// Reports every outcome except the success of a request that is no probe.
    #[cold]
    #[inline(never)]
    fn settle_otherwise(&mut self, counters: CountersRef, outcome: Outcome) {
        if outcome != Outcome::Undecided {
            self.report(counters, outcome.is_success());
        } else if let Some(round) = self.probe {
            if let Some(state) = counters.state::<A>() {
                state.answer_probe(round);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn cancel(&mut self, counters: CountersRef) {
        if is_at_head() {
            if let Some(state) = counters.state::<A>() {
                state.warn_undecided();
            }
        }
        let is_failure = self.started != 0
            && counters
                .state::<A>()
                .is_some_and(|state| state.is_too_long(self.started));
        self.report(counters, is_failure.then_some(false));
    }

    /// Reports the outcome to the endpoint's state; `None`: it tells nothing about the endpoint.
    fn report(&mut self, counters: CountersRef, success: Option<bool>) {
        self.counters = None;
        let probe = self.probe.take();
        if probe.is_none() && success != Some(false) {
            return;
        }
        match (probe, counters.state::<A>()) {
            (_, None) => {}
            (Some(round), Some(state)) => state.end_sent_probe(round, success),
            (None, Some(state)) => state.fail(),
        }
    }
}

impl<A: Address> Drop for OutlierHandle<A> {
    #[inline]
    fn drop(&mut self) {
        if let Some(counters) = self.counters {
            self.cancel(counters);
        }
    }
}

/// The clone gets no probe: a probe belongs to one handle.
impl<S: Clone, A: Address, C: Clone, K: Clone> Clone for Outlier<S, A, C, K> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            counters: self.counters,
            admitted: None,
            classify: self.classify.clone(),
            completion: self.completion.clone(),
        }
    }
}

forward_metrics!([S, A: Address, C, K] Outlier<S, A, C, K>: Load, InFlight, TotalInFlight);

impl<S: fmt::Debug, A: Address, C, K> fmt::Debug for Outlier<S, A, C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlier")
            .field("service", &self.service)
            .field("state", &self.counters.state::<A>())
            .field("is_on_trial", &self.admitted.is_some())
            .finish_non_exhaustive()
    }
}

impl<F, A: Address, C, K> fmt::Debug for OutlierFuture<F, A, C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierFuture").finish_non_exhaustive()
    }
}

impl<A: Address> fmt::Debug for OutlierHandle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierHandle")
            .field("is_settled", &self.counters.is_none())
            .finish_non_exhaustive()
    }
}
