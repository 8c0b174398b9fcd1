//! A custom policy: the standby gets requests only while no other endpoint is available.
//!
//! Run: `cargo run --example custom_policy`

use std::convert::Infallible;

use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Candidates, Choice, Endpoint, PickContext, Policy, Target, Watcher, fixed,
};

/// Picks the candidate that comes first in the order of priorities.
#[derive(Clone)]
struct Standby;

impl<A: 'static, S, Req> Policy<A, S, Req> for Standby {
    type Table = Vec<usize>; // positions in order: sorted once for each snapshot, not for each request

    fn table(&self, from: Candidates<'_, A, S>, _: Option<&Vec<usize>>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..from.members().len()).collect();
        order.sort_by_key(|&position| from.members()[position].endpoint().priority());
        order
    }

    fn pick(
        &self,
        order: &Vec<usize>,
        from: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        let first = order.iter().find(|&&position| from.contains(position));
        first.map_or(Choice::Nobody, |&position| Choice::Member(position))
    }
}

#[tokio::main]
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
    let answer = client.ready().await?.call(()).await?;
    println!("all is well:            {answer}");

    // A health check would normally call this. The balancer's driver applies it when it next runs.
    let members = client.members();
    let primary = members
        .iter()
        .map(|member| member.endpoint())
        .find(|endpoint| *endpoint.address() == "primary")
        .expect("it is in the list above");
    let watcher = client.watcher_without_loads();
    primary.mark_unhealthy();
    until(&watcher, primary, false).await;
    let answer = client.ready().await?.call(()).await?;
    println!("the primary is down:    {answer}");

    primary.mark_healthy();
    until(&watcher, primary, true).await;
    let answer = client.ready().await?.call(()).await?;
    println!("the primary is back up: {answer}");
    Ok(())
}

/// Waits until the balancer sends requests to an endpoint, or no longer does.
async fn until(
    members: &Watcher<&'static str>,
    endpoint: &Endpoint<&'static str>,
    takes_requests: bool,
) {
    let is_so = || {
        let members = members.members();
        let mut members = members.iter();
        members.any(|m| m.endpoint() == endpoint && m.is_candidate() == takes_requests)
    };
    while !is_so() {
        tokio::task::yield_now().await;
    }
}
