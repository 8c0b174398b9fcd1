//! An axum handler holds the balancer in its state and asks three backends at once.
//!
//! axum clones the state for each request, and the balancer with it. Its handles are cheap to clone
//! and share members and loads. One of three servers dies during the run. The callers of the
//! handler do not notice, because a request that cannot connect goes to another server.
//!
//! Run: `cargo run -p tower-lb-clients --example axum_fanout`

#[path = "../support/mod.rs"]
mod support;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::{Causes, outlive, takes_requests, three_servers};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_lb::{
    BalanceLayer, Endpoint, FailoverLayer, LeastLoaded, OutlierLayer, PendingRequestsLayer,
    WatchLayer, each,
    http::{AuthorityLayer, HttpRetry, HttpStatus},
};

type Backends =
    BoxCloneSyncService<Request<Empty<Bytes>>, hyper::Response<hyper::body::Incoming>, BoxError>;

/// Sends three requests and joins their answers.
async fn fan_out(State(backends): State<Backends>) -> Result<String, (StatusCode, String)> {
    let ask = |path: &'static str| {
        let backends = backends.clone();
        async move {
            let request = Request::get(format!("http://backend{path}"));
            let response = backends.oneshot(request.body(Empty::new())?).await?;
            let body = response.into_body().collect().await?.to_bytes();
            Ok::<_, BoxError>(String::from_utf8_lossy(&body).into_owned())
        }
    };
    let answers = tokio::try_join!(ask("/user"), ask("/cart"), ask("/offers"));
    let bad_gateway = |error: BoxError| (StatusCode::BAD_GATEWAY, Causes(&*error).to_string());
    let (user, cart, offers) = answers.map_err(bad_gateway)?;
    Ok(format!(
        "user by {user}, cart by {cart}, offers by {offers}"
    ))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let [a, b, c] = three_servers().await?;
    let (_addresses, rx) = tokio::sync::watch::channel(vec![a.address, b.address, c.address]);
    let pooled: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(LeastLoaded::default()))
        .layer(OutlierLayer::default().classify(HttpStatus::new()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        .service(move |_: &Endpoint| pooled.clone());
    let backends: Backends = BoxCloneSyncService::new(
        ServiceBuilder::new()
            .layer(FailoverLayer::new(HttpRetry::new()))
            .service(balance.clone()),
    );

    let app = Router::new().route("/", get(fan_out)).with_state(backends);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });

    let caller: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let ask = service_fn(move |request: Request<Empty<Bytes>>| {
        let mut caller = caller.clone();
        async move {
            let response = caller.call(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let body = String::from_utf8_lossy(&body).into_owned();
            if status.is_success() {
                Ok(body)
            } else {
                Err(BoxError::from(body))
            }
        }
    });
    let request = || {
        let request = Request::get(&url);
        request.body(Empty::<Bytes>::new()).unwrap_or_default()
    };
    println!("{}", ask.clone().oneshot(request()).await?);
    outlive("axum", ask, request, a, |address| {
        takes_requests(&balance.members(), address)
    })
    .await
}
