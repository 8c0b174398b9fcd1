use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::Stream;
use tower::{Layer, discover::Change};

use super::roster::Roster;
use crate::{
    endpoint::{Address, Endpoint, IntoTarget, Target},
    error::NoEndpoints,
};

/// Discovers a set of targets that never changes.
///
/// If several targets have the same address, the first counts, and an event at `warn` reports the
/// others.
///
/// ```
/// use tower::{ServiceBuilder, service_fn};
/// use tower_lb::{BalanceLayer, Endpoint, RoundRobin, fixed};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(fixed(["a", "b"]))
///     .service(|endpoint: &Endpoint<&'static str>| {
///         let name = *endpoint.address();
///         service_fn(move |()| async move { Ok::<_, std::io::Error>(name) })
///     });
/// let answer = tower::ServiceExt::oneshot(client, ()).await?;
/// assert!(["a", "b"].contains(&answer));
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
pub fn fixed<T>(targets: impl IntoIterator<Item = T>) -> FixedLayer<T::Address>
where
    T: IntoTarget,
{
    FixedLayer {
        targets: targets.into_iter().map(T::into_target).collect(),
    }
}

/// The layer that [`fixed`] makes.
#[derive(Clone, Debug)]
pub struct FixedLayer<A = std::net::SocketAddr> {
    targets: Vec<Target<A>>,
}

/// Discovers a set that never changes; made by [`fixed`].
#[derive(Debug)]
pub struct FixedDiscover<A, F> {
    roster: Roster<A>,
    factory: F,
}

impl<A, F> Layer<F> for FixedLayer<A>
where
    A: Address + Clone,
{
    type Service = FixedDiscover<A, F>;

    fn layer(&self, factory: F) -> Self::Service {
        let mut roster = Roster::new();
        roster.update(self.targets.iter().cloned());
        roster.set_last();
        FixedDiscover { roster, factory }
    }
}

impl<A, F, S> Stream for FixedDiscover<A, F>
where
    A: Address,
    F: Fn(&Endpoint<A>) -> S,
{
    type Item = Result<Change<Endpoint<A>, S>, NoEndpoints>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.roster.poll_next(&this.factory, cx) {
            // Nothing ever changes in a set of none.
            Poll::Pending if this.roster.is_empty() => Poll::Ready(None),
            change => change.map(|change| Some(Ok(change))),
        }
    }
}

// The factory is only called by reference, so it need not be pinned.
impl<A, F> Unpin for FixedDiscover<A, F> {}
