use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::watch;
use tower::{Layer, discover::Change};

use super::watching::Watching;
use crate::{
    endpoint::{Address, Endpoint, IntoTarget},
    error::NoEndpoints,
};

/// Discovers the targets that a `watch` channel holds.
///
/// Only the newest list counts: a thousand sends between two looks cost one comparison with the
/// previous list. An address that stays keeps its service, load and status, and its attributes are
/// set in place. The order of a list has no meaning. If several targets have the same address, the
/// first counts, and an event at `warn` reports the others.
///
/// The channel's value when the stack is built is the first report. If it is empty, there are no
/// endpoints. Once the sender is gone, the last list stays.
///
/// Cost: **O(n)** for each list that is read.
///
/// ```
/// use std::net::SocketAddr;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_lb::{BalanceLayer, Endpoint, RoundRobin, WatchLayer};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let (addresses, rx) = tokio::sync::watch::channel(vec![SocketAddr::from(([10, 0, 0, 1], 80))]);
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(WatchLayer::new(rx))
///     .service(|endpoint: &Endpoint| {
///         let address = *endpoint.address();
///         service_fn(move |()| async move { Ok::<_, std::io::Error>(address) })
///     });
/// assert_eq!(client.clone().oneshot(()).await?.to_string(), "10.0.0.1:80");
/// addresses.send_replace(vec![]);
/// # tokio::task::yield_now().await;
/// assert!(client.oneshot(()).await.is_err());
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[derive(Clone, Debug)]
pub struct WatchLayer<T> {
    lists: watch::Receiver<Vec<T>>,
}

/// Discovers the targets that a `watch` channel holds; made by [`WatchLayer`].
#[derive(Debug)]
pub struct WatchDiscover<T: IntoTarget, F>(Watching<Vec<T>, T::Address, F>);

impl<T> WatchLayer<T> {
    /// Creates the layer for the targets that `lists` holds.
    #[must_use]
    pub const fn new(lists: watch::Receiver<Vec<T>>) -> Self {
        Self { lists }
    }
}

impl<T, F> Layer<F> for WatchLayer<T>
where
    T: IntoTarget<Address: Address> + Clone + Send + Sync + 'static,
{
    type Service = WatchDiscover<T, F>;

    fn layer(&self, factory: F) -> Self::Service {
        let read = |list: &Vec<T>| Some(list.iter().cloned().map(T::into_target).collect());
        WatchDiscover(Watching::new(self.lists.clone(), factory, read))
    }
}

impl<T, F, S> Stream for WatchDiscover<T, F>
where
    T: IntoTarget<Address: Address> + Clone + Send + Sync + 'static,
    F: Fn(&Endpoint<T::Address>) -> S,
{
    type Item = Result<Change<Endpoint<T::Address>, S>, NoEndpoints>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_next(cx)
    }
}

// Neither targets nor factory are pinned: both are only used by reference.
impl<T: IntoTarget, F> Unpin for WatchDiscover<T, F> {}
