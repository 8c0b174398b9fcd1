use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tower::discover::Change;

use crate::endpoint::{Address, Endpoint, Target};

/// Turns any tower `Discover` into a discovery of endpoints; its keys become the addresses.
///
/// ```
/// use tower::{ServiceBuilder, ServiceExt, discover::ServiceList, service_fn};
/// use tower_lb::{BalanceLayer, P2c, PendingRequestsLayer, each, from_discover};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let echo = || service_fn(|n: u32| async move { Ok::<_, std::io::Error>(n) });
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .service(from_discover(ServiceList::new([echo(), echo()])));
/// assert_eq!(client.oneshot(7).await?, 7);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
pub fn from_discover<D, K, S>(discover: D) -> FromDiscover<D, K>
where
    D: TryStream<Ok = Change<K, S>>,
    K: Address + Clone,
{
    FromDiscover {
        discover,
        endpoints: HashMap::new(),
    }
}

pin_project! {
    /// A discovery of endpoints, made from a tower `Discover`; see [`from_discover`].
    pub struct FromDiscover<D, K> {
        #[pin]
        discover: D,
        endpoints: HashMap<K, Endpoint<K>>,
    }
}

impl<D, K, S> Stream for FromDiscover<D, K>
where
    D: TryStream<Ok = Change<K, S>>,
    K: Address + Clone,
{
    type Item = Result<Change<Endpoint<K>, S>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = ready!(this.discover.try_poll_next(cx)?);
        Poll::Ready(change.map(|change| {
            Ok(match change {
                Change::Insert(key, service) => {
                    let endpoint = this
                        .endpoints
                        .entry(key)
                        .or_insert_with_key(|key| Endpoint::new(Target::new(key.clone())));
                    Change::Insert(endpoint.clone(), service)
                }
                Change::Remove(key) => {
                    let known = this.endpoints.remove(&key);
                    Change::Remove(known.unwrap_or_else(|| Endpoint::new(Target::new(key))))
                }
            })
        }))
    }
}

impl<D, K> fmt::Debug for FromDiscover<D, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromDiscover")
            .field("endpoints", &self.endpoints.len())
            .finish_non_exhaustive()
    }
}
