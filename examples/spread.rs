//! The smallest balancer: one stream of requests over two services, with tower's `call_all`.
//!
//! Run: `cargo run --example spread`

use std::{collections::BTreeMap, convert::Infallible};

use tokio_stream::StreamExt;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), tower::BoxError> {
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(["left", "right"]))
        .service(|endpoint: &Endpoint<&'static str>| {
            let name = *endpoint.address();
            service_fn(move |n: u32| async move {
                // Each request takes a moment, so in-flight counts differ.
                tokio::task::yield_now().await;
                Ok::<_, Infallible>((name, n * n))
            })
        });

    let requests = tokio_stream::iter(1..=1000);
    let mut answers = client.call_all(requests).unordered();
    let (mut calls, mut sum) = (BTreeMap::new(), 0);
    while let Some(answer) = answers.next().await {
        let (name, square) = answer?;
        *calls.entry(name).or_insert(0) += 1;
        sum += square;
    }
    println!("1000 requests: {calls:?}, the sum of their squares is {sum}");
    Ok(())
}
