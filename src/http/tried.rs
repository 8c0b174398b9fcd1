use std::{
    fmt,
    marker::PhantomData,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use http::Request;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    endpoint::{Address, Endpoint},
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// Puts the endpoints that a request was sent to into its extensions.
///
/// This lets other layers sit between retries and the balancer: a timeout for each try, say, or a
/// layer that signs each try. Put this layer right below a [`FailoverLayer`](crate::FailoverLayer)
/// or [`HedgeLayer`](crate::HedgeLayer), an [`ExcludeTriedLayer`] right above the balancer, and the
/// other layers between the two.
///
/// ```
/// # use std::{convert::Infallible, time::Duration};
/// # use ::http::{Request, Response};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::{*, http::{ExcludeTriedLayer, TagTriedLayer}, failover::ConnectErrors};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// # let [a, b] = [1, 2].map(|i| std::net::SocketAddr::from(([10, 0, 0, i], 80)));
/// # let connect = |_: &Endpoint| {
/// #     service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::new(String::new())) })
/// # };
/// let client = ServiceBuilder::new()
///     .layer(FailoverLayer::new(ConnectErrors::default()))
///     .layer(TagTriedLayer::new())
///     .timeout(Duration::from_millis(500))
///     .layer(ExcludeTriedLayer)
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(fixed([a, b]))
///     .service(connect);
/// # client.oneshot(Request::new(String::new())).await?;
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// Cost of a request: two allocations, one for the list, and one for the extensions if they were
/// empty.
pub struct TagTriedLayer<A = SocketAddr>(PhantomData<fn() -> A>);

/// Makes the balancer below leave out the endpoints that a request's extensions list.
///
/// The other half of [`TagTriedLayer`]. Requests without such an extension pass unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExcludeTriedLayer;

/// A service that puts the tried endpoints into each request; see [`TagTriedLayer`].
pub struct TagTried<S, A = SocketAddr> {
    service: S,
    _address: PhantomData<fn() -> A>,
}

/// A balancer that reads the tried endpoints from each request; see [`ExcludeTriedLayer`].
#[derive(Clone, Debug)]
pub struct ExcludeTried<S>(S);

pin_project! {
    /// The response future of a [`TagTried`].
    pub struct TagFuture<F, A = SocketAddr> {
        #[pin]
        future: F,
        tried: Tried<A>,
        known: usize,
    }
}

impl TagTriedLayer {
    /// Creates the layer for endpoints with socket addresses.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }

    /// Creates the layer for endpoints with addresses of type `A`.
    #[must_use]
    pub const fn addressed_by<A>() -> TagTriedLayer<A> {
        TagTriedLayer(PhantomData)
    }
}

impl<S, A> Layer<S> for TagTriedLayer<A> {
    type Service = TagTried<S, A>;

    fn layer(&self, service: S) -> Self::Service {
        TagTried {
            service,
            _address: PhantomData,
        }
    }
}

impl<S> Layer<S> for ExcludeTriedLayer {
    type Service = ExcludeTried<S>;

    fn layer(&self, service: S) -> Self::Service {
        ExcludeTried(service)
    }
}

impl<S, A, B> Service<Request<B>> for TagTried<S, A>
where
    S: Service<Request<B>>,
    A: Address,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TagFuture<S::Future, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.call_excluding(request, &Tried::new())
    }
}

impl<S, A> SendsElsewhere for TagTried<S, A> {}

impl<S, A, B> CallExcluding<Request<B>> for TagTried<S, A>
where
    S: Service<Request<B>>,
    A: Address,
{
    type Address = A;

    fn called(&self, future: &Self::Future) -> Vec<Endpoint<A>> {
        let tried = future.tried.list();
        tried.get(future.known..).unwrap_or_default().to_vec()
    }

    fn call_excluding(&mut self, mut request: Request<B>, tried: &Tried<A>) -> Self::Future {
        let known = tried.len();
        request.extensions_mut().insert(tried.clone());
        TagFuture {
            future: self.service.call(request),
            tried: tried.clone(),
            known,
        }
    }
}

impl<S, B> Service<Request<B>> for ExcludeTried<S>
where
    S: CallExcluding<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match request.extensions_mut().remove::<Tried<S::Address>>() {
            Some(tried) => self.0.call_excluding(request, &tried),
            None => self.0.call(request),
        }
    }
}

impl<F: Future, A> Future for TagFuture<F, A> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

impl<A> Default for TagTriedLayer<A> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<A> Clone for TagTriedLayer<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for TagTriedLayer<A> {}

impl<S: Clone, A> Clone for TagTried<S, A> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            _address: PhantomData,
        }
    }
}

impl<A> fmt::Debug for TagTriedLayer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagTriedLayer")
    }
}

impl<S: fmt::Debug, A> fmt::Debug for TagTried<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TagTried").field(&self.service).finish()
    }
}

impl<F, A: fmt::Display> fmt::Debug for TagFuture<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagFuture")
            .field("tried", &self.tried)
            .finish_non_exhaustive()
    }
}
