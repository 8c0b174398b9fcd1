use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::{reserved::Selected, selection::Selection, shared::Shared, split_arc::Part};
use crate::{endpoint::Address, error::NotChosen, policy::Policy, random::Rng};

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
        /// Chooses a member, now that the request is known, and drives it to ready.
        Selecting {
            request: Option<Req>,
            selection: Selection<S, Req, A>,
            shared: Part<Shared<A, S, P, P::Table>>,
            seed: u64,
        },
        /// Waits for the member that `poll_ready` reserved.
        Called {
            #[pin]
            future: S::Future,
        },
        /// Waits for the member that `Selecting` chose.
        // One variant for both would make every request carry the id: 5 instructions more.
        Chosen {
            #[pin]
            future: S::Future,
            member: u64,
        },
        Failed {
            error: Option<BoxError>,
        },
    }
}

impl<P, S, Req, A> ResponseFuture<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req>,
{
    pub(super) const fn called(future: S::Future) -> Self {
        Self {
            state: State::Called { future },
        }
    }

    pub(super) const fn selecting(
        shared: Part<Shared<A, S, P, P::Table>>,
        seed: u64,
        request: Req,
        selection: Selection<S, Req, A>,
    ) -> Self {
        Self {
            state: State::Selecting {
                request: Some(request),
                selection,
                shared,
                seed,
            },
        }
    }

    /// Returns the id of the called member, which is `reserved` if the reserved one was called.
    pub(super) const fn member(&self, reserved: Option<u64>) -> Option<u64> {
        match self.state {
            State::Called { .. } => reserved,
            State::Chosen { member, .. } => Some(member),
            State::Selecting { .. } | State::Failed { .. } => None,
        }
    }

    pub(super) const fn failed(error: BoxError) -> Self {
        Self {
            state: State::Failed { error: Some(error) },
        }
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
        loop {
            if let StateProj::Called { future } | StateProj::Chosen { future, .. } =
                state.as_mut().project()
            {
                return future.poll(cx).map_err(Into::into);
            }
            match ready!(state.as_mut().poll_select(cx)) {
                Ok(called) => state.set(called),
                Err(error) => {
                    state.set(State::Failed { error: None });
                    return Poll::Ready(Err(error));
                }
            }
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
    // Not inlined: a request whose member was reserved in `poll_ready` does not come here.
    #[inline(never)]
    fn poll_select(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self, BoxError>> {
        let error = match self.project() {
            StateProj::Failed { error } => error.take(),
            StateProj::Called { .. } | StateProj::Chosen { .. } => None,
            StateProj::Selecting {
                request,
                selection,
                shared,
                seed,
            } => {
                let mut rng = Rng::new(*seed, 0);
                let selected = selection.poll(shared, &mut rng, request.as_ref(), cx);
                *seed = rng.next();
                match (ready!(selected), request.take()) {
                    (Selected::Reserved(mut reserved), Some(request)) => {
                        let future = reserved.service.call(request);
                        let member = reserved.wish.id();
                        return Poll::Ready(Ok(Self::Chosen { future, member }));
                    }
                    (Selected::Failed { error, .. }, _) => Some(error),
                    _ => Some(NotChosen.into()),
                }
            }
        };
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
            State::Selecting { .. } => "selecting",
            State::Called { .. } | State::Chosen { .. } => "called",
            State::Failed { .. } => "failed",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish()
    }
}
