//! A policy of your own: the standby gets requests only while no other endpoint is available.

use std::convert::Infallible;

use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Candidates, Choice, Endpoint, Member, PickContext, Policy, Target, fixed,
};

/// Picks the first endpoint that may be picked, in the order of their priorities.
#[derive(Clone)]
struct Standby;

impl<A: 'static, S, Req> Policy<A, S, Req> for Standby {
    type Table = Vec<usize>; // positions in order: sorted once for each snapshot, not for each request

    fn table(&self, members: &[Member<A, S>], _: Option<&Vec<usize>>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|&position| members[position].endpoint().priority());
        order
    }

    fn pick(
        &self,
        order: &Vec<usize>,
        from: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        let first = order.iter().find(|&&position| from.contains(position));
        first.map_or(Choice::None, |&position| Choice::Member(position))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tower::BoxError> {
    let targets = [
        Target::new("standby").priority(1),
        Target::new("primary").priority(0),
    ];
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(Standby))
        .layer(fixed(targets))
        .service(|endpoint: &Endpoint<&'static str>| {
            let name = *endpoint.address();
            service_fn(move |()| async move { Ok::<_, Infallible>(name) })
        });

    println!(
        "all is well:            {}",
        client.ready().await?.call(()).await?
    );
    let members = client.endpoints();
    let primary = members
        .iter()
        .find(|member| *member.endpoint().address() == "primary");
    let primary = primary.expect("it is in the list above").endpoint();
    primary.mark_unhealthy();
    // The driver takes the new status in as soon as it runs.
    tokio::task::yield_now().await;
    println!(
        "the primary is down:    {}",
        client.ready().await?.call(()).await?
    );
    primary.mark_healthy();
    tokio::task::yield_now().await;
    println!(
        "the primary is back up: {}",
        client.ready().await?.call(()).await?
    );
    Ok(())
}
