//! The balancer's own rules.

use std::{rc::Rc, task::Poll, time::Duration};

use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, advance, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    discover::Change,
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer},
};
use tower_lb::{balance::MemberView, *};

use crate::support::*;

mod choices;
mod foreign;
mod handles;
mod readiness;
mod sets;
mod waiting;

type Tracked = PendingRequests<Client>;
assert_impl_all!(Balance<P2c, Tracked, ()>: Clone, Send, Sync, Service<()>);
// The balancer is `Send` and `Sync` even if the request type is not.
assert_impl_all!(Balance<P2c, Tracked, Rc<()>>: Clone, Send, Sync, Service<Rc<()>>);
assert_not_impl_any!(Rc<()>: Send);

fn over<P>(
    servers: &[Server],
    layer: BalanceLayer<P, ()>,
    targets: watch::Receiver<Vec<(usize, u32)>>,
) -> Balance<P, Tracked, (), usize>
where
    P: Policy<usize, Tracked, ()> + Clone,
{
    ServiceBuilder::new()
        .layer(layer)
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(targets))
        .service(factory(servers))
}

fn endpoint(balance: &Balance<P2c, Tracked, (), usize>, address: usize) -> Endpoint<usize> {
    let members = balance.members();
    let member = members
        .iter()
        .find(|member| *member.endpoint().address() == address);
    member.unwrap().endpoint().clone()
}

fn answering(n: usize) -> Vec<Server> {
    servers(&vec![Behaviour::Answer(ms(1)); n])
}

fn weights(n: usize) -> Vec<(usize, u32)> {
    (0..n).map(|i| (i, 1)).collect()
}

async fn poll_ready<S: Service<()>>(service: &mut S) -> Result<(), S::Error> {
    std::future::poll_fn(|cx| service.poll_ready(cx)).await
}
