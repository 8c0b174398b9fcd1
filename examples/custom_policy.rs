//! A policy of your own: requests stay in the client's zone while anybody there is available.

use std::{convert::Infallible, sync::Arc};

use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Candidates, Choice, Endpoint, Member, PickContext, Policy, Target, fixed,
};

/// Picks at random within one zone; from anywhere else only when the zone has nobody.
#[derive(Clone)]
struct ZoneFirst(&'static str);

impl<A: 'static, S, Req> Policy<A, S, Req> for ZoneFirst {
    /// Who is in the zone, by position: looked up once for each snapshot, not for each request.
    type Table = Vec<bool>;

    fn table(&self, members: &[Member<A, S>], _: Option<&Vec<bool>>) -> Vec<bool> {
        let local = |member: &Member<A, S>| member.endpoint().zone() == Some(Arc::from(self.0));
        members.iter().map(local).collect()
    }

    fn pick(
        &self,
        local: &Vec<bool>,
        from: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        let local = |&(position, _): &(usize, _)| local[position];
        let near = from.iter().filter(local).count();
        let drawn = cx.below(near.max(1) as u32) as usize;
        let choice = from
            .iter()
            .filter(local)
            .nth(drawn)
            .or_else(|| from.iter().next());
        choice.map_or(Choice::None, |(position, _)| Choice::Member(position))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tower::BoxError> {
    let targets = [
        Target::new("near-1").zone("eu-1a"),
        Target::new("near-2").zone("eu-1a"),
        Target::new("far").zone("eu-1b"),
    ];
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(ZoneFirst("eu-1a")))
        .layer(fixed(targets))
        .service(|endpoint: &Endpoint<&'static str>| {
            let name = *endpoint.address();
            service_fn(move |()| async move { Ok::<_, Infallible>(name) })
        });

    println!("all available:      {}", answers(&mut client).await?);
    for member in client.endpoints() {
        if *member.endpoint().address() != "far" {
            member.endpoint().mark_unhealthy();
        }
    }
    // The driver takes the new statuses in as soon as it runs.
    tokio::task::yield_now().await;
    println!("nobody in the zone: {}", answers(&mut client).await?);
    Ok(())
}

/// Sends twelve requests and lists who answered.
async fn answers<S>(client: &mut S) -> Result<String, S::Error>
where
    S: Service<(), Response = &'static str>,
{
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(client.ready().await?.call(()).await?);
    }
    Ok(answers.join(" "))
}
