//! Balances real HTTP requests over three servers while one joins, one leaves and one dies.
//!
//! One of the servers is ten times slower. Round robin sends it a share like any other and waits for it, and
//! goes on sending to the dead one; p2c over Peak-EWMA sees who is slow and who fails, and spares both, and outlier
//! detection keeps the dead one out until a probe succeeds.

mod support;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
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
use support::{Row, Server};
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    BalanceLayer, Endpoint, OutlierLayer, P2c, PeakEwmaLayer, RoundRobin, WatchLayer, each,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    println!("2 000 requests, 50 at a time; server A takes 50 ms, the others 5 ms\n");
    // The stack, bottom up: who exists, what is measured, who is sick, who is chosen, how long it may take.
    let p2c = |rx| {
        ServiceBuilder::new()
            .timeout(Duration::from_secs(1))
            .layer(BalanceLayer::new(P2c::default()))
            .layer(OutlierLayer::default())
            .layer(each(PeakEwmaLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(http_client)
    };
    run("p2c over peak ewma, with outlier detection", p2c).await?;

    let round_robin = |rx| {
        ServiceBuilder::new()
            .timeout(Duration::from_secs(1))
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(WatchLayer::new(rx))
            .service(http_client)
    };
    run("round robin", round_robin).await
}

type HttpRequest = Request<Empty<Bytes>>;

/// Makes the client of one endpoint: hyper's, which keeps a pool of connections to it.
fn http_client(
    endpoint: &Endpoint,
) -> impl Service<HttpRequest, Response = Response<Incoming>, Error = Failed, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let address = *endpoint.address();
    let client: Client<HttpConnector, _> = Client::builder(TokioExecutor::new()).build_http();
    service_fn(move |mut request: HttpRequest| {
        let client = client.clone();
        async move {
            // Where the request goes: the endpoint; what it asks for: the caller's.
            let path = request.uri().path().to_owned();
            let uri = Uri::builder().scheme("http").authority(address.to_string());
            *request.uri_mut() = uri
                .path_and_query(path)
                .build()
                .expect("a valid address and path");
            let answer = client.request(request).await;
            answer.map_err(|source| Failed { address, source })
        }
    })
}

/// Says which server failed a request.
#[derive(Debug)]
struct Failed {
    address: SocketAddr,
    source: hyper_util::client::legacy::Error,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.address)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The rows of the table: by phase, then by server.
type Table = Mutex<BTreeMap<(usize, String), Row>>;

/// Sends 2 000 requests without a pause while the set changes under them; prints who answered how fast.
async fn run<C>(
    policy: &str,
    stack: impl FnOnce(watch::Receiver<Vec<SocketAddr>>) -> C,
) -> Result<(), BoxError>
where
    C: Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let [slow, fast] = [50, 5].map(Duration::from_millis);
    let a = Server::start("A", slow).await?;
    let b = Server::start("B", fast).await?;
    let c = Server::start("C", fast).await?;
    let d = Server::start("D", fast).await?;
    let [a, b, d, c_address] = [a.address, b.address, d.address, c.address];
    let names = BTreeMap::from([(a, "A"), (b, "B"), (c_address, "C"), (d, "D")]);

    let table = Arc::new(Table::default());
    let started = Arc::new(AtomicUsize::new(0));
    let (addresses, rx) = watch::channel(vec![a, b, c_address]);
    let client = stack(rx);
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (client, table, started) = (client.clone(), table.clone(), started.clone());
            let names = names.clone();
            tokio::spawn(async move {
                loop {
                    let number = started.fetch_add(1, Relaxed);
                    if number >= 2000 {
                        return;
                    }
                    let start = Instant::now();
                    let answer = body(client.clone().oneshot(HttpRequest::default())).await;
                    let (server, ok) = match answer {
                        Ok(server) => (server, true),
                        Err(error) => match error.downcast_ref::<Failed>() {
                            Some(Failed { address, .. }) => (names[address].to_owned(), false),
                            None => (error.to_string(), false),
                        },
                    };
                    let mut table = table.lock().expect("no caller panics");
                    let row = table.entry((number / 500, server)).or_default();
                    row.record(start.elapsed(), ok);
                }
            })
        })
        .collect();

    // Meanwhile, after each 500 requests, something happens.
    let reached = async |n| {
        while started.load(Relaxed) < n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    reached(500).await;
    addresses.send_replace(vec![a, b, c_address, d]);
    reached(1000).await;
    addresses.send_replace(vec![b, c_address, d]);
    reached(1500).await;
    c.kill().await;
    for caller in callers {
        caller.await?;
    }

    println!("{policy}\nphase                     server  requests  errors     p50     p99");
    let mut last = None;
    for ((phase, server), row) in table.lock().expect("no caller panics").iter() {
        let names = [
            "A, B and C",
            "D joins",
            "A leaves",
            "C is killed, still listed",
        ];
        let name = if last == Some(phase) {
            ""
        } else {
            names[*phase]
        };
        println!("{name:<25} {server:<6}  {row}");
        last = Some(phase);
    }
    println!();
    Ok(())
}

/// Reads the answer: the name of the server that gave it.
async fn body(
    answer: impl Future<Output = Result<Response<Incoming>, BoxError>>,
) -> Result<String, BoxError> {
    let body = answer.await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
