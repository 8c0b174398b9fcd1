//! Keeps 10 000 sessions each on one of three real HTTP servers while one of those leaves and returns.
//!
//! Four handles of one balancer send from two threads; the session is a header, hashed onto a ring. When a server
//! leaves, only its own sessions move, and all of them come home.

mod support;

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::Server;
use tokio::{sync::watch, task::JoinSet};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{BalanceLayer, Endpoint, RingHash, WatchLayer, hash};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), BoxError> {
    let mut servers = Vec::new();
    for name in ["A", "B", "C"] {
        servers.push(Server::start(name, Duration::ZERO).await?);
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    let (discovery, rx) = watch::channel(addresses.clone());

    let by_session = hash::borrowed(|request: &HttpRequest| {
        request
            .headers()
            .get("session")
            .map(|value| value.as_bytes())
    });
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RingHash::by_key(by_session)))
        .layer(WatchLayer::new(rx))
        .service(http_client);

    println!("{SESSIONS} sessions over {HANDLES} handles on 2 threads\n");
    println!("            A      B      C    moved since the first phase");
    let at_first = serve(&client).await?;
    print("all three", &at_first, &at_first);

    discovery.send_replace(vec![addresses[0], addresses[2]]);
    while client.endpoints().len() > 2 {
        tokio::task::yield_now().await;
    }
    let without = serve(&client).await?;
    print("without B", &without, &at_first);

    discovery.send_replace(addresses);
    while client.endpoints().len() < 3 {
        tokio::task::yield_now().await;
    }
    let again = serve(&client).await?;
    print("B is back", &again, &at_first);

    let stayed = |(was, is): (&String, &String)| was == is || was == "B";
    if !at_first.iter().zip(&without).all(stayed) || again != at_first {
        return Err("a session moved that should not have".into());
    }
    println!("\nOnly the sessions of B have moved, and all of them have come home.");
    Ok(())
}

const SESSIONS: usize = 10_000;
const HANDLES: usize = 4;

type HttpRequest = Request<Empty<Bytes>>;

/// Sends two requests of every session, by different handles; returns the server that answered both.
async fn serve<S>(client: &S) -> Result<Vec<String>, BoxError>
where
    S: Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let mut tasks = JoinSet::new();
    for handle in 0..HANDLES {
        let mut client = client.clone();
        tasks.spawn(async move {
            let mut served = Vec::new();
            let is_ours =
                |session: &usize| [handle, (handle + 1) % HANDLES].contains(&(session % HANDLES));
            for session in (0..SESSIONS).filter(is_ours) {
                let request = Request::get("/").header("session", format!("session-{session}"));
                let request = request.body(Empty::new())?;
                let answer = client.ready().await?.call(request).await?;
                let server = answer.into_body().collect().await?.to_bytes();
                served.push((session, String::from_utf8_lossy(&server).into_owned()));
            }
            Ok::<_, BoxError>(served)
        });
    }
    let mut servers = vec![String::new(); SESSIONS];
    while let Some(served) = tasks.join_next().await {
        for (session, server) in served?? {
            if !servers[session].is_empty() && servers[session] != server {
                return Err(format!("session {session} was served by two servers").into());
            }
            servers[session] = server;
        }
    }
    Ok(servers)
}

/// Prints how many sessions each server has, and how many of whose have moved.
fn print(phase: &str, now: &[String], at_first: &[String]) {
    let count = |name| now.iter().filter(|server| *server == name).count();
    let moved = |name| {
        let of_name = |(was, is): &(&String, &String)| *was == name && is != was;
        at_first.iter().zip(now).filter(of_name).count()
    };
    let [a, b, c] = ["A", "B", "C"].map(count);
    let [from_a, from_b, from_c] = ["A", "B", "C"].map(moved);
    println!(
        "{phase}  {a:>5}  {b:>5}  {c:>5}    {from_a} from A, {from_b} from B, {from_c} from C"
    );
}

/// Makes the client of one endpoint: hyper's, which keeps a pool of connections to it.
fn http_client(
    endpoint: &Endpoint,
) -> impl Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let address = *endpoint.address();
    let client: Client<HttpConnector, _> = Client::builder(TokioExecutor::new()).build_http();
    service_fn(move |mut request: HttpRequest| {
        let client = client.clone();
        async move {
            *request.uri_mut() =
                Uri::try_from(format!("http://{address}{}", request.uri().path()))?;
            Ok(client.request(request).await?)
        }
    })
}
