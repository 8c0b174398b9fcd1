use std::{
    error::Error,
    fmt,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, TryStream};
use http::{
    HeaderValue, Method, Request, Response, Uri,
    header::HOST,
    uri::{Authority, Scheme},
};
use pin_project_lite::pin_project;
use tower::{
    BoxError, Layer, Service,
    discover::{Change, Discover},
    load::Load,
};
use tracing::warn;

use crate::{
    endpoint::{Address, Endpoint},
    metric::{InFlight, TotalInFlight},
};

/// Writes the endpoint's address into each request's URI, so that one pooled client serves all endpoints.
///
/// hyper-util's client and others keep connections by scheme and authority: with the address there, each endpoint
/// has its own. The `Host` header stays what the request says, or becomes what its URI has named; a URI without a scheme gets
/// `http`. With TLS, the name that certificates are checked against is the connector's: set it there
/// (`with_server_name_resolver` of hyper-rustls' builder), or they are checked against the endpoint's address.
///
/// Over HTTP/2 the name of the service is in `:authority`, which is what the URI says, and a `Host` header that differs is an error
/// (RFC 9113, section 8.3.1). So take a client for each endpoint there, whose connector goes to the endpoint whatever the URI says,
/// as `examples/hyper_client.rs` does: name and TLS are as without a balancer. Or, where servers need no name,
/// [`without_host`](Self::without_host).
///
/// `CONNECT` names its aim, not the server, by its URI: such a request fails. An endpoint whose address is no
/// authority is never ready, with an event at `warn`.
///
/// The endpoint is in the extensions of the response, as an [`Endpoint`], and named by the error: [`EndpointError`].
///
/// ```
/// # use std::convert::Infallible;
/// # use ::http::{Request, Response};
/// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed, http::AuthorityLayer};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// # let a = std::net::SocketAddr::from(([10, 0, 0, 1], 8080));
/// # let pooled_client = service_fn(|request: Request<()>| async move {
/// #     assert_eq!(request.uri(), "http://10.0.0.1:8080/path");
/// #     assert_eq!(request.headers()["host"], "api.example.com");
/// #     Ok::<_, Infallible>(Response::new(()))
/// # });
/// let mut client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(AuthorityLayer::new())
///     .layer(fixed([a]))
///     .service(move |_: &Endpoint| pooled_client.clone());
///
/// let request = Request::get("http://api.example.com/path").body(())?;
/// let response = client.ready().await?.call(request).await?;
/// let endpoint = response.extensions().get::<Endpoint>().expect("the one that answered");
/// assert_eq!(*endpoint.address(), a);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// Cost of a request: the new URI and header, and two clones of reference-counted handles.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthorityLayer {
    host: Host,
}

/// What becomes of the name that a request is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Host {
    #[default]
    Kept,
    Dropped,
}

/// A service that is sent requests for its endpoint; see [`AuthorityLayer`].
#[derive(Clone)]
pub struct ToAuthority<S, A> {
    service: S,
    endpoint: Endpoint<A>,
    /// `None` if the address is none.
    authority: Option<Authority>,
    host: Host,
}

pin_project! {
    /// Discovery whose services are sent requests for their endpoints; made by [`AuthorityLayer`].
    #[derive(Debug)]
    pub struct AuthorityDiscover<D> {
        #[pin]
        discover: D,
        host: Host,
    }
}

pin_project! {
    /// The response future of a [`ToAuthority`].
    pub struct AuthorityFuture<F, A> {
        #[pin]
        future: Option<F>,
        endpoint: Endpoint<A>,
    }
}

/// Says which endpoint a request has failed at.
#[derive(Clone, Debug)]
pub struct EndpointError {
    endpoint: String,
    source: Arc<BoxError>,
}

/// Says that an endpoint's address is no authority that a URI could have, or that the request is one for `CONNECT`.
#[derive(Clone, Copy, Debug)]
pub struct NoAuthority;

impl AuthorityLayer {
    /// Creates the layer.
    #[must_use]
    pub const fn new() -> Self {
        Self { host: Host::Kept }
    }

    /// Sends no `Host` header, not the request's own either: for HTTP/2, to servers that need not know the service's name.
    #[must_use]
    pub const fn without_host(mut self) -> Self {
        self.host = Host::Dropped;
        self
    }
}

impl<D, A> Layer<D> for AuthorityLayer
where
    D: Discover<Key = Endpoint<A>>,
{
    type Service = AuthorityDiscover<D>;

    fn layer(&self, discover: D) -> Self::Service {
        AuthorityDiscover {
            discover,
            host: self.host,
        }
    }
}

impl<D, A, S> Stream for AuthorityDiscover<D>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
{
    type Item = Result<Change<Endpoint<A>, ToAuthority<S, A>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = ready!(this.discover.try_poll_next(cx)?);
        Poll::Ready(change.map(|change| {
            Ok(match change {
                Change::Insert(endpoint, service) => {
                    let authority = authority(&endpoint.to_string());
                    if authority.is_none() {
                        warn!(%endpoint, "its address is no authority of a URI: it gets no requests");
                    }
                    let service = ToAuthority {
                        service,
                        endpoint: endpoint.clone(),
                        authority,
                        host: *this.host,
                    };
                    Change::Insert(endpoint, service)
                }
                Change::Remove(endpoint) => Change::Remove(endpoint),
            })
        }))
    }
}

impl<S, A> ToAuthority<S, A> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }
}

/// Reads host and port, with nothing before or after them.
fn authority(address: &str) -> Option<Authority> {
    let authority = Authority::from_str(address).ok()?;
    let is_well = match authority.port_u16() {
        Some(port) => address.strip_suffix(&format!(":{port}")) == Some(authority.host()),
        None => authority.host() == address,
    };
    is_well.then_some(authority)
}

/// Sends the request to `authority`; `None` if its URI cannot have one.
fn direct<B>(mut request: Request<B>, authority: &Authority, host: Host) -> Option<Request<B>> {
    if request.method() == Method::CONNECT {
        return None;
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let before = parts.authority.replace(authority.clone());
    parts.scheme.get_or_insert(Scheme::HTTP);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some("/".parse().ok()?);
    }
    *request.uri_mut() = Uri::from_parts(parts).ok()?;
    if host == Host::Dropped {
        request.headers_mut().remove(HOST);
    } else if let Some(before) = before {
        if !request.headers().contains_key(HOST) {
            // Without user and password, which are nobody's to know.
            let host = before.as_str().rsplit('@').next()?;
            let host = HeaderValue::from_str(host).ok()?;
            request.headers_mut().insert(HOST, host);
        }
    }
    Some(request)
}

impl<S, A, B, R> Service<Request<B>> for ToAuthority<S, A>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
    A: Address,
{
    type Response = Response<R>;
    type Error = EndpointError;
    type Future = AuthorityFuture<S::Future, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        if self.authority.is_none() {
            return Poll::Ready(Err(EndpointError::new(&self.endpoint, NoAuthority)));
        }
        self.service
            .poll_ready(cx)
            .map_err(|error| EndpointError::new(&self.endpoint, error))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let authority = self.authority.as_ref();
        let request = authority.and_then(|authority| direct(request, authority, self.host));
        AuthorityFuture {
            future: request.map(|request| self.service.call(request)),
            endpoint: self.endpoint.clone(),
        }
    }
}

impl<F, A, R, E> Future for AuthorityFuture<F, A>
where
    F: Future<Output = Result<Response<R>, E>>,
    A: Address,
    E: Into<BoxError>,
{
    type Output = Result<Response<R>, EndpointError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(future) = this.future.as_pin_mut() else {
            return Poll::Ready(Err(EndpointError::new(this.endpoint, NoAuthority)));
        };
        Poll::Ready(match ready!(future.poll(cx)) {
            Ok(mut response) => {
                response.extensions_mut().insert(this.endpoint.clone());
                Ok(response)
            }
            Err(error) => Err(EndpointError::new(this.endpoint, error)),
        })
    }
}

impl EndpointError {
    fn new(endpoint: &Endpoint<impl Address>, source: impl Into<BoxError>) -> Self {
        Self {
            endpoint: endpoint.to_string(),
            source: Arc::new(source.into()),
        }
    }

    /// Returns the endpoint's address, as text.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request to {} failed", self.endpoint)
    }
}

impl Error for EndpointError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source: &BoxError = &self.source;
        Some(source.as_ref())
    }
}

impl fmt::Display for NoAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no URI sends the request to the endpoint's address")
    }
}

impl Error for NoAuthority {}

impl<S: Load, A> Load for ToAuthority<S, A> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.service.load()
    }
}

impl<S: InFlight, A> InFlight for ToAuthority<S, A> {
    fn in_flight(&self) -> usize {
        self.service.in_flight()
    }
}

impl<S: TotalInFlight, A> TotalInFlight for ToAuthority<S, A> {
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

impl<S: fmt::Debug, A: fmt::Display> fmt::Debug for ToAuthority<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToAuthority")
            .field("service", &self.service)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl<F, A: fmt::Display> fmt::Debug for AuthorityFuture<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityFuture")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
