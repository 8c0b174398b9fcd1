//! Keeps each of 10 000 sessions on one of three HTTP servers while one server leaves and returns.
//!
//! Four handles of one balancer send from two threads. The session is a header, hashed onto a ring.
//! When a server leaves, only its own sessions move. When it returns, all of them come back.
//!
//! Run: `cargo run --example sticky_sessions`

mod support;

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::Server;
use tokio::{sync::watch, task::JoinSet};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_lb::{
    BalanceLayer, Endpoint, RingHash, WatchLayer,
    http::{AuthorityLayer, key::Header},
};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), BoxError> {
    let mut servers = Vec::new();
    for name in ["A", "B", "C"] {
        servers.push(Server::start(name, Duration::ZERO).await?);
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    let (discovery, rx) = watch::channel(addresses.clone());

    let pooled: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RingHash::by_key(Header::new("session"))))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        .service(move |_: &Endpoint| pooled.clone());

    println!("{SESSIONS} sessions over {HANDLES} handles on 2 threads\n");
    println!("            A      B      C    moved since the first phase");
    let at_first = serve(&client).await?;
    print("all three", &at_first, &at_first);

    discovery.send_replace(vec![addresses[0], addresses[2]]);
    while client.members().len() > 2 {
        tokio::task::yield_now().await;
    }
    let without = serve(&client).await?;
    print("without B", &without, &at_first);

    discovery.send_replace(addresses);
    while client.members().len() < 3 {
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

/// Sends two requests of every session by different handles. Returns the server that answered both.
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

/// Prints how many sessions each server has, and how many sessions of each server have moved.
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
