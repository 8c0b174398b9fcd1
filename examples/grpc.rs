//! One tonic channel for each server, balanced: unary calls and streams; and what tonic's own list of endpoints does.
//!
//! Of three servers one dies. Here it is left after three failed calls, and with failover none fails; tonic's `balance_list`
//! goes on sending to it.

#[path = "support/greeter.rs"]
mod greeter;

use std::time::Duration;

use greeter::{GrpcServer, count, say};
use http::Request;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{body::Body, client::GrpcService, transport::Channel};
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
    outlive("tonic's balance_list", list, servers).await;

    // 2. Ours. A call is over when its body is, and its status is in the trailers.
    let servers = three_servers().await?;
    let (_addresses, rx) = watch::channel(servers.iter().map(|s| s.address).collect());
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(LeastLoaded::default()))
        .layer(
            OutlierLayer::default()
                .consecutive_failures(3)
                .classify(GrpcStatus::new())
                .completion(CompleteOnBody::classify(GrpcStatus::new())),
        )
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(WatchLayer::new(rx))
        .service(connect);
    let streams = client.clone();
    outlive("tower-lb", client, servers).await;

    // 3. Streams count for as long as they are open.
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(count(streams.clone(), "on").await?);
    }
    let counts = streams.endpoints();
    let counts = counts
        .iter()
        .map(|member| (member.endpoint().to_string(), member.service().in_flight()));
    println!("ten streams: {:?}", counts.collect::<Vec<_>>());
    drop(open);

    // 4. With failover: a call that could not connect goes to another server. tonic's bodies are not `Clone`, and need
    // not be, for nothing of this one was sent.
    let servers = three_servers().await?;
    let (_addresses, rx) = watch::channel(servers.iter().map(|s| s.address).collect());
    let client = ServiceBuilder::new()
        .map_request(|request: Request<Body>| request.map(UnsentBody::new))
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
    outlive("tower-lb with failover", client, servers).await;
    Ok(())
}

/// The channel of one endpoint: it connects when it is first used, and again when it has to.
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

/// Makes 1 000 calls, of which the 300th finds the first server dead, and prints what became of them.
async fn outlive<T>(what: &str, client: T, mut servers: Vec<GrpcServer>)
where
    T: GrpcService<Body> + Clone,
    T::ResponseBody: http_body::Body + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<BoxError>,
{
    let (mut failed, mut died, mut last) = (0, Instant::now(), None);
    for number in 1..=1000 {
        if number == 300 {
            servers.remove(0).kill().await;
            died = Instant::now();
        }
        let answer = timeout(Duration::from_millis(250), say(client.clone(), "hello")).await;
        if !matches!(answer, Ok(Ok(_))) {
            failed += 1;
            last = Some(died.elapsed());
        }
        sleep(Duration::from_millis(1)).await;
    }
    let took = died.elapsed();
    match last {
        None => println!("{what}: no call failed"),
        Some(last) => println!(
            "{what}: {failed} of 700 calls failed, the last one {} ms after the server died; {} ms in all",
            last.as_millis(),
            took.as_millis()
        ),
    }
}
