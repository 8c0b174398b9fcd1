use std::{
    error::Error,
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Buf;
use http::{HeaderMap, Request};
use http_body::{Body, Frame, SizeHint};
use tower::BoxError;

/// Lets a request be retried although its body cannot be cloned, until the body is read.
///
/// A try has not read the body if its connection was refused, or if it was given up before the
/// request went out. The request then goes to another endpoint. Once a try has asked for the first
/// frame, the request is not retried.
///
/// A [`buffered`](Self::buffered) body keeps what is read, up to a limit, and can be sent again
/// until more than that is read. An HTTP/2 server that refuses a stream has often got the body
/// already, so use it for gRPC.
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
pub struct UnsentBody<B: Body> {
    shared: Arc<Shared<B>>,
    /// Set once this handle has started to read.
    body: Option<Pin<Box<B>>>,
    /// How many of the kept frames this handle has sent.
    sent: usize,
}

struct Shared<B: Body> {
    /// What `size_hint` and `is_end_stream` were before anything was read.
    hint: SizeHint,
    is_empty: bool,
    /// How a frame's data is kept; `None`: it is not.
    keep: Option<Keep<B::Data>>,
    slot: Mutex<Slot<B>>,
}

/// How data is cloned, and how many bytes of it are kept at most.
struct Keep<D> {
    clone: fn(&D) -> D,
    limit: usize,
}

struct Slot<B: Body> {
    /// `None` while a handle reads it, and once it has been read to its end.
    body: Option<Pin<Box<B>>>,
    /// All that has been read; `None` once that is too much.
    kept: Option<Vec<Arc<Kept<B::Data>>>>,
    size: usize,
    is_at_end: bool,
    /// Wakes the handles that have sent all that is kept, and wait for the rest.
    waiting: Vec<Waker>,
}

enum Kept<D> {
    Data(D),
    Trailers(HeaderMap),
}

/// Reports that another try of the request has taken the body.
#[derive(Clone, Copy, Debug)]
pub struct BodyMoved;

impl<B: Body> UnsentBody<B> {
    /// Wraps a body that has not been read yet.
    pub fn new(body: B) -> Self {
        Self::keeping(body, None)
    }

    /// Wraps a body that has not been read yet, and keeps up to `limit` bytes of what is read.
    ///
    /// The request can be retried until more is read. Cost: a clone of each frame's data, which for
    /// `Bytes` is a reference, and a short lock for each frame.
    pub fn buffered(body: B, limit: usize) -> Self
    where
        B::Data: Clone,
    {
        let clone = Clone::clone;
        Self::keeping(body, Some(Keep { clone, limit }))
    }

    fn keeping(body: B, keep: Option<Keep<B::Data>>) -> Self {
        let shared = Shared {
            hint: body.size_hint(),
            is_empty: body.is_end_stream(),
            keep,
            slot: Mutex::new(Slot {
                body: Some(Box::pin(body)),
                kept: Some(Vec::new()),
                size: 0,
                is_at_end: false,
                waiting: Vec::new(),
            }),
        };
        Self::of(Arc::new(shared))
    }

    const fn of(shared: Arc<Shared<B>>) -> Self {
        Self {
            shared,
            body: None,
            sent: 0,
        }
    }

    /// Copies a request whose body can still be sent from its start, and otherwise returns `None`.
    ///
    /// For [`FailoverLayer::copy_with`](crate::FailoverLayer::copy_with). All copies share one
    /// body. The first copy that is read takes it. The bodies of the others then fail with
    /// [`BodyMoved`], or, if it is buffered, wait until that copy is dropped.
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
        self.shared.slot().kept.as_ref()?;
        Some(Self::of(self.shared.clone()))
    }

    /// Returns the next frame if it is kept. Otherwise takes the body out to read on.
    fn replay(&mut self, cx: &Context<'_>) -> Poll<Replayed<B::Data>> {
        let mut slot = self.shared.slot();
        let kept = slot.kept.as_ref();
        if let Some(frame) = kept.and_then(|kept| kept.get(self.sent)).cloned() {
            // Its clone is foreign code, which no lock must be held for.
            drop(slot);
            self.sent += 1;
            return Poll::Ready(match (&*frame, &self.shared.keep) {
                (Kept::Data(data), Some(keep)) => Replayed::Frame(Frame::data((keep.clone)(data))),
                (Kept::Data(_), None) => Replayed::Moved,
                (Kept::Trailers(trailers), _) => Replayed::Frame(Frame::trailers(trailers.clone())),
            });
        }
        if slot.is_at_end && kept.is_some() {
            return Poll::Ready(Replayed::End);
        }
        // The frames before this one are not kept for a handle that has not sent them.
        let is_whole = slot
            .kept
            .as_ref()
            .is_some_and(|kept| kept.len() == self.sent);
        let is_kept = self.shared.keep.is_some();
        match slot.body.take().filter(|_| is_whole) {
            Some(body) => {
                self.body = Some(body);
                if !is_kept {
                    slot.kept = None;
                }
                Poll::Ready(Replayed::Body)
            }
            None if is_whole && is_kept => {
                slot.waiting.push(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(Replayed::Moved),
        }
    }
}

/// What a handle does next that does not read the body.
enum Replayed<D> {
    Frame(Frame<D>),
    End,
    /// It reads the body now.
    Body,
    /// It cannot: another handle has taken the body.
    Moved,
}

impl<B: Body> Shared<B> {
    fn slot(&self) -> MutexGuard<'_, Slot<B>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a frame that was read, or the end. Nothing is kept any more of a body that broke off:
    /// sent again, it would seem whole.
    fn take_in<E>(&self, frame: Option<&Result<Frame<B::Data>, E>>) {
        let Some(keep) = &self.keep else { return };
        // Cloned before the lock is taken.
        let (kept, size, is_over) = match frame {
            None => (None, 0, false),
            Some(Err(_)) => (None, 0, true),
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => {
                    let kept = Kept::Data((keep.clone)(data));
                    (Some(kept), data.remaining(), false)
                }
                (None, Some(trailers)) => (Some(Kept::Trailers(trailers.clone())), 0, false),
                // A kind of frame that cannot be kept.
                (None, None) => (None, 0, true),
            },
        };
        let mut slot = self.slot();
        slot.is_at_end = frame.is_none();
        slot.size = slot.size.saturating_add(size);
        let is_over = is_over || slot.size > keep.limit;
        let dropped = if is_over { slot.kept.take() } else { None };
        if let (Some(frames), Some(kept)) = (&mut slot.kept, kept) {
            frames.push(Arc::new(kept));
        }
        let waiting = mem::take(&mut slot.waiting);
        // Wakers, and the drop of data, are foreign code.
        drop(slot);
        drop(dropped);
        waiting.into_iter().for_each(Waker::wake);
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
            match this.replay(cx) {
                // The handle that reads has the waker and wakes this one when it is dropped.
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Replayed::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Replayed::End) => return Poll::Ready(None),
                Poll::Ready(Replayed::Moved) => {
                    return Poll::Ready(Some(Err(BodyMoved.into())));
                }
                Poll::Ready(Replayed::Body) => {}
            }
        }
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(body.as_mut().poll_frame(cx));
        this.shared.take_in(frame.as_ref());
        this.sent += usize::from(frame.is_some());
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Some(body) => body.is_end_stream(),
            None if self.sent == 0 => self.shared.is_empty,
            None => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) => body.size_hint(),
            None if self.sent == 0 => self.shared.hint,
            None => SizeHint::default(),
        }
    }
}

/// Gives the body back, so that another handle can read on.
impl<B: Body> Drop for UnsentBody<B> {
    fn drop(&mut self) {
        let Some(body) = self.body.take() else { return };
        let mut slot = self.shared.slot();
        let dropped = if slot.kept.is_some() {
            slot.body = Some(body);
            None
        } else {
            Some(body)
        };
        let waiting = mem::take(&mut slot.waiting);
        drop(slot);
        drop(dropped);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl<B: Body> fmt::Debug for UnsentBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnsentBody")
            .field("unsent", &self.shared.slot().kept.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BodyMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body has gone with another try of its request")
    }
}

impl Error for BodyMoved {}
