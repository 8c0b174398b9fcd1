//! Four HTTP servers are replaced one by one under load, and no request fails.
//!
//! Each old server is drained first (weight 0: no new requests), taken out of the set when its requests are done, and
//! stopped then; its successor joins on another port. In the end one of the new ones just dies, without notice: that is
//! what the failover is for.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::Empty;
use hyper::{
    Method, Request, Response, StatusCode, Uri, body::Bytes, server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_lb::{
    BalanceLayer, Endpoint, FailoverLayer, InFlight, OutlierLayer, P2c, PendingRequestsLayer,
    Target, WatchLayer, each, http::HttpRetry,
};

const SERVERS: usize = 4;
const CONCURRENCY: usize = 32;
/// How long a request takes.
const WORK: Duration = Duration::from_millis(15);

type Body = Empty<Bytes>;

/// A server that can be told to finish its requests and go, or to go at once.
struct Server {
    address: SocketAddr,
    served: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start() -> Result<Self, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let served = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, served.clone(), stopped));
        Ok(Self {
            address,
            served,
            stop,
            task,
        })
    }

    /// Ends when the requests under way are answered.
    async fn shut_down(self) -> Result<usize, BoxError> {
        let _ = self.stop.send(());
        self.task.await?;
        Ok(self.served.load(Relaxed))
    }

    /// Ends in the middle of whatever it does.
    fn kill(self) -> usize {
        self.task.abort();
        self.served.load(Relaxed)
    }
}

async fn serve(
    listener: TcpListener,
    served: Arc<AtomicUsize>,
    mut stopped: oneshot::Receiver<()>,
) {
    let graceful = GracefulShutdown::new();
    // With this task they end, and their requests with them.
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            Ok((stream, _)) = listener.accept() => stream,
            _ = &mut stopped => break,
        };
        let served = served.clone();
        let answer = service_fn(move |_| {
            let served = served.clone();
            async move {
                sleep(WORK).await;
                served.fetch_add(1, Relaxed);
                Ok::<_, BoxError>(Response::new(Body::new()))
            }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
        connections.spawn(graceful.watch(connection));
    }
    drop(listener);
    graceful.shutdown().await;
}

/// The client of one endpoint: a pool of connections, to which the request's path is sent.
fn connect(
    endpoint: &Endpoint,
) -> impl Service<
    Request<Body>,
    Response = Response<hyper::body::Incoming>,
    Error = BoxError,
    Future: Send,
> + Clone
+ Send
+ Sync
+ use<> {
    let address = *endpoint.address();
    let client: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    ServiceBuilder::new()
        .map_err(BoxError::from)
        .map_request(move |mut request: Request<Body>| {
            let uri = format!("http://{address}{}", request.uri().path());
            *request.uri_mut() = uri.parse().unwrap_or_default();
            request
        })
        .service(client)
}

#[derive(Default)]
struct Tally {
    answered: usize,
    errors: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(Server::start().await?);
    }
    // What a registry would say: address and weight.
    let mut registry: BTreeMap<SocketAddr, u32> =
        servers.iter().map(|server| (server.address, 1)).collect();
    let list = |registry: &BTreeMap<SocketAddr, u32>| {
        let targets = registry.iter();
        targets
            .map(|(&address, &weight)| Target::new(address).weight(weight))
            .collect::<Vec<_>>()
    };
    let (targets, rx) = watch::channel(list(&registry));

    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(OutlierLayer::default())
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(connect);
    let failover = FailoverLayer::new(HttpRetry::new()).layer(client.clone());

    // The load: so many callers, each with one request after the other.
    let tally = Arc::new(Mutex::new(Tally::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CONCURRENCY)
        .map(|_| tokio::spawn(call(failover.clone(), tally.clone(), stop.clone())))
        .collect();
    let answered = || tally.lock().map_or(0, |tally| tally.answered);

    sleep(Duration::from_millis(300)).await;
    let mut successors = Vec::new();
    for old in servers {
        let before = answered();
        let address = old.address;
        let new = Server::start().await?;
        registry.insert(new.address, 1);
        targets.send_replace(list(&registry));
        // Drain: no new requests, those under way go on.
        registry.insert(address, 0);
        targets.send_replace(list(&registry));
        let is_busy = || {
            let members = client.endpoints();
            let mut members = members.iter();
            let member = members.find(|member| *member.endpoint().address() == address);
            member.is_some_and(|member| member.weight() > 0 || member.service().in_flight() > 0)
        };
        while is_busy() {
            sleep(Duration::from_millis(1)).await;
        }
        registry.remove(&address);
        targets.send_replace(list(&registry));
        let served = timeout(Duration::from_secs(5), old.shut_down()).await??;
        sleep(Duration::from_millis(200)).await;
        println!(
            "{address} was drained after {served} requests; {} took its place; {} answers meanwhile",
            new.address,
            answered() - before,
        );
        successors.push(new);
    }
    // No notice at all: the registry hears of it later.
    let before = answered();
    if let Some(unlucky) = successors.pop() {
        let address = unlucky.address;
        let served = unlucky.kill();
        sleep(Duration::from_millis(200)).await;
        registry.remove(&address);
        targets.send_replace(list(&registry));
        println!(
            "{address} was killed after {served} requests; {} answers meanwhile",
            answered() - before
        );
    }
    stop.store(true, Relaxed);
    for caller in callers {
        caller.await?;
    }
    let tally = tally.lock().map_err(|_| "a caller panicked")?;
    println!(
        "{} requests were answered, {} errors",
        tally.answered,
        tally.errors.len()
    );
    for error in tally.errors.iter().take(5) {
        println!("    {error}");
    }
    if tally.errors.is_empty() {
        Ok(())
    } else {
        Err("a rolling deploy should cost no request".into())
    }
}

async fn call<S>(client: S, tally: Arc<Mutex<Tally>>, stop: Arc<AtomicBool>)
where
    S: Service<Request<Body>, Response = Response<hyper::body::Incoming>, Error = BoxError> + Clone,
{
    while !stop.load(Relaxed) {
        let mut request = Request::new(Body::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = Uri::from_static("/");
        let answer = client.clone().oneshot(request).await;
        if let Ok(mut tally) = tally.lock() {
            match answer {
                Ok(response) if response.status() == StatusCode::OK => tally.answered += 1,
                Ok(response) => tally.errors.push(response.status().to_string()),
                Err(error) => tally.errors.push(error.to_string()),
            }
        }
    }
}
