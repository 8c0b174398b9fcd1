//! Measures what a balancer costs a real request: the client's CPU time per request over loopback.
//! Compares with clients without a balancer: hyper-util over HTTP/1.1 with kept connections, and
//! tonic.
//!
//! The servers run in another process. All clients take turns, so a disturbance affects all of
//! them. They use the same connections where they allow a choice. Each ratio is the median of the
//! ratios within one turn.
//!
//! In clients without a balancer, each task chooses a server in turn or at random. Once two tasks
//! that go round meet at a server, they stay together and their requests share a write to its
//! connection. Tasks that choose at random need more writes, and so does a balancer. The balancer's
//! own cost is therefore its difference from the random client.
//!
//! `cargo bench --bench loopback -- 601` takes 601 turns, for less noise; the default is 151.

#[path = "../../examples/clients/greeter.rs"]
mod greeter;

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
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
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom};
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
    let turns = std::env::args().find_map(|given| given.parse().ok());
    let (turns, requests) = if has("--test") {
        (1, 1)
    } else {
        (turns.unwrap_or(151), 100)
    };
    // The servers' process ends when its input closes, so it ends with this process in any case.
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
    let pooled: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    // The service of one server, which knows its URI. A balancer clones it for each request, so it
    // is a single pointer.
    let client = pooled.clone();
    let to_server = move |address: SocketAddr| {
        let server = Arc::new((client.clone(), to_uri(address)));
        service_fn(move |mut request: Request<Empty<Bytes>>| {
            let (client, uri) = &*server;
            *request.uri_mut() = uri.clone();
            client.request(request)
        })
    };
    let mut bench = Bench::new("HTTP/1.1", turns, requests);

    let services: Vec<_> = addresses.iter().copied().map(&to_server).collect();
    let these = services.clone();
    bench.client("round robin of each task", move |task, n| {
        gets(Alone::in_turn(&these, task), n)
    });
    bench.client("random of each task", move |task, n| {
        gets(Alone::at_random(&services, task), n)
    });
    let service = to_server.clone();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(addresses.to_vec()))
        .service(move |endpoint: &Endpoint| service(*endpoint.address()));
    bench.client("tower-lb", move |_, n| gets(balance.clone(), n));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(AuthorityLayer::new())
        .layer(fixed(addresses.to_vec()))
        .service(move |_: &Endpoint| pooled.clone());
    bench.client("tower-lb, CompleteOnBody, AuthorityLayer", move |_, n| {
        gets(balance.clone(), n)
    });
    let services = addresses.iter().map(|&address| {
        load::PendingRequests::new(to_server(address), load::CompleteOnResponse::default())
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
    let channels: Vec<_> = endpoints.clone().map(|e| e.connect_lazy()).collect();
    let targets = addresses.iter().copied().zip(channels.clone());
    let targets: HashMap<SocketAddr, Channel> = targets.collect();
    let to_server = move |endpoint: &Endpoint| targets[endpoint.address()].clone();
    let mut bench = Bench::new("gRPC", turns, requests);

    let these = channels.clone();
    bench.client("channels, round robin of each task", move |task, n| {
        says(Alone::in_turn(&these, task), n)
    });
    bench.client("channels, random of each task", move |task, n| {
        says(Alone::at_random(&channels, task), n)
    });
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(addresses.to_vec()))
        .service(to_server.clone());
    bench.client("tower-lb", move |_, n| says(balance.clone(), n));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(
            PendingRequestsLayer::default().completion(CompleteOnBody::new()),
        ))
        .layer(fixed(addresses.to_vec()))
        .service(to_server);
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

/// The baseline without a balancer: each task chooses a server itself.
struct Alone<S> {
    services: Vec<S>,
    next: usize,
    /// `None` if the task takes the servers in turn.
    random: Option<SmallRng>,
}

impl<S: Clone> Alone<S> {
    fn in_turn(services: &[S], task: usize) -> Self {
        Self {
            services: services.to_vec(),
            next: task % services.len(),
            random: None,
        }
    }

    fn at_random(services: &[S], task: usize) -> Self {
        let random = Some(SmallRng::seed_from_u64(task as u64));
        Self {
            random,
            ..Self::in_turn(services, task)
        }
    }
}

impl<Req, S: Service<Req>> Service<Req> for Alone<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.services[self.next].poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        let future = self.services[self.next].call(request);
        self.next = match &mut self.random {
            Some(rng) => rng.random_range(0..self.services.len()),
            None => (self.next + 1) % self.services.len(),
        };
        future
    }
}

/// Sends requests one by one, each after the last response was read to its end.
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

    /// Adds a client. `task` gets the number of the task and the number of requests to send.
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
        let mut order: Vec<_> = (0..self.clients.len()).collect();
        let mut rng = SmallRng::seed_from_u64(1);
        for turn in 0..=self.turns {
            // A random order, so that no client gains from the one that runs before it.
            order.shuffle(&mut rng);
            for &number in &order {
                let start = cpu_time();
                let mut tasks = self.clients[number].1();
                while let Some(done) = tasks.join_next().await {
                    done??;
                }
                // The first turn connects and is not measured.
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
            let [_, took, _] = quartiles(all.iter().copied());
            let [in_turn, at_random] = [&nanos[0], &nanos[1]].map(|alone| beside(all, alone));
            println!(
                "    {what:<40} {:6.2} us, {in_turn} beside round robin, {at_random} beside random",
                took / 1000.0,
            );
        }
        Ok(())
    }
}

/// Formats how much more `this` takes than `other`, in percent. The range in parentheses would hold
/// the median of as many other turns 19 times out of 20.
fn beside(this: &[f64], other: &[f64]) -> String {
    let ratios = this.iter().zip(other).map(|(this, other)| this / other);
    let [low, ratio, high] = quartiles(ratios);
    let within = 1.57 * (high - low) / (this.len() as f64).sqrt();
    format!("{:+.1} % (+-{:.1})", (ratio - 1.0) * 100.0, within * 100.0)
}

fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// Returns the CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs the servers' process: prints the addresses of N HTTP and N gRPC servers, and serves until
/// its input ends.
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
