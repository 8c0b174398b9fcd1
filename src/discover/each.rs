use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tower::{Layer, discover::Change};

/// Lifts a service layer to every discovered service.
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

/// The layer that [`each`] makes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Each<L> {
    layer: L,
}

pin_project! {
    /// Discovery whose services have been wrapped by a layer; made by [`each`].
    #[derive(Clone, Debug)]
    pub struct EachDiscover<D, L> {
        #[pin]
        discover: D,
        layer: L,
    }
}

impl<D, L: Clone> Layer<D> for Each<L> {
    type Service = EachDiscover<D, L>;

    fn layer(&self, discover: D) -> Self::Service {
        EachDiscover {
            discover,
            layer: self.layer.clone(),
        }
    }
}

impl<D, L, K, S> Stream for EachDiscover<D, L>
where
    D: TryStream<Ok = Change<K, S>>,
    L: Layer<S>,
{
    type Item = Result<Change<K, L::Service>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = ready!(this.discover.try_poll_next(cx)?);
        Poll::Ready(change.map(|change| {
            Ok(match change {
                Change::Insert(key, service) => Change::Insert(key, this.layer.layer(service)),
                Change::Remove(key) => Change::Remove(key),
            })
        }))
    }
}
