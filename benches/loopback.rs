//! What does a balancer cost a real request? CPU time of the client for each one over loopback, beside clients that
//! have none: hyper-util over HTTP/1.1 with kept connections, and tonic.
//!
//! The servers are another process. All clients take turns, so that what disturbs one disturbs all; the ratio is the
//! median of those within one turn, and the first client again says how much of it is noise.

#[path = "../examples/support/greeter.rs"]
mod greeter;

use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Command, Stdio},
    task::{Context, Poll},
    time::Duration,
};

use greeter::{GrpcServer, say};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::{net::TcpListener, runtime, task::JoinSet};
use tonic::transport::Channel;
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt, balance::p2c, buffer::Buffer,
    discover::ServiceList, load, service_fn,
};
use tower_lb::{
    BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed,
    http::{AuthorityLayer, CompleteOnBody},
};

fn main() -> Result<(), BoxError> {
    let has = |argument: &str| std::env::args().any(|given| given == argument);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if has(SERVE) {
        return runtime.block_on(serve());
    }
    let (turns, requests) = if has("--test") { (1, 1) } else { (151, 100) };
    // The servers' process ends when its input does: with this one, whatever happens here.
    let mut servers = Command::new(std::env::current_exe()?)
        .arg(SERVE)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(servers.stdout.take().ok_or("no output")?).lines();
    let addresses = lines.take(2 * N).map(|line| Ok(line?.parse()?));
    let addresses = addresses.collect::<Result<Vec<SocketAddr>, BoxError>>()?;
    runtime.block_on(async {
        http(&addresses[..N], turns, requests).await?;
        grpc(&addresses[N..], turns, requests).await
    })?;
    drop(servers.stdin.take());
    servers.wait()?;
    Ok(())
}

async fn http(addresses: &[SocketAddr], turns: usize, requests: usize) -> Result<(), BoxError> {
    type Pooled = Client<HttpConnector, Empty<Bytes>>;
    let pooled = || -> Pooled { Client::builder(TokioExecutor::new()).build_http() };
    // A server's service, which knows its URI.
    let to_server = |client: &Pooled, address: SocketAddr| {
        let (client, uri) = (client.clone(), to_uri(address));
        service_fn(move |mut request: Request<Empty<Bytes>>| {
            *request.uri_mut() = uri.clone();
            client.request(request)
        })
    };
    let mut bench = Bench::new("HTTP/1.1", turns, requests);

    for what in ["round robin of each task", "the same again"] {
        let pooled = pooled();
        let services = addresses.iter().map(|&address| to_server(&pooled, address));
        let services: Vec<_> = services.collect();
        bench.client(what, move |task, n| gets(Round::new(&services, task), n));
    }
    let client = pooled();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(addresses.to_vec()))
        .service(move |endpoint: &Endpoint| to_server(&client, *endpoint.address()));
    bench.client("tower-lb", move |_, n| gets(balance.clone(), n));
    let client = pooled();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(AuthorityLayer::new())
        .layer(fixed(addresses.to_vec()))
        .service(move |_: &Endpoint| client.clone());
    bench.client("tower-lb, CompleteOnBody, AuthorityLayer", move |_, n| {
        gets(balance.clone(), n)
    });
    let client = pooled();
    let services = addresses.iter().map(|&address| {
        let service = to_server(&client, address);
        load::PendingRequests::new(service, load::CompleteOnResponse::default())
    });
    let list = ServiceList::new::<Request<Empty<Bytes>>>(services.collect::<Vec<_>>());
    let balance = Buffer::new(p2c::Balance::new(list), 128);
    bench.client("tower, Buffer and Balance", move |_, n| {
        gets(balance.clone(), n)
    });
    bench.run().await
}

async fn grpc(addresses: &[SocketAddr], turns: usize, requests: usize) -> Result<(), BoxError> {
    let endpoints = addresses
        .iter()
        .map(|&address| Channel::builder(to_uri(address)));
    let mut bench = Bench::new("gRPC", turns, requests);

    for what in ["channels, round robin of each task", "the same again"] {
        let channels: Vec<_> = endpoints.clone().map(|e| e.connect_lazy()).collect();
        bench.client(what, move |task, n| says(Round::new(&channels, task), n));
    }
    let connect =
        |endpoint: &Endpoint| Channel::builder(to_uri(*endpoint.address())).connect_lazy();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(addresses.to_vec()))
        .service(connect);
    bench.client("tower-lb", move |_, n| says(balance.clone(), n));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(fixed(addresses.to_vec()))
        .service(connect);
    bench.client("tower-lb, CompleteOnBody", move |_, n| {
        says(balance.clone(), n)
    });
    let list = Channel::balance_list(endpoints);
    bench.client("tonic's balance_list", move |_, n| says(list.clone(), n));
    bench.run().await
}

fn to_uri(address: SocketAddr) -> Uri {
    let uri = format!("http://{address}/").parse();
    uri.expect("a socket address is an authority")
}

/// What is to be had without a balancer: each task goes round by itself.
struct Round<S> {
    services: Vec<S>,
    next: usize,
}

impl<S: Clone> Round<S> {
    fn new(services: &[S], task: usize) -> Self {
        Self {
            services: services.to_vec(),
            next: task % services.len(),
        }
    }
}

impl<Req, S: Service<Req>> Service<Req> for Round<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services[self.next].poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        let future = self.services[self.next].call(request);
        self.next = (self.next + 1) % self.services.len();
        future
    }
}

/// Sends requests, each when the response to the last one was read to its end.
async fn gets<S, B>(mut service: S, requests: usize) -> Result<(), BoxError>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Error: Into<BoxError>>,
{
    for _ in 0..requests {
        let service = service.ready().await.map_err(Into::into)?;
        let request = Request::get("http://service/").body(Empty::new())?;
        let response = service.call(request).await.map_err(Into::into)?;
        response.into_body().collect().await.map_err(Into::into)?;
    }
    Ok(())
}

async fn says<S, B>(mut service: S, requests: usize) -> Result<(), BoxError>
where
    S: Service<Request<tonic::body::Body>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Error: Into<BoxError>> + Send + 'static,
{
    for _ in 0..requests {
        say(&mut service, "hello").await?;
    }
    Ok(())
}

/// Clients that take turns.
struct Bench {
    name: &'static str,
    turns: usize,
    requests: usize,
    clients: Vec<(&'static str, Turn)>,
}

/// Starts the tasks of one turn.
type Turn = Box<dyn Fn() -> JoinSet<Result<(), BoxError>>>;

impl Bench {
    fn new(name: &'static str, turns: usize, requests: usize) -> Self {
        Self {
            name,
            turns,
            requests,
            clients: Vec::new(),
        }
    }

    /// Adds a client, by what each task does: its number is given, and how many requests it has to make.
    fn client<F>(&mut self, what: &'static str, task: impl Fn(usize, usize) -> F + 'static)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let requests = self.requests;
        let turn = move || (0..TASKS).map(|number| task(number, requests)).collect();
        self.clients.push((what, Box::new(turn)));
    }

    async fn run(self) -> Result<(), BoxError> {
        let mut nanos = vec![Vec::new(); self.clients.len()];
        for turn in 0..=self.turns {
            // Each turn begins with another one: who comes after whom is nobody's merit.
            for number in (0..self.clients.len()).map(|n| (n + turn) % self.clients.len()) {
                let start = cpu_time();
                let mut tasks = self.clients[number].1();
                while let Some(done) = tasks.join_next().await {
                    done??;
                }
                // The first turn connects.
                if turn > 0 {
                    let took = (cpu_time() - start).as_nanos() as f64;
                    nanos[number].push(took / (TASKS * self.requests) as f64);
                }
            }
        }
        println!(
            "{}, {TASKS} tasks, {N} servers: CPU time of a request",
            self.name
        );
        for ((what, _), all) in self.clients.iter().zip(&nanos) {
            let ratios = all.iter().zip(&nanos[0]).map(|(this, first)| this / first);
            println!(
                "    {what:<40} {:6.2} us, {:+.1} %",
                median(all.iter().copied()) / 1000.0,
                (median(ratios) - 1.0) * 100.0,
            );
        }
        Ok(())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of all threads of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The servers' process: prints the addresses of N HTTP servers and of N for gRPC, and serves until its input ends.
async fn serve() -> Result<(), BoxError> {
    for _ in 0..N {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hello = |_: Request<Incoming>| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
                };
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), hyper::service::service_fn(hello));
                tokio::spawn(connection);
            }
        });
    }
    let mut servers = Vec::new();
    for _ in 0..N {
        let server = GrpcServer::start("A").await?;
        println!("{}", server.address);
        servers.push(server);
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

const SERVE: &str = "serve";
const TASKS: usize = 64;
const N: usize = 4;
