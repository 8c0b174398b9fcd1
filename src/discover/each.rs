use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tower::{Layer, discover::Change};
use tracing::error;

use self::sealed::Sealed;
use crate::{
    endpoint::{Address, Endpoint},
    guard::guarded,
};

/// Applies a service layer to every discovered service.
///
/// The layer may be a tracker, one of tower's limits and timeouts, or a whole `ServiceBuilder`:
///
/// ```
/// use std::time::Duration;
/// use tower::{ServiceBuilder, buffer::BufferLayer, limit::ConcurrencyLimitLayer};
/// use tower_lb::{PendingRequestsLayer, each};
///
/// # type Request = u8;
/// let per_endpoint = ServiceBuilder::new()
///     .layer(PendingRequestsLayer::default())
///     .layer(ConcurrencyLimitLayer::new(100))
///     .timeout(Duration::from_secs(1))
///     .into_inner();
/// let layer = each(per_endpoint);
///
/// // For services that are not `Clone`:
/// let buffered = each(BufferLayer::<Request>::new(16));
/// # let _ = (layer, buffered);
/// ```
pub const fn each<L>(layer: L) -> Each<L> {
    Each { layer }
}

/// Applies a layer to every discovered service; a closure makes the layer from the endpoint.
///
/// ```
/// use tower::{ServiceBuilder, layer::layer_fn, util::MapRequest};
/// use tower_lb::{BalanceLayer, Endpoint, RoundRobin, each_with, fixed};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// // Each request learns where it goes.
/// let tag = each_with(|endpoint: &Endpoint<&'static str>| {
///     let name = *endpoint.address();
///     tower::util::MapRequestLayer::new(move |path: String| format!("{name}{path}"))
/// });
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(tag)
///     .layer(fixed(["a"]))
///     .service(|_: &Endpoint<&'static str>| {
///         tower::service_fn(|request: String| async move { Ok::<_, std::io::Error>(request) })
///     });
/// assert_eq!(tower::ServiceExt::oneshot(client, "/".to_owned()).await?, "a/");
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
pub const fn each_with<F, A, L>(make: F) -> EachWith<F>
where
    F: Fn(&Endpoint<A>) -> L,
{
    EachWith { make }
}

/// The layer that [`each`] makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Each<L> {
    layer: L,
}

/// The layer that [`each_with`] makes.
#[derive(Clone, Copy)]
pub struct EachWith<F> {
    make: F,
}

/// Wraps the service of one endpoint, as [`each`] and [`each_with`] do. Sealed.
pub trait WrapEach<K, S>: Sealed {
    /// The wrapped service.
    type Service;

    #[doc(hidden)]
    fn wrap(&self, key: &K, service: S) -> Self::Service;
}

pin_project! {
    /// A discovery that wraps every service; made by [`each`] and [`each_with`].
    #[derive(Clone, Debug)]
    pub struct EachDiscover<D, W> {
        #[pin]
        discover: D,
        wrap: W,
    }
}

impl<D, W> EachDiscover<D, W> {
    pub(crate) const fn new(discover: D, wrap: W) -> Self {
        Self { discover, wrap }
    }
}

impl<D, L: Clone> Layer<D> for Each<L> {
    type Service = EachDiscover<D, Self>;

    fn layer(&self, discover: D) -> Self::Service {
        EachDiscover::new(discover, self.clone())
    }
}

impl<D, F: Clone> Layer<D> for EachWith<F> {
    type Service = EachDiscover<D, Self>;

    fn layer(&self, discover: D) -> Self::Service {
        EachDiscover::new(discover, self.clone())
    }
}

impl<L> Sealed for Each<L> {}
impl<F> Sealed for EachWith<F> {}

impl<L: Layer<S>, K, S> WrapEach<K, S> for Each<L> {
    type Service = L::Service;

    fn wrap(&self, _: &K, service: S) -> L::Service {
        self.layer.layer(service)
    }
}

impl<F, L, A, S> WrapEach<Endpoint<A>, S> for EachWith<F>
where
    F: Fn(&Endpoint<A>) -> L,
    L: Layer<S>,
{
    type Service = L::Service;

    fn wrap(&self, endpoint: &Endpoint<A>, service: S) -> L::Service {
        (self.make)(endpoint).layer(service)
    }
}

impl<D, W, A, S> Stream for EachDiscover<D, W>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
    W: WrapEach<Endpoint<A>, S>,
{
    type Item = Result<Change<Endpoint<A>, W::Service>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = ready!(this.discover.try_poll_next(cx)?);
        Poll::Ready(change.map(|change| {
            Ok(match change {
                Change::Insert(endpoint, service) => {
                    match guarded(|| this.wrap.wrap(&endpoint, service)) {
                        Ok(service) => Change::Insert(endpoint, service),
                        Err(panic) => {
                            error!(%endpoint, %panic, "a layer panicked: left out until it is listed again");
                            Change::Remove(endpoint)
                        }
                    }
                }
                Change::Remove(endpoint) => Change::Remove(endpoint),
            })
        }))
    }
}

impl<F> fmt::Debug for EachWith<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EachWith")
    }
}

pub(crate) mod sealed {
    #[allow(unnameable_types)] // sealed
    pub trait Sealed {}
}
