use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::{Service, load::Load};

use super::host::{Ticket, Trial};
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
    ticket: Arc<Ticket<A>>,
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
    ticket: Option<Arc<Ticket<A>>>,
    /// In ns; 0: not to be known, or no longer.
    started: u64,
}

impl<S, A: Address, K, C> Outlier<S, A, K, C> {
    pub(super) const fn new(
        service: S,
        ticket: Arc<Ticket<A>>,
        classify: K,
        completion: C,
    ) -> Self {
        Self {
            service,
            ticket,
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
            if let Some(Ticket::OnTrial { trial, .. }) = Arc::get_mut(&mut self.ticket) {
                match trial {
                    Trial::Probe(_) => return Poll::Ready(()),
                    Trial::Wait(changed) => ready!(changed.as_mut().poll(cx)),
                }
            }
            let free = Ticket::free(&self.ticket);
            let Some(trial) = Ticket::admit(&free) else {
                self.ticket = free;
                return Poll::Ready(());
            };
            self.ticket = Arc::new(Ticket::OnTrial { free, trial });
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
        if !self.ticket.is_closed() {
            ready!(self.poll_admission(cx));
        }
        // 2. The service itself. Pending: it has registered the waker.
        let readiness = ready!(self.service.poll_ready(cx));
        if readiness.is_err() {
            Ticket::end(Ticket::take(&mut self.ticket), Some(false));
        }
        Poll::Ready(readiness)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // Before the call, so that a call that panics gives a probe back.
        let record = OutlierHandle {
            started: self.ticket.start(),
            ticket: Some(Ticket::take(&mut self.ticket)),
        };
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
        if outcome == Outcome::Undecided {
            match self.ticket.as_deref() {
                None | Some(Ticket::Free(_)) => {}
                Some(trial) => trial.answer(),
            }
            return;
        }
        if let Some(ticket) = self.ticket.take() {
            match &*ticket {
                Ticket::Free(host) if outcome == Outcome::Success => host.succeed(self.started),
                _ => Ticket::end(ticket, outcome.is_success()),
            }
        }
    }

    /// Ends a probe, which has succeeded, and the waiting; the end of the answer still counts, as that of any other request.
    fn first_data(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        // What a caller leaves from now on was not waited for in vain.
        let started = std::mem::take(&mut self.started);
        if started != 0 {
            ticket.host().time(started);
        }
        self.ticket = Some(Ticket::free(&ticket));
        if let Ticket::OnTrial { .. } = *ticket {
            Ticket::end(ticket, Some(true));
        }
    }
}

impl<A: Address> OutlierHandle<A> {
    fn take(&mut self) -> Self {
        Self {
            ticket: self.ticket.take(),
            started: self.started,
        }
    }

    #[cold]
    #[inline(never)]
    fn cancel(&self, ticket: Arc<Ticket<A>>) {
        let is_failure = ticket.host().is_too_long(self.started);
        Ticket::end(ticket, is_failure.then_some(false));
    }
}

impl<A: Address> Drop for OutlierHandle<A> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.cancel(ticket);
        }
    }
}

/// The clone has no probe: that is one handle's.
impl<S: Clone, A: Address, K: Clone, C: Clone> Clone for Outlier<S, A, K, C> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            ticket: Ticket::free(&self.ticket),
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
            .field("host", self.ticket.host())
            .field(
                "is_on_trial",
                &matches!(*self.ticket, Ticket::OnTrial { .. }),
            )
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
