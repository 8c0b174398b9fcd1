//! Balances unary calls and streams over one tonic channel per server, and compares with tonic's
//! own list of endpoints.
//!
//! One of three servers dies. tower-lb stops sending to it within a second, after three failed
//! calls. With failover, at most the call in flight fails. tonic's `balance_list` goes on sending
//! to it.
//!
//! Run: `cargo run -p tower-lb-clients --example grpc`

mod greeter;
mod outlive;

use std::time::Duration;

use greeter::{GrpcServer, count};
use http::Request;
use outlive::outlive;
use tokio::sync::watch;
use tonic::{body::Body, transport::Channel};
use tower::{BoxError, ServiceBuilder, util::MapRequestLayer};
use tower_lb::{
    BalanceLayer, Endpoint, FailoverLayer, InFlight, LeastLoaded, OutlierLayer,
    PendingRequestsLayer, WatchLayer, each,
    http::{CompleteOnBody, GrpcStatus, HttpRetry, UnsentBody},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // 1. tonic's own list.
    let servers = three_servers().await?;
    let endpoints = servers
        .iter()
        .map(|server| Channel::from_shared(format!("http://{}", server.address)))
        .collect::<Result<Vec<_>, _>>()?;
    let list = Channel::balance_list(endpoints.into_iter());
    outlive("tonic's balance_list", list, servers, |_| true).await;

    // 2. tower-lb. A call ends when its body ends, and its status is in the trailers.
    let servers = three_servers().await?;
    let (_addresses, rx) = watch::channel(servers.iter().map(|s| s.address).collect());
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(LeastLoaded::default()))
        .layer(
            OutlierLayer::default()
                .consecutive_failures(3)
                .outcomes(GrpcStatus::new()),
        )
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(WatchLayer::new(rx))
        .service(connect);
    let streams = client.clone();
    let after = outlive("tower-lb", client, servers, |address| {
        let members = streams.members();
        let mut taking = members.iter().filter(|member| member.is_candidate());
        taking.any(|member| member.endpoint().address() == address)
    })
    .await;
    if after.is_none_or(|after| after >= Duration::from_secs(1)) {
        return Err("the dead server was not left within a second".into());
    }

    // 3. A stream counts as in flight while it is open.
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(count(streams.clone(), "on").await?);
    }
    let counts = streams.members();
    let counts = counts
        .iter()
        .map(|member| (member.endpoint().to_string(), member.service().in_flight()));
    println!("ten streams: {:?}", counts.collect::<Vec<_>>());
    drop(open);

    // 4. With failover: a call that no server has begun goes to another one. tonic's bodies are not
    //    `Clone`, so up to 64 KiB of each are kept.
    let servers = three_servers().await?;
    let (_addresses, rx) = watch::channel(servers.iter().map(|s| s.address).collect());
    let client = ServiceBuilder::new()
        .map_request(|request: Request<Body>| {
            request.map(|body| UnsentBody::buffered(body, 64 * 1024))
        })
        .layer(FailoverLayer::new(HttpRetry::new()).copy_with(UnsentBody::copy_request))
        .layer(BalanceLayer::new(LeastLoaded::default()))
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(each(MapRequestLayer::new(
            |request: Request<UnsentBody<Body>>| request.map(Body::new),
        )))
        .layer(WatchLayer::new(rx))
        .service(connect);
    outlive("tower-lb with failover", client, servers, |_| true).await;
    Ok(())
}

/// Returns the channel of one endpoint. It connects on first use and reconnects when needed.
fn connect(endpoint: &Endpoint) -> Channel {
    Channel::builder(
        format!("http://{endpoint}")
            .parse()
            .expect("a socket address is an authority"),
    )
    .connect_timeout(Duration::from_millis(200))
    .connect_lazy()
}

async fn three_servers() -> Result<Vec<GrpcServer>, BoxError> {
    let mut servers = Vec::new();
    for name in ["A", "B", "C"] {
        servers.push(GrpcServer::start(name).await?);
    }
    Ok(servers)
}
