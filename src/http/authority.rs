use std::{
    error::Error,
    fmt,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{
    HeaderValue, Method, Request, Response, Uri,
    header::HOST,
    uri::{Authority, Scheme},
};
use pin_project_lite::pin_project;
use tower::{BoxError, Layer, Service};
use tracing::warn;

use crate::{
    discover::{
        SealedWrap,
        discovery::{EachDiscover, WrapEach},
    },
    endpoint::{Address, Endpoint},
    metric::forward_metrics,
    upstream::DiscoverEndpoints,
};

/// Writes the endpoint's address into each request's URI, so that one pooled client serves all
/// endpoints.
///
/// A pooled client such as hyper-util's keeps connections by scheme and authority. With the
/// endpoint's address in the URI, each endpoint has connections of its own.
///
/// The `Host` header keeps the request's value. If the request has none, it becomes the authority
/// that the URI named before. A URI without a scheme gets `http`.
///
/// With TLS, the connector decides which name certificates are checked against. Set that name there
/// (`with_server_name_resolver` of hyper-rustls' builder). Otherwise they are checked against the
/// endpoint's address.
///
/// Over HTTP/2 the name of the service is in `:authority`, which comes from the URI. A `Host`
/// header that differs from it is an error (RFC 9113, section 8.3.1). So for HTTP/2, give each
/// endpoint a client of its own, as `examples/hyper_client.rs` does. Its connector goes to the
/// endpoint whatever the URI says, and name and TLS work as without a balancer. If the servers need
/// no name, use [`without_host`](Self::without_host) instead.
///
/// A `CONNECT` request fails, because its URI names its destination and not the server. An endpoint
/// whose address is not an authority gets no requests: it never becomes ready, and an event at
/// `warn` reports it.
///
/// The response has the [`Endpoint`] in its extensions. An error names the endpoint:
/// [`EndpointError`].
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
/// Cost of a request: the new URI and header, two clones of the endpoint's handle, and an entry in
/// the response's extensions.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuthorityLayer {
    host: HostHeader,
}

/// What happens to the `Host` header, which names the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HostHeader {
    #[default]
    Kept,
    Dropped,
}

/// A service that directs requests to its endpoint's address; see [`AuthorityLayer`].
#[derive(Clone)]
pub struct ToAuthority<S, A = std::net::SocketAddr> {
    service: S,
    endpoint: Endpoint<A>,
    /// `None` if the address is not an authority.
    authority: Option<Authority>,
    host: HostHeader,
}

pin_project! {
    /// The response future of a [`ToAuthority`].
    pub struct AuthorityFuture<F, A = std::net::SocketAddr> {
        #[pin]
        future: Option<F>,
        endpoint: Endpoint<A>,
    }
}

/// Names the endpoint at which a request failed.
#[derive(Clone, Debug)]
pub struct EndpointError {
    endpoint: String,
    source: Arc<BoxError>,
}

/// Reports an endpoint address that is not a URI authority, or a `CONNECT` request.
#[derive(Clone, Copy, Debug)]
pub struct NoAuthority;

impl AuthorityLayer {
    /// Creates the layer.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            host: HostHeader::Kept,
        }
    }

    /// Sends no `Host` header, and removes the request's own.
    ///
    /// Use it for HTTP/2, with servers that do not need the service's name.
    #[must_use]
    pub const fn without_host(mut self) -> Self {
        self.host = HostHeader::Dropped;
        self
    }
}

impl<D: DiscoverEndpoints> Layer<D> for AuthorityLayer {
    type Service = EachDiscover<D, Self>;

    fn layer(&self, discover: D) -> Self::Service {
        EachDiscover::new(discover, *self)
    }
}

impl SealedWrap for AuthorityLayer {}

impl<A: Address, S> WrapEach<Endpoint<A>, S> for AuthorityLayer {
    type Service = ToAuthority<S, A>;

    fn wrap(&self, endpoint: &Endpoint<A>, service: S) -> ToAuthority<S, A> {
        let authority = authority(&endpoint.to_string());
        if authority.is_none() {
            warn!(%endpoint, "its address is no authority of a URI: it gets no requests");
        }
        ToAuthority {
            service,
            endpoint: endpoint.clone(),
            authority,
            host: self.host,
        }
    }
}

impl<S, A> ToAuthority<S, A> {
    /// Returns the wrapped service.
    pub const fn get_ref(&self) -> &S {
        &self.service
    }
}

/// Parses a host with an optional port; `None` if the address has anything before or after them.
fn authority(address: &str) -> Option<Authority> {
    let authority = Authority::from_str(address).ok()?;
    let is_well = match authority.port_u16() {
        Some(port) => address.strip_suffix(&format!(":{port}")) == Some(authority.host()),
        None => authority.host() == address,
    };
    is_well.then_some(authority)
}

/// Points the request's URI at `authority`; `None` for `CONNECT` and for a URI that cannot have
/// one.
fn direct<B>(
    mut request: Request<B>,
    authority: &Authority,
    host: HostHeader,
) -> Option<Request<B>> {
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
    if host == HostHeader::Dropped {
        request.headers_mut().remove(HOST);
    } else if let Some(before) = before {
        if !request.headers().contains_key(HOST) {
            // Without user and password, which must not be passed on.
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

forward_metrics!([S, A] ToAuthority<S, A>: Load, InFlight, TotalInFlight);

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
