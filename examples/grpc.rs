//! One tonic channel for each server, balanced: unary calls and streams; and what tonic's own list of endpoints does.
//!
//! Of three servers one dies. Here it is left within a second, after three failed calls, and with failover at most the call that
//! was under way fails; tonic's `balance_list` goes on sending to it.

#[path = "support/greeter.rs"]
mod greeter;

use std::{net::SocketAddr, time::Duration};

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
    outlive("tonic's balance_list", list, servers, |_| true).await;

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
    let after = outlive("tower-lb", client, servers, |address| {
        let members = streams.endpoints();
        let mut taking = members.iter().filter(|member| member.is_candidate());
        taking.any(|member| member.endpoint().address() == address)
    })
    .await;
    if after.is_none_or(|after| after >= Duration::from_secs(1)) {
        return Err("the dead server was not left within a second".into());
    }

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
    outlive("tower-lb with failover", client, servers, |_| true).await;
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

/// Makes 1 000 calls, of which the 300th finds the first server dead, and prints what became of them. Returns how long after
/// that the server was left, if it was and no call failed from then on.
///
/// `takes_requests` says whether calls are sent to an address still.
async fn outlive<T>(
    what: &str,
    client: T,
    mut servers: Vec<GrpcServer>,
    takes_requests: impl Fn(&SocketAddr) -> bool,
) -> Option<Duration>
where
    T: GrpcService<Body> + Clone,
    T::ResponseBody: http_body::Body + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<BoxError>,
{
    let address = servers[0].address;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut died, mut left) = (Instant::now(), None);
    for number in 1..=1000 {
        if number == 300 {
            servers.remove(0).kill().await;
            died = Instant::now();
        }
        if number >= 300 && left.is_none() && !takes_requests(&address) {
            left = Some((number, died.elapsed()));
        }
        let answer = timeout(Duration::from_millis(250), say(client.clone(), "hello")).await;
        if !matches!(answer, Ok(Ok(_))) {
            let failed = if left.is_some() {
                &mut after
            } else {
                &mut before
            };
            failed.push(number);
        }
        sleep(Duration::from_millis(1)).await;
    }
    print!("{what}: a server died at call 300, {} failed", before.len());
    match (left, before.last()) {
        (Some((number, took)), _) => println!(
            ", {before:?}; it was left at {number}, after {took:.0?}, and then failed {after:?}"
        ),
        (None, Some(last)) => println!(", the last one {last}"),
        (None, None) => println!(),
    }
    let took = left.map(|(_, took)| took);
    took.filter(|_| after.is_empty())
}
