//! Balances over one hyper client per server: HTTP/1.1 with kept connections, then HTTP/2.
//!
//! Each client connects to its own server, whatever host a URI names. So `Host` and `:authority`
//! stay the service's name. With TLS, certificates are checked against that name, too: let the
//! connector take `https` (`enforce_http(false)`), and wrap it in hyper-rustls's connector.
//! (`axum_fanout` has one pool for all servers, over HTTP/1.1.) One of three servers dies during
//! the run.
//!
//! Run: `cargo run --example hyper_client`

mod support;

use std::{convert::Infallible, iter, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{
        Builder, Client,
        connect::{HttpConnector, HttpInfo},
    },
    rt::TokioExecutor,
};
use support::{outlive, takes_requests, three_servers};
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Endpoint, OutlierLayer, P2c, PendingRequestsLayer, WatchLayer, each,
    http::{CompleteOnBody, HttpStatus},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut builder = Client::builder(TokioExecutor::new());
    run("HTTP/1.1", builder.clone()).await?;
    run("HTTP/2", builder.http2_only(true).clone()).await
}

async fn run(protocol: &str, builder: Builder) -> Result<(), BoxError> {
    let [a, b, c] = three_servers().await?;
    let (_addresses, rx) = tokio::sync::watch::channel(vec![a.address, b.address, c.address]);

    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(
            OutlierLayer::default()
                .consecutive_failures(3)
                .classify(HttpStatus::new()),
        )
        // A request ends when its body ends.
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint| {
            let address = *endpoint.address();
            let resolve =
                service_fn(move |_| async move { Ok::<_, Infallible>(iter::once(address)) });
            builder.build::<_, Empty<Bytes>>(HttpConnector::new_with_resolver(resolve))
        });

    let get = || {
        let request = Request::get("http://api.example.com/");
        request.body(Empty::<Bytes>::new()).unwrap_or_default()
    };
    let response = client.clone().ready().await?.call(get()).await?;
    let server = response
        .extensions()
        .get::<HttpInfo>()
        .map(HttpInfo::remote_addr);
    let body = response.into_body().collect().await?.to_bytes();
    println!("{protocol}: {server:?} says {body:?}");

    let balance = client.clone();
    let read = service_fn(move |request| {
        let client = client.clone();
        async move {
            let response = client.oneshot(request).await?;
            let body = response.into_body().collect();
            Ok::<_, BoxError>(timeout(Duration::from_secs(1), body).await??.to_bytes())
        }
    });
    outlive(protocol, read, get, a, |address| {
        takes_requests(&balance.members(), address)
    })
    .await
}
