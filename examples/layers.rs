//! Where tower's layers go: above the balancer they see all requests, below it those of one
//! endpoint.
//!
//! Run: `cargo run --example layers`

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer,
    limit::ConcurrencyLimitLayer, service_fn, util::BoxService,
};
use tower_lb::{BalanceLayer, DeadlineLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed};

/// Answers with its name; the slow one takes half a second.
fn backend(
    endpoint: &Endpoint<&'static str>,
) -> impl Service<(), Response = &'static str, Error = BoxError, Future: Send> + Clone + use<> {
    let name = *endpoint.address();
    service_fn(move |()| async move {
        sleep(Duration::from_millis(if name == "slow" { 500 } else { 20 })).await;
        Ok(name)
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // At most two requests at once for each endpoint. The balancer passes over a full endpoint. If
    // all are full, the caller is turned away at once, because readiness above the balancer means
    // "the request goes out now".
    let shedding = ServiceBuilder::new()
        .load_shed()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(each(ConcurrencyLimitLayer::new(2)))
        .layer(fixed(["fast", "faster", "slow"]))
        .service(backend);
    report(
        "full endpoints are passed over, the rest is shed",
        shedding,
        10,
    )
    .await;

    // At most four requests at once in total; the others wait for their turn. The deadline covers
    // the wait, as tower's own timeout would not.
    let limited = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_millis(200)))
        .concurrency_limit(4)
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(["fast", "faster", "slow"]))
        .service(backend);
    report("a limit and a deadline for all", limited, 10).await;

    // A timeout for each endpoint. A request that times out is no longer in flight.
    let per_endpoint = ServiceBuilder::new()
        .layer(PendingRequestsLayer::default())
        .timeout(Duration::from_millis(100))
        .into_inner();
    let timed = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(per_endpoint))
        .layer(fixed(["fast", "faster", "slow"]))
        .service(backend);
    report("a timeout for each endpoint", timed, 10).await;

    // One queue for all callers, for a service above that must be cheap to clone and own no
    // connection. A balancer needs no buffer to be shared, because its handles can be cloned.
    let buffered = ServiceBuilder::new()
        .buffer(16)
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(["fast", "faster"]))
        .service(backend);
    report("behind a buffer", buffered, 10).await;

    // A buffer for each endpoint whose service is not `Clone`, such as a connection that one task
    // owns. The tracker above it also counts the requests in the queue.
    let buffer = ServiceBuilder::new()
        .layer(PendingRequestsLayer::default())
        .layer(BufferLayer::new(16))
        .into_inner();
    let connections = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(buffer))
        .layer(fixed(["fast", "faster"]))
        .service(|endpoint: &Endpoint<&'static str>| BoxService::new(backend(endpoint)));
    report("a buffer for each endpoint", connections, 10).await;
}

/// Sends `requests` at once and prints how they ended.
async fn report<S>(what: &str, client: S, requests: usize)
where
    S: Service<(), Response = &'static str, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let start = Instant::now();
    let tasks: Vec<_> = (0..requests)
        .map(|_| tokio::spawn(client.clone().oneshot(())))
        .collect();
    let mut ends = Vec::new();
    for task in tasks {
        ends.push(match task.await {
            Ok(Ok(name)) => name.to_owned(),
            Ok(Err(error)) => format!("({error})"),
            Err(error) => format!("({error})"),
        });
    }
    println!(
        "{what}, {} ms:\n    {}",
        start.elapsed().as_millis(),
        ends.join(", ")
    );
}
