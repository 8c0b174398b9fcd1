use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::{
    select::{Reserved, Selected, Selection},
    shared::Shared,
};
use crate::{
    endpoint::{Address, Endpoint},
    error::NotChosen,
    policy::{Policy, Rng},
};

pin_project! {
    /// The response future of a [`Balance`](crate::Balance).
    ///
    /// # Cancel safety
    ///
    /// Dropped at any time, it gives back what was reserved and counted for its request.
    pub struct ResponseFuture<P, S, Req, A>
    where
        P: Policy<A, S, Req>,
        S: Service<Req>,
    {
        #[pin]
        state: State<P, S, Req, A>,
        endpoint: Option<Endpoint<A>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<P, S, Req, A>
    where
        P: Policy<A, S, Req>,
        S: Service<Req>,
    {
        /// A member is chosen now that the request is known, and driven to ready.
        Selecting {
            request: Option<Req>,
            selection: Selection<S, Req>,
            shared: Arc<Shared<A, S, P, P::Table>>,
            rng: Rng,
        },
        Called {
            #[pin]
            future: S::Future,
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
    /// Returns the endpoint that the request went to; `None` while none is chosen.
    pub const fn endpoint(&self) -> Option<&Endpoint<A>> {
        self.endpoint.as_ref()
    }

    pub(super) fn called(mut reserved: Reserved<A, S>, request: Req) -> Self {
        Self {
            state: State::Called {
                future: reserved.service.call(request),
            },
            endpoint: Some(reserved.endpoint),
        }
    }

    pub(super) const fn selecting(
        shared: Arc<Shared<A, S, P, P::Table>>,
        rng: Rng,
        request: Req,
    ) -> Self {
        Self {
            state: State::Selecting {
                request: Some(request),
                selection: Selection::new(),
                shared,
                rng,
            },
            endpoint: None,
        }
    }

    pub(super) const fn failed(error: BoxError) -> Self {
        Self {
            state: State::Failed { error: Some(error) },
            endpoint: None,
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Called { future } => return future.poll(cx).map_err(Into::into),
                StateProj::Failed { error } => {
                    let error = error.take();
                    return Poll::Ready(Err(error.expect("polled after completion")));
                }
                StateProj::Selecting {
                    request,
                    selection,
                    shared,
                    rng,
                } => {
                    let selected = ready!(selection.poll(shared, rng, request.as_ref(), cx));
                    match (selected, request.take()) {
                        (Selected::Reserved(mut reserved), Some(request)) => {
                            *this.endpoint = Some(reserved.endpoint);
                            let future = reserved.service.call(request);
                            State::Called { future }
                        }
                        (Selected::Failed { error, .. }, _) => State::Failed { error: Some(error) },
                        _ => State::Failed {
                            error: Some(NotChosen.into()),
                        },
                    }
                }
            };
            this.state.set(next);
        }
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
            State::Called { .. } => "called",
            State::Failed { .. } => "failed",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("endpoint", &self.endpoint)
            .finish()
    }
}
