use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http::Request;
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

/// Lets a request be retried although its body cannot be cloned, until the body is read.
///
/// A try has not read the body if its connection was refused, or if it was given up before the
/// request went out. The request then goes to another endpoint. Once a try has asked for the first
/// frame, the request is not retried.
///
/// ```
/// # use std::convert::Infallible;
/// # use ::http::{Request, Response};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::{*, failover::ConnectErrors};
/// use tower_lb::http::UnsentBody;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// # #[derive(Debug)] struct Upload;
/// # impl http_body::Body for Upload {
/// #     type Data = &'static [u8];
/// #     type Error = Infallible;
/// #     fn poll_frame(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>)
/// #         -> std::task::Poll<Option<Result<http_body::Frame<Self::Data>, Infallible>>> { std::task::Poll::Ready(None) }
/// # }
/// # let connect = |_: &Endpoint<&'static str>| {
/// #     service_fn(|_: Request<UnsentBody<Upload>>| async { Ok::<_, Infallible>(Response::new(())) })
/// # };
/// let client = ServiceBuilder::new()
///     .map_request(|request: Request<Upload>| request.map(UnsentBody::new))
///     .layer(FailoverLayer::new(ConnectErrors::default()).copy_with(UnsentBody::copy_request))
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(fixed(["a", "b"]))
///     .service(connect);
/// # client.oneshot(Request::new(Upload)).await?;
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
pub struct UnsentBody<B> {
    /// `None` once a try has started to read.
    slot: Arc<Mutex<Option<B>>>,
    /// Set once this handle has started to read.
    body: Option<Pin<Box<B>>>,
}

/// Reports that another try of the request has taken the body.
#[derive(Clone, Copy, Debug)]
pub struct BodyMoved;

impl<B> UnsentBody<B> {
    /// Wraps a body that has not been read yet.
    pub fn new(body: B) -> Self {
        Self {
            slot: Arc::new(Mutex::new(Some(body))),
            body: None,
        }
    }

    /// Copies a request whose body has not been read, and otherwise returns `None`.
    ///
    /// For [`FailoverLayer::copy_with`](crate::FailoverLayer::copy_with). All copies share one
    /// body. The first copy that is read takes it, and the bodies of the others then fail with
    /// [`BodyMoved`].
    #[must_use]
    pub fn copy_request(request: &Request<Self>) -> Option<Request<Self>> {
        let body = request.body().copy()?;
        let mut copy = Request::new(body);
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        *copy.extensions_mut() = request.extensions().clone();
        Some(copy)
    }

    fn copy(&self) -> Option<Self> {
        self.slot().as_ref()?;
        Some(Self {
            slot: self.slot.clone(),
            body: None,
        })
    }

    fn slot(&self) -> MutexGuard<'_, Option<B>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies `look` to the body, wherever it is; `None` if another copy has taken it.
    fn look<T>(&self, look: impl FnOnce(&B) -> T) -> Option<T> {
        match &self.body {
            Some(body) => Some(look(body)),
            None => self.slot().as_ref().map(look),
        }
    }
}

impl<B> Body for UnsentBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.get_mut();
        if this.body.is_none() {
            let body = this.slot().take();
            this.body = body.map(Box::pin);
        }
        match &mut this.body {
            Some(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
            None => Poll::Ready(Some(Err(BodyMoved.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.look(Body::is_end_stream).unwrap_or(false)
    }

    fn size_hint(&self) -> SizeHint {
        self.look(Body::size_hint).unwrap_or_default()
    }
}

impl<B> fmt::Debug for UnsentBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnsentBody")
            .field("unsent", &self.slot().is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BodyMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body has gone with another try of its request")
    }
}

impl Error for BodyMoved {}
