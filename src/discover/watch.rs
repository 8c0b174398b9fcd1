use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tokio::sync::watch;
use tower::{Layer, discover::Change};
use tracing::debug;

use super::roster::Roster;
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
pub struct WatchDiscover<T: IntoTarget, F> {
    roster: Roster<T::Address>,
    factory: F,
    /// Whether the first list was empty, and `NoEndpoints` has not been yielded yet.
    nothing: bool,
    /// Resolves to the receiver once it holds another list, or to `None` once the sender is gone.
    changed: Option<Changed<T>>,
}

type Changed<T> = Pin<Box<dyn Future<Output = Option<watch::Receiver<Vec<T>>>> + Send>>;

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
        let mut discover = WatchDiscover {
            roster: Roster::new(),
            factory,
            nothing: false,
            changed: None,
        };
        discover.look_at(self.lists.clone());
        discover.nothing = discover.roster.is_empty();
        discover
    }
}

impl<T, F> WatchDiscover<T, F>
where
    T: IntoTarget<Address: Address> + Clone + Send + Sync + 'static,
{
    fn look_at(&mut self, mut lists: watch::Receiver<Vec<T>>) {
        // Copied, because senders wait while a list is borrowed.
        let targets = lists.borrow_and_update().clone();
        self.roster.update(targets.into_iter().map(T::into_target));
        self.changed = Some(Box::pin(async move {
            lists.changed().await.ok().map(|()| lists)
        }));
    }
}

impl<T, F, S> Stream for WatchDiscover<T, F>
where
    T: IntoTarget<Address: Address> + Clone + Send + Sync + 'static,
    F: Fn(&Endpoint<T::Address>) -> S,
{
    type Item = Result<Change<Endpoint<T::Address>, S>, NoEndpoints>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.nothing) {
            return Poll::Ready(Some(Err(NoEndpoints::new())));
        }
        loop {
            // Pending: a service that is to be made again wakes this task, if there is one.
            if let Poll::Ready(change) = this.roster.poll_next(&this.factory, cx) {
                return Poll::Ready(Some(Ok(change)));
            }
            let Some(changed) = &mut this.changed else {
                // While endpoints are left, their services may have to be made again.
                return if this.roster.is_empty() {
                    Poll::Ready(None)
                } else {
                    Poll::Pending
                };
            };
            // Pending: the channel wakes this task with its next list.
            match ready!(changed.as_mut().poll(cx)) {
                Some(lists) => this.look_at(lists),
                None => {
                    debug!("the sender of targets is gone: the last list stays");
                    this.changed = None;
                    this.roster.set_last();
                }
            }
        }
    }
}

// Neither targets nor factory are pinned: both are only used by reference.
impl<T: IntoTarget, F> Unpin for WatchDiscover<T, F> {}

impl<T: IntoTarget, F> fmt::Debug for WatchDiscover<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchDiscover")
            .field("roster", &self.roster)
            .finish_non_exhaustive()
    }
}
