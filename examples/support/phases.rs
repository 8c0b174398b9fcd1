//! The quickstart's load: 2 000 requests, during which servers join, leave and die.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
};
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, Service, ServiceExt};
use tower_lb::http::EndpointError;

use super::{Row, Server};

type HttpRequest = Request<Empty<Bytes>>;

/// The servers of one run.
pub(crate) struct Phases {
    /// The slow one, two fast ones, and one that joins.
    servers: [Server; 4],
}

/// The rows of the table: by phase, then by server.
type Table = Mutex<BTreeMap<(usize, String), Row>>;

impl Phases {
    /// Starts the servers.
    pub(crate) async fn start() -> io::Result<Self> {
        let [slow, fast] = [50, 5].map(Duration::from_millis);
        let servers = [
            Server::start("A", slow).await?,
            Server::start("B", fast).await?,
            Server::start("C", fast).await?,
            Server::start("D", fast).await?,
        ];
        Ok(Self { servers })
    }

    /// Returns the servers of the first phase.
    pub(crate) fn first(&self) -> Vec<SocketAddr> {
        let [a, b, c, _] = &self.servers;
        vec![a.address, b.address, c.address]
    }
}

/// Sends 2 000 requests without a pause while the set changes. Prints how fast each server
/// answered.
pub(crate) async fn run<C>(
    what: &str,
    client: C,
    addresses: &watch::Sender<Vec<SocketAddr>>,
    phases: Phases,
) -> Result<(), BoxError>
where
    C: Service<HttpRequest, Response = Response<Incoming>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let [a, b, c, d] = phases.servers;
    let names = ["A", "B", "C", "D"].map(str::to_owned);
    let all = [a.address, b.address, c.address, d.address].map(|address| address.to_string());
    let names: Arc<BTreeMap<String, String>> = Arc::new(all.into_iter().zip(names).collect());
    let table = Arc::new(Table::default());
    let started = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let (client, names) = (client.clone(), names.clone());
            tokio::spawn(call(client, names, table.clone(), started.clone()))
        })
        .collect();

    // Meanwhile, the set or a server changes after each 500 requests.
    let reached = async |n| {
        while started.load(Relaxed) < n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    reached(500).await;
    addresses.send_replace(vec![a.address, b.address, c.address, d.address]);
    reached(1000).await;
    addresses.send_replace(vec![b.address, c.address, d.address]);
    reached(1500).await;
    c.kill().await;
    for caller in callers {
        caller.await?;
    }
    print(what, &table);
    Ok(())
}

/// Sends one request after the other until all callers together have started 2 000.
async fn call<C>(
    client: C,
    names: Arc<BTreeMap<String, String>>,
    table: Arc<Table>,
    started: Arc<AtomicUsize>,
) where
    C: Service<HttpRequest, Response = Response<Incoming>, Error = BoxError> + Clone,
{
    loop {
        let number = started.fetch_add(1, Relaxed);
        if number >= 2000 {
            return;
        }
        let start = Instant::now();
        let request = Request::get("http://api.example.com/").body(Empty::new());
        let answer = client.clone().oneshot(request.expect("a valid URI"));
        let (server, ok) = match read(answer).await {
            Ok(server) => (server, true),
            Err(error) => match error.downcast_ref::<EndpointError>() {
                Some(error) => (names[error.endpoint()].clone(), false),
                None => (error.to_string(), false),
            },
        };
        let mut table = table.lock().expect("no caller panics");
        let row = table.entry((number / 500, server)).or_default();
        row.record(start.elapsed(), ok);
    }
}

/// Reads the name of the server from its answer.
async fn read(
    answer: impl Future<Output = Result<Response<Incoming>, BoxError>>,
) -> Result<String, BoxError> {
    let body = answer.await?.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn print(what: &str, table: &Table) {
    println!("{what}\nphase                     server  requests  errors     p50     p99");
    let mut last = None;
    for ((phase, server), row) in table.lock().expect("no caller panics").iter() {
        let phases = [
            "A, B and C",
            "D joins",
            "A leaves",
            "C is killed, still listed",
        ];
        let name = if last == Some(phase) {
            ""
        } else {
            phases[*phase]
        };
        println!("{name:<25} {server:<6}  {row}");
        last = Some(phase);
    }
    println!();
}
