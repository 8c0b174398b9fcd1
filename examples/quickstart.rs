//! Balances real HTTP requests over three servers while one joins, one leaves and one dies.
//!
//! One of the servers is ten times slower. Round robin sends it as many requests as the others,
//! waits for it, and goes on sending to the dead server. P2c over Peak-EWMA measures which server
//! is slow and which fails, and avoids both. Outlier detection keeps the dead server out until a
//! probe succeeds.
//!
//! Run: `cargo run --example quickstart`

mod support;

use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::phases::{Phases, run};
use tokio::sync::watch;
use tower::{BoxError, ServiceBuilder};
use tower_lb::{
    BalanceLayer, DeadlineLayer, Endpoint, OutlierLayer, P2c, PeakEwmaLayer, RoundRobin,
    WatchLayer, each, http::AuthorityLayer,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    println!("2 000 requests, 50 at a time; server A takes 50 ms, the others 5 ms\n");

    let phases = Phases::start().await?;
    let (addresses, rx) = watch::channel(phases.first());
    let pooled: Pooled = Client::builder(TokioExecutor::new()).build_http();
    // The stack, from the top: the time that a request may take, the policy, the detection of
    // failing endpoints, the tracker, the address that a request goes to, the source of endpoints,
    // and your client.
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(1)))
        .layer(BalanceLayer::new(P2c::default()))
        .layer(OutlierLayer::default())
        .layer(each(PeakEwmaLayer::default()))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        .service(move |_: &Endpoint| pooled.clone());
    let what = "p2c over peak ewma, with outlier detection";
    run(what, client, &addresses, phases).await?;

    let phases = Phases::start().await?;
    let (addresses, rx) = watch::channel(phases.first());
    let pooled: Pooled = Client::builder(TokioExecutor::new()).build_http();
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_secs(1)))
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        .service(move |_: &Endpoint| pooled.clone());
    run("round robin", client, &addresses, phases).await
}

/// hyper's client with a pool of connections: `AuthorityLayer` tells it which endpoint to go to.
type Pooled = Client<HttpConnector, Empty<Bytes>>;
