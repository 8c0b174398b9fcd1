//! One reqwest client for each server, which reaches it under the service's own name.
//!
//! `resolve` pins the name to the endpoint's address, so that `Host` and, with TLS, the name that certificates are checked against
//! stay the service's. Only the port is the URL's to say, and so part of `Host` where it is not the usual one. Of three servers one dies on the
//! way.

mod support;

use std::time::Duration;

use reqwest::{Client, Method, Request, Url};
use support::{outlive, takes_requests, three_servers};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Classify, Endpoint, Outcome, OutlierLayer, P2c, PendingRequestsLayer, WatchLayer,
    each,
};

const NAME: &str = "api.example.com";

/// The client of one endpoint.
fn connect(
    endpoint: &Endpoint,
) -> impl Service<Request, Response = reqwest::Response, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let address = *endpoint.address();
    let client = Client::builder()
        .resolve(NAME, address)
        .timeout(Duration::from_secs(1))
        .build()
        .expect("without TLS there is nothing that could be missing");
    service_fn(move |mut request: Request| {
        let client = client.clone();
        // `resolve` is about names: without this the request would go to port 80.
        let _ = request.url_mut().set_port(Some(address.port()));
        async move { Ok(client.execute(request).await?) }
    })
}

/// 5xx, and no answer, are failures; what is the request's own fault says nothing.
#[derive(Clone, Copy, Debug)]
struct Statuses;

impl Classify<reqwest::Response, BoxError> for Statuses {
    fn classify(&self, answer: Result<&reqwest::Response, &BoxError>) -> Outcome {
        match answer {
            Ok(response) if response.status().is_server_error() => Outcome::Failure,
            Ok(response) if response.status().is_client_error() => Outcome::Ignore,
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let [a, b, c] = three_servers().await?;
    let (_addresses, rx) = tokio::sync::watch::channel(vec![a.address, b.address, c.address]);
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(
            OutlierLayer::default()
                .consecutive_failures(3)
                .classify(Statuses),
        )
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(connect);

    let url = Url::parse(&format!("http://{NAME}/"))?;
    let get = || Request::new(Method::GET, url.clone());
    let response = client.clone().oneshot(get()).await?;
    println!(
        "{} was reached at {:?}",
        response.url(),
        response.remote_addr()
    );

    let balance = client.clone();
    outlive("reqwest", client, get, a, |address| {
        takes_requests(&balance.endpoints(), address)
    })
    .await
}
