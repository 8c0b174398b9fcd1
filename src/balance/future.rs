use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::{reserved::Selected, selection::Selection, shared::Shared};
use crate::{endpoint::Address, error::NotChosen, policy::Policy, random::Rng, split_arc::Part};

pin_project! {
    /// The response future of a [`Balance`](crate::Balance).
    ///
    /// It does not carry the endpoint that it was sent to: every request would pay for that. Ask
    /// [`CallExcluding::called`](crate::CallExcluding::called) for the endpoint.
    ///
    /// # Cancel safety
    ///
    /// Dropped at any time, it gives back everything that was reserved and counted for its request.
    pub struct ResponseFuture<P, S, Req, A = std::net::SocketAddr>
    where
        P: Policy<A, S, Req>,
        S: Service<Req>,
    {
        #[pin]
        state: State<P, S, Req, A>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<P, S, Req, A>
    where
        P: Policy<A, S, Req>,
        S: Service<Req>,
    {
        /// Waits for a member that is ready, or has an error.
        // Boxed: usually a member is ready at once, and the request need not travel in the future.
        Unsent {
            unsent: Box<Unsent<P, S, Req, A>>,
        },
        /// Waits for the answer of the member with this id.
        Called {
            #[pin]
            future: S::Future,
            member: u64,
        },
    }
}

/// A request that no member has taken.
enum Unsent<P, S, Req, A>
where
    P: Policy<A, S, Req>,
{
    Selecting {
        request: Option<Req>,
        selection: Selection<S, Req, A>,
        shared: Part<Shared<A, S, P, P::Table>>,
        rng: Rng,
    },
    Failed {
        error: Option<BoxError>,
    },
}

impl<P, S, Req, A> ResponseFuture<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req>,
{
    #[inline]
    pub(super) const fn called(future: S::Future, member: u64) -> Self {
        Self {
            state: State::Called { future, member },
        }
    }

    #[cold]
    pub(super) fn selecting(
        shared: Part<Shared<A, S, P, P::Table>>,
        rng: Rng,
        request: Req,
        selection: Selection<S, Req, A>,
    ) -> Self {
        let unsent = Unsent::Selecting {
            request: Some(request),
            selection,
            shared,
            rng,
        };
        Self::unsent(unsent)
    }

    fn unsent(unsent: Unsent<P, S, Req, A>) -> Self {
        let unsent = Box::new(unsent);
        Self {
            state: State::Unsent { unsent },
        }
    }

    /// Returns the id of the called member.
    pub(super) const fn member(&self) -> Option<u64> {
        match self.state {
            State::Called { member, .. } => Some(member),
            State::Unsent { .. } => None,
        }
    }

    #[cold]
    pub(super) fn failed(error: BoxError) -> Self {
        let error = Some(error);
        Self::unsent(Unsent::Failed { error })
    }
}

impl<P, S, Req, A> Future for ResponseFuture<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req, Error: Into<BoxError>> + Clone,
    A: Address,
{
    type Output = Result<S::Response, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        match state.as_mut().project() {
            StateProj::Called { future, .. } => future.poll(cx).map_err(Into::into),
            StateProj::Unsent { .. } => state.poll_unsent(cx),
        }
    }
}

impl<P, S, Req, A> State<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req, Error: Into<BoxError>> + Clone,
    A: Address,
{
    /// Chooses a member, drives it to ready and calls it.
    #[cold]
    #[inline(never)]
    fn poll_unsent(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Response, BoxError>> {
        let chosen = ready!(self.as_mut().poll_select(cx))?;
        self.set(chosen);
        match self.project() {
            StateProj::Called { future, .. } => future.poll(cx).map_err(Into::into),
            StateProj::Unsent { .. } => Poll::Pending,
        }
    }

    /// Returns the state of a request that a member has taken.
    fn poll_select(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self, BoxError>> {
        let StateProj::Unsent { unsent } = self.project() else {
            return Poll::Pending;
        };
        let error = match &mut **unsent {
            Unsent::Failed { error } => error.take(),
            Unsent::Selecting {
                request,
                selection,
                shared,
                rng,
            } => {
                let selected = selection.poll(shared, rng, request.as_ref(), cx);
                match (ready!(selected), request.take()) {
                    (Selected::Reserved(mut reserved), Some(request)) => {
                        let future = reserved.service.call(request);
                        let member = reserved.wish.id();
                        return Poll::Ready(Ok(Self::Called { future, member }));
                    }
                    (Selected::Failed { error, .. }, _) => Some(error),
                    _ => Some(NotChosen.into()),
                }
            }
        };
        **unsent = Unsent::Failed { error: None };
        Poll::Ready(Err(error.expect("`ResponseFuture` polled after completion")))
    }
}

impl<P, S, Req, A> fmt::Debug for ResponseFuture<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req>,
    A: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Unsent { unsent } => match **unsent {
                Unsent::Selecting { .. } => "selecting",
                Unsent::Failed { .. } => "failed",
            },
            State::Called { .. } => "called",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish()
    }
}
