use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::{Service, load::Load};

use super::{host::Trial, seat::Ticket};
use crate::{
    endpoint::Address,
    load::{Classify, CompleteOnResponse, ErrorsAreFailures, Outcome, Settle, TrackCompletion},
    metric::{InFlight, TotalInFlight},
};

/// A service whose outcomes are watched, made by [`OutlierLayer`](super::OutlierLayer).
///
/// Not ready while its endpoint is ejected, or on trial with all probes under way: the balancer passes over it. One
/// that has revived it, in a panic, sends it requests all the same.
pub struct Outlier<S, A: Address, K = ErrorsAreFailures, C = CompleteOnResponse> {
    service: S,
    ticket: Ticket,
    /// While its endpoint is or was ejected.
    trial: Option<Box<Trial<A>>>,
    classify: K,
    completion: C,
}

pin_project! {
    /// The response future of an [`Outlier`].
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is done, it counts as a cancelled call, and gives a probe back.
    pub struct OutlierFuture<F, A: Address, K, C> {
        #[pin]
        future: F,
        classify: K,
        completion: C,
        record: OutlierHandle<A>,
    }
}

/// Reports one request's outcome, at the latest when it is dropped.
pub struct OutlierHandle<A: Address> {
    /// `None` once it has reported.
    ticket: Option<Ticket>,
    /// The round of probes that it belongs to.
    probe: Option<u64>,
    /// In ns; 0: not to be known, or no longer.
    started: u64,
    address: PhantomData<fn() -> A>,
}

impl<S, A: Address, K, C> Outlier<S, A, K, C> {
    pub(super) const fn new(service: S, ticket: Ticket, classify: K, completion: C) -> Self {
        Self {
            service,
            ticket,
            trial: None,
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
            match self.trial.as_deref_mut() {
                Some(Trial::Probe(_)) => return Poll::Ready(()),
                Some(Trial::Wait(changed)) => ready!(changed.as_mut().poll(cx)),
                None => {}
            }
            let host = self.ticket.host();
            self.trial = host.and_then(|host| host.admit()).map(Box::new);
            if self.trial.is_none() {
                return Poll::Ready(());
            }
        }
    }

    /// Sends the probe that the next request is, if it is one.
    #[cold]
    #[inline(never)]
    fn send_probe(&mut self) -> Option<u64> {
        match *self.trial.take()? {
            Trial::Probe(probe) => Some(probe.send()),
            Trial::Wait(_) => None,
        }
    }

    /// Begins to watch the next request.
    #[inline]
    fn watch(&mut self) -> OutlierHandle<A> {
        OutlierHandle {
            started: self.ticket.start(),
            ticket: Some(self.ticket),
            address: PhantomData,
            probe: match self.trial {
                Some(_) => self.send_probe(),
                None => None,
            },
        }
    }
}

impl<S, A, K, C, Req> Service<Req> for Outlier<S, A, K, C>
where
    S: Service<Req>,
    A: Address,
    K: Classify<S::Response, S::Error> + Clone,
    C: TrackCompletion<OutlierHandle<A>, S::Response>,
{
    type Response = C::Output;
    type Error = S::Error;
    type Future = OutlierFuture<S::Future, A, K, C>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // 1. Permission. Pending: the waker is registered with the end of a probe.
        if self.trial.is_some() || !self.ticket.is_closed() {
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
        // Before the call, so that a call that panics gives a probe back.
        let record = self.watch();
        OutlierFuture {
            future: self.service.call(request),
            classify: self.classify.clone(),
            completion: self.completion.clone(),
            record,
        }
    }
}

impl<F, A, K, C, T, E> Future for OutlierFuture<F, A, K, C>
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
            this.completion.track_completion(handle, response)
        }))
    }
}

impl<A: Address> Settle for OutlierHandle<A> {
    #[inline]
    fn settle(&mut self, outcome: Outcome) {
        match (self.ticket, outcome) {
            (Some(ticket), Outcome::Success) if self.probe.is_none() => {
                self.ticket = None;
                ticket.succeed(self.started);
            }
            (Some(ticket), outcome) => self.settle_otherwise(ticket, outcome),
            (None, _) => {}
        }
    }

    /// Ends a probe, which has succeeded, and the waiting; the end of the answer still counts, as that of any other request.
    fn first_data(&mut self) {
        let Some(ticket) = self.ticket else {
            return;
        };
        // What a caller leaves from now on was not waited for in vain.
        let started = std::mem::take(&mut self.started);
        if started != 0 {
            ticket.time(started);
        }
        if self.probe.is_some() {
            self.report(ticket, Some(true));
            self.ticket = Some(ticket);
        }
    }
}

impl<A: Address> OutlierHandle<A> {
    fn take(&mut self) -> Self {
        Self {
            ticket: self.ticket.take(),
            probe: self.probe.take(),
            started: self.started,
            address: PhantomData,
        }
    }

    /// Takes every outcome but an ordinary request's success.
    #[cold]
    #[inline(never)]
    fn settle_otherwise(&mut self, ticket: Ticket, outcome: Outcome) {
        if outcome != Outcome::Undecided {
            self.report(ticket, outcome.is_success());
        } else if let Some(round) = self.probe {
            if let Some(host) = ticket.host::<A>() {
                host.answer_probe(round);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn cancel(&mut self, ticket: Ticket) {
        let is_failure = self.started != 0
            && ticket
                .host::<A>()
                .is_some_and(|host| host.is_too_long(self.started));
        self.report(ticket, is_failure.then_some(false));
    }

    /// Tells the host what has become of the request; `None`: nothing that says anything of the endpoint.
    fn report(&mut self, ticket: Ticket, success: Option<bool>) {
        self.ticket = None;
        let probe = self.probe.take();
        if probe.is_none() && success != Some(false) {
            return;
        }
        match (probe, ticket.host::<A>()) {
            (_, None) => {}
            (Some(round), Some(host)) => host.end_sent_probe(round, success),
            (None, Some(host)) => host.fail(),
        }
    }
}

impl<A: Address> Drop for OutlierHandle<A> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.cancel(ticket);
        }
    }
}

/// The clone has no probe: that is one handle's.
impl<S: Clone, A: Address, K: Clone, C: Clone> Clone for Outlier<S, A, K, C> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            ticket: self.ticket,
            trial: None,
            classify: self.classify.clone(),
            completion: self.completion.clone(),
        }
    }
}

impl<S: Load, A: Address, K, C> Load for Outlier<S, A, K, C> {
    type Metric = S::Metric;

    #[inline]
    fn load(&self) -> S::Metric {
        self.service.load()
    }
}

impl<S: InFlight, A: Address, K, C> InFlight for Outlier<S, A, K, C> {
    #[inline]
    fn in_flight(&self) -> usize {
        self.service.in_flight()
    }
}

impl<S: TotalInFlight, A: Address, K, C> TotalInFlight for Outlier<S, A, K, C> {
    #[inline]
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

impl<S: fmt::Debug, A: Address, K, C> fmt::Debug for Outlier<S, A, K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlier")
            .field("service", &self.service)
            .field("host", &self.ticket.host::<A>())
            .field("is_on_trial", &self.trial.is_some())
            .finish_non_exhaustive()
    }
}

impl<F, A: Address, K, C> fmt::Debug for OutlierFuture<F, A, K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierFuture").finish_non_exhaustive()
    }
}

impl<A: Address> fmt::Debug for OutlierHandle<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierHandle")
            .field("is_settled", &self.ticket.is_none())
            .finish_non_exhaustive()
    }
}
