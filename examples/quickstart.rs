//! Balances real HTTP requests over three servers while one joins, one leaves and one dies.
//!
//! One of the servers is ten times slower. Round robin sends it a share like any other and waits for it, and
//! goes on sending to the dead one; p2c over Peak-EWMA sees who is slow and who fails, and spares both.

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::{Percentiles, Server};
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{BalanceLayer, Endpoint, P2c, PeakEwmaLayer, RoundRobin, WatchLayer, each};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    println!("2 000 requests, 50 at a time; server A takes 50 ms, the others 5 ms\n");
    let (addresses, rx) = watch::channel(Vec::new());
    // The stack, bottom up: who exists, what is measured, who is chosen, how long it may take.
    let p2c = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PeakEwmaLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(http_client);
    run("p2c over peak ewma", p2c, addresses).await?;

    let (addresses, rx) = watch::channel(Vec::new());
    let round_robin = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(WatchLayer::new(rx))
        .service(http_client);
    run("round robin", round_robin, addresses).await
}

type HttpRequest = Request<Empty<Bytes>>;

/// Makes the client of one endpoint: hyper's, which keeps a pool of connections to it.
fn http_client(
    endpoint: &Endpoint,
) -> impl Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let authority = endpoint.address().to_string();
    let client: Client<HttpConnector, _> = Client::builder(TokioExecutor::new()).build_http();
    service_fn(move |mut request: HttpRequest| {
        let (client, authority) = (client.clone(), authority.clone());
        async move {
            // Where the request goes: the endpoint; what it asks for: the caller's.
            let uri = Uri::builder().scheme("http").authority(authority);
            *request.uri_mut() = uri.path_and_query(request.uri().path()).build()?;
            Ok(client.request(request).await?)
        }
    })
}

/// Sends through four phases, and prints who answered how fast.
async fn run<C>(
    policy: &str,
    client: C,
    addresses: watch::Sender<Vec<SocketAddr>>,
) -> Result<(), BoxError>
where
    C: Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let a = Server::start("A", Duration::from_millis(50)).await?;
    let b = Server::start("B", Duration::from_millis(5)).await?;
    let c = Server::start("C", Duration::from_millis(5)).await?;
    let d = Server::start("D", Duration::from_millis(5)).await?;
    println!("{policy}\nphase                 server  requests  errors     p50     p99");
    addresses.send_replace(vec![a.address, b.address, c.address]);
    send("A, B, C", &client).await;
    addresses.send_replace(vec![a.address, b.address, c.address, d.address]);
    send("D joins", &client).await;
    addresses.send_replace(vec![b.address, c.address, d.address]);
    send("A leaves", &client).await;
    // Killed but still listed: its connections are refused until discovery notices.
    c.kill().await;
    send("C is killed", &client).await;
    println!();
    Ok(())
}

/// Sends 500 requests, 50 at a time.
async fn send<C>(phase: &str, client: &C)
where
    C: Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let answers: Arc<Mutex<BTreeMap<String, Percentiles>>> = Arc::default();
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (client, answers) = (client.clone(), answers.clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    let start = Instant::now();
                    let answer = body(client.clone().oneshot(request())).await;
                    let server = answer.clone().unwrap_or_else(|| "failed".into());
                    let mut answers = answers.lock().expect("no caller panics");
                    answers
                        .entry(server)
                        .or_default()
                        .record(start.elapsed(), answer.is_some());
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no caller panics");
    }
    let mut phase = phase;
    for (server, row) in answers.lock().expect("no caller panics").iter() {
        println!("{phase:<20}  {server:<6}  {row}");
        phase = "";
    }
}

fn request() -> HttpRequest {
    Request::new(Empty::new())
}

/// Reads the answer: the name of the server that gave it.
async fn body(
    answer: impl Future<Output = Result<Response<Incoming>, BoxError>>,
) -> Option<String> {
    let body = answer
        .await
        .ok()?
        .into_body()
        .collect()
        .await
        .ok()?
        .to_bytes();
    Some(String::from_utf8_lossy(&body).into_owned())
}
