//! One pooled hyper client for all servers: the balancer writes the chosen one's address into each request.
//!
//! HTTP/1.1 with kept connections, then HTTP/2. Of three servers one dies on the way.

mod support;

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::{outlive, takes_requests, three_servers};
use tokio::time::timeout;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Endpoint, OutlierLayer, P2c, PendingRequestsLayer, WatchLayer, each,
    http::{AuthorityLayer, CompleteOnBody, HttpStatus},
};

type Pooled = Client<HttpConnector, Empty<Bytes>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let http1: Pooled = Client::builder(TokioExecutor::new()).build_http();
    run("HTTP/1.1", http1).await?;
    let http2: Pooled = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    run("HTTP/2", http2).await
}

async fn run(protocol: &str, pooled: Pooled) -> Result<(), BoxError> {
    let [a, b, c] = three_servers().await?;
    let (_addresses, rx) = tokio::sync::watch::channel(vec![a.address, b.address, c.address]);

    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(
            OutlierLayer::default()
                .consecutive_failures(3)
                .classify(HttpStatus::new()),
        )
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        // One pool, in which each endpoint has connections of its own.
        .service(move |_: &Endpoint| pooled.clone());

    let get = || {
        let request = Request::get("http://api.example.com/");
        request.body(Empty::<Bytes>::new()).unwrap_or_default()
    };
    let response = client.clone().ready().await?.call(get()).await?;
    let endpoint = response.extensions().get::<Endpoint>().cloned();
    let body = response.into_body().collect().await?.to_bytes();
    println!("{protocol}: {endpoint:?} says {body:?}");

    let balance = client.clone();
    // A request is over when its body is read.
    let read = service_fn(move |request| {
        let client = client.clone();
        async move {
            let response = client.oneshot(request).await?;
            let body = response.into_body().collect();
            Ok::<_, BoxError>(timeout(Duration::from_secs(1), body).await??.to_bytes())
        }
    });
    outlive(protocol, read, get, a, |address| {
        takes_requests(&balance.endpoints(), address)
    })
    .await
}
