//! gRPC over real sockets: streams, statuses in trailers, a server that dies.
#![allow(clippy::unwrap_used)]

#[path = "../../../examples/clients/greeter.rs"]
mod greeter;

use ::http::Request;
use greeter::{GrpcServer, count, say};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tonic::{body::Body, transport::Channel};
use tower::{ServiceBuilder, util::MapRequestLayer};
use tower_lb::{
    http::{CompleteOnBody, GrpcStatus, HttpRetry, UnsentBody},
    *,
};

fn connect(endpoint: &Endpoint) -> Channel {
    Channel::builder(format!("http://{endpoint}").parse().unwrap()).connect_lazy()
}

async fn servers(n: usize) -> Vec<GrpcServer> {
    let mut servers = Vec::new();
    for name in ["A", "B", "C", "D"].into_iter().take(n) {
        servers.push(GrpcServer::start(name).await.unwrap());
    }
    servers
}

fn addresses(servers: &[GrpcServer]) -> Vec<std::net::SocketAddr> {
    servers.iter().map(|server| server.address).collect()
}

#[tokio::test]
async fn long_streams_spread_evenly_and_count_until_they_end() {
    let mut servers = servers(4).await;
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(LeastLoaded::seeded(1)))
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(fixed(addresses(&servers)))
        .service(connect);
    let in_flight = |client: &Balance<_, PendingRequests<Channel, CompleteOnBody>, _, _>| {
        let members = client.members();
        members
            .iter()
            .map(|member| member.service().in_flight())
            .collect::<Vec<_>>()
    };
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = count(client.clone(), "on").await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().text, "0");
        streams.push(stream);
    }
    let counts = in_flight(&client);
    assert!(
        counts.iter().all(|count| (24..=26).contains(count)),
        "{counts:?}"
    );
    // A stream ends when its reader drops it or when its server ends it.
    streams.truncate(99);
    assert_eq!(in_flight(&client).iter().sum::<usize>(), 99);
    for server in &mut servers {
        server.ticks = watch::channel(0).0;
    }
    for mut stream in streams {
        while let Some(message) = stream.next().await {
            message.unwrap();
        }
    }
    assert_eq!(in_flight(&client), [0; 4]);
}

/// A stream's status comes in the trailers, after its first message. A refused unary call has its
/// status in the headers.
#[tokio::test]
async fn a_status_in_trailers_or_headers_reaches_the_classifier() {
    let servers = servers(2).await;
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(Random::seeded(1)))
        .layer(
            OutlierLayer::default()
                .consecutive_failures(3)
                .outcomes(GrpcStatus::new()),
        )
        .layer(fixed(addresses(&servers)))
        .service(connect);
    let ejected = || {
        let members = client.members();
        members
            .iter()
            .filter(|member| member.endpoint().ejection().is_some())
            .count()
    };
    for _ in 0..20 {
        let stream = count(client.clone(), "on").await.unwrap();
        drop(stream);
    }
    assert_eq!(
        ejected(),
        0,
        "a stream that is dropped says nothing of its server"
    );
    for _ in 0..20 {
        let mut stream = count(client.clone(), "break").await.unwrap();
        stream.next().await.unwrap().unwrap();
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
    // One of two endpoints is ejected; the last one never is.
    assert_eq!(ejected(), 1);
    let status = say(client.clone(), "refuse").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn a_server_that_dies_costs_few_calls_and_with_failover_one_at_most() {
    for failover in [false, true] {
        let mut servers = servers(3).await;
        let outliers = OutlierLayer::default()
            .consecutive_failures(3)
            .outcomes(GrpcStatus::new());
        let attempts = if failover { 3 } else { 1 };
        let client = ServiceBuilder::new()
            .map_request(|request: Request<Body>| request.map(UnsentBody::new))
            .layer(
                FailoverLayer::new(HttpRetry::new())
                    .attempts(attempts)
                    .copy_with(UnsentBody::copy_request),
            )
            .layer(BalanceLayer::new(P2c::seeded(1)))
            .layer(outliers)
            .layer(each(
                PendingRequestsLayer::default().completion(CompleteOnBody::new()),
            ))
            .layer(each(MapRequestLayer::new(
                |request: Request<UnsentBody<Body>>| request.map(Body::new),
            )))
            .layer(fixed(addresses(&servers)))
            .service(connect);
        for _ in 0..30 {
            say(client.clone(), "hello").await.unwrap();
        }
        servers.remove(0).kill().await;
        let mut failed = Vec::new();
        for call in 0..300 {
            if let Err(status) = say(client.clone(), "hello").await {
                failed.push((call, status));
            }
        }
        // A call on a connection that is just closing has not failed to connect, so it is not
        // retried.
        let most = if failover { 1 } else { 4 };
        assert!(failed.len() <= most, "{failed:?}");
        assert!(failed.iter().all(|(call, _)| *call < 100), "{failed:?}");
    }
}
