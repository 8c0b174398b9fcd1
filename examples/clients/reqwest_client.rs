//! Balances over one reqwest client per server, over TLS and under the service's own name.
//!
//! `resolve` pins the name to the endpoint's address and port. `Host` and the name that
//! certificates are checked against stay the service's. URLs must not name a port, because it would
//! replace the endpoint's port. One of three servers dies during the run.
//!
//! Run: `cargo run -p tower-lb-clients --example reqwest_client`

#[path = "../support/mod.rs"]
mod support;
mod tls;

use std::time::Duration;

use reqwest::{Certificate, Client, Method, Request, Response, Url};
use support::{Server, outlive, takes_requests};
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_lb::{
    BalanceLayer, Classify, Endpoint, Outcome, OutlierLayer, P2c, PendingRequestsLayer, WatchLayer,
    each,
};

const NAME: &str = "api.example.com";

/// Counts 5xx and errors as failures. A 4xx is the request's own fault and is neutral.
#[derive(Clone, Copy, Debug)]
struct Statuses;

impl Classify<Response, reqwest::Error> for Statuses {
    fn classify(&self, answer: Result<&Response, &reqwest::Error>) -> Outcome {
        match answer {
            Ok(response) if response.status().is_server_error() => Outcome::Failure,
            Ok(response) if response.status().is_client_error() => Outcome::Neutral,
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (acceptor, certificate) = tls::identity(NAME)?;
    let start = |name| {
        let acceptor = acceptor.clone();
        let takes = Duration::from_millis(1);
        Server::start_over(name, takes, move |stream| acceptor.accept(stream))
    };
    let [a, b, c] = [start("A").await?, start("B").await?, start("C").await?];
    let root = Certificate::from_der(&certificate)?;
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
        .service(move |endpoint: &Endpoint| {
            let client = Client::builder()
                .resolve(NAME, *endpoint.address())
                // Leave this out if a public authority signed the certificate.
                .tls_certs_only([root.clone()])
                .timeout(Duration::from_secs(1));
            client.build().expect("a valid certificate")
        });

    let url = Url::parse(&format!("https://{NAME}/"))?;
    let get = || Request::new(Method::GET, url.clone());
    let response = client.clone().oneshot(get()).await?;
    println!(
        "{} was reached at {:?}",
        response.url(),
        response.remote_addr()
    );

    let balance = client.clone();
    outlive("reqwest", client, get, a, |address| {
        takes_requests(&balance.members(), address)
    })
    .await
}
