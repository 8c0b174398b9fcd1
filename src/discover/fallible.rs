use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tower::{Layer, discover::Change};
use tracing::error;

use crate::endpoint::{Address, Endpoint};

/// Takes factories that may fail: an endpoint whose factory returns an error is left out.
///
/// Goes right above the source. The endpoint stays out until discovery has removed it and lists it
/// again; all others go on. Each failure is an event at `error` with the address.
///
/// ```
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_lb::{BalanceLayer, Endpoint, RoundRobin, fallible, fixed};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(fallible())
///     .layer(fixed(["10.0.0.1:80", "not an address"]))
///     .service(|endpoint: &Endpoint<&'static str>| {
///         let address: std::net::SocketAddr = endpoint.address().parse()?;
///         Ok::<_, std::net::AddrParseError>(service_fn(move |()| async move {
///             Ok::<_, std::io::Error>(address)
///         }))
///     });
/// assert_eq!(client.oneshot(()).await?.port(), 80);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[must_use]
pub const fn fallible() -> Fallible {
    Fallible(())
}

/// The layer that [`fallible`] makes.
#[derive(Clone, Copy, Debug)]
pub struct Fallible(());

pin_project! {
    /// Discovery without the endpoints whose factories failed; made by [`fallible`].
    #[derive(Clone, Debug)]
    pub struct FallibleDiscover<D> {
        #[pin]
        discover: D,
    }
}

impl<D> Layer<D> for Fallible {
    type Service = FallibleDiscover<D>;

    fn layer(&self, discover: D) -> Self::Service {
        FallibleDiscover { discover }
    }
}

impl<D, A, S, E> Stream for FallibleDiscover<D>
where
    D: TryStream<Ok = Change<Endpoint<A>, Result<S, E>>>,
    A: Address,
    E: fmt::Display,
{
    type Item = Result<Change<Endpoint<A>, S>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = ready!(self.project().discover.try_poll_next(cx)?);
        Poll::Ready(change.map(|change| {
            Ok(match change {
                Change::Insert(endpoint, Ok(service)) => Change::Insert(endpoint, service),
                Change::Insert(endpoint, Err(error)) if endpoint.is_made_again() => {
                    error!(%endpoint, %error, "the factory failed: it is called again later");
                    endpoint.ask_for_another();
                    Change::Remove(endpoint)
                }
                Change::Insert(endpoint, Err(error)) => {
                    error!(%endpoint, %error, "the factory failed: left out until it is listed again");
                    Change::Remove(endpoint)
                }
                Change::Remove(endpoint) => Change::Remove(endpoint),
            })
        }))
    }
}
