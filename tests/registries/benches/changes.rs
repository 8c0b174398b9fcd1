//! How soon is a change seen among 10 000 targets, and what do 100 changes a second cost requests?
//!
//! Run: `cargo bench -p tower-lb-registries --bench changes`. Each source sees changes for 60 s;
//! `SECONDS` sets another time.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{
    runtime::Builder,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_lb::{
    Balance, Endpoint, P2c, PeakEwmaLayer, Target,
    discover::{self, Found},
    each,
};
use tower_lb_registries::{backends::Backends, consul::Agent, file::File, kubernetes::ApiServer};

const N: usize = 10_000;

/// What changes the targets: the number of those that are listed beyond `N`, 0 or 1.
trait Changing: Sized {
    const NAME: &'static str;
    fn start() -> impl Future<Output = Self> + Send;
    fn found(&mut self) -> Found;
    fn change(&mut self, more: usize) -> impl Future<Output = ()> + Send;
}

/// The address of a target. Its server is one of the three that there are.
fn address(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250) as u8], 80))
}

/// The sender, and the receiver until it is a source.
struct Streamed(
    mpsc::UnboundedSender<Vec<Target>>,
    Option<mpsc::UnboundedReceiver<Vec<Target>>>,
);

impl Changing for Streamed {
    const NAME: &'static str = "a stream of lists";

    async fn start() -> Self {
        let (lists, rx) = mpsc::unbounded_channel();
        let mut streamed = Self(lists, Some(rx));
        streamed.change(0).await;
        streamed
    }

    fn found(&mut self) -> Found {
        let lists = futures_util::stream::unfold(self.1.take().unwrap(), |mut rx| async move {
            let list = rx.recv().await?;
            Some((Ok::<_, String>(list), rx))
        });
        discover::follow(lists).start().unwrap()
    }

    async fn change(&mut self, more: usize) {
        let list = (0..N + more).map(address).map(Target::new).collect();
        self.0.send(list).unwrap();
    }
}

/// A file, and the two texts that it has in turns.
struct Written(File, [String; 2]);

impl Changing for Written {
    const NAME: &'static str = "file";

    async fn start() -> Self {
        let lines = |n| (0..n).map(|i| format!("{}\n", address(i))).collect();
        let mut written = Self(File::default(), [lines(N), lines(N + 1)]);
        written.change(0).await;
        written
    }

    fn found(&mut self) -> Found {
        self.0.source().start().unwrap()
    }

    async fn change(&mut self, more: usize) {
        self.0.write(&self.1[more]);
    }
}

impl Changing for Agent {
    const NAME: &'static str = "consul";

    async fn start() -> Self {
        let agent = Self::small();
        for i in 0..N {
            let (ip, port) = (address(i).ip().to_string(), address(i).port());
            agent
                .register(&format!("users-{i}"), &ip, port, json!({}))
                .await;
        }
        agent
    }

    fn found(&mut self) -> Found {
        self.source().start().unwrap()
    }

    async fn change(&mut self, more: usize) {
        let (ip, port) = (address(N).ip().to_string(), address(N).port());
        match more {
            0 => self.deregister("one-more").await,
            _ => self.register("one-more", &ip, port, json!({})).await,
        }
    }
}

/// A slice of the hundred targets that begin at a position.
fn slice(from: usize, len: usize) -> Value {
    let endpoint = |i| json!({ "addresses": [address(i).ip().to_string()], "zone": "eu-1a" });
    json!({
        "addressType": "IPv4",
        "endpoints": (from..from + len).map(endpoint).collect::<Vec<_>>(),
        "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }]
    })
}

impl Changing for ApiServer {
    const NAME: &'static str = "kubernetes";

    async fn start() -> Self {
        let api = Self::start();
        for from in (0..N).step_by(100) {
            api.apply(&format!("users-{from:05}"), slice(from, 100));
        }
        api
    }

    fn found(&mut self) -> Found {
        self.source().start().unwrap()
    }

    async fn change(&mut self, more: usize) {
        self.apply("users-09900", slice(N - 100, 100 + more));
    }
}

/// A client of 10 000 endpoints, which are three servers.
type Get = tower::util::BoxCloneSyncService<(), (), BoxError>;

fn client(found: &Found, servers: [SocketAddr; 3]) -> (Get, impl Fn() -> usize) {
    let http = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(HttpConnector::new());
    let services = found.layer(move |endpoint: &Endpoint| {
        let http = http.clone();
        let server = servers[endpoint.address().ip().to_string().len() % 3];
        service_fn(move |()| {
            let request = Request::get(format!("http://{server}/")).body(Empty::new());
            let http = http.clone();
            async move {
                let answer = http.request(request?).await?;
                answer.into_body().collect().await?;
                Ok::<_, BoxError>(())
            }
        })
    });
    let services = each(PeakEwmaLayer::default()).layer(services);
    let (balance, driver) = Balance::pair(services, P2c::default());
    tokio::spawn(driver);
    let counting = balance.clone();
    let client = Get::new(balance.map_err(Into::into));
    (client, move || {
        counting.with_table(|members, _| members.len())
    })
}

/// Sends a request each 2 ms, and returns the 99th percentile of the times from when each was due.
async fn p99(client: &Get, time: Duration) -> Duration {
    let mut due = interval(Duration::from_millis(2));
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + time;
    let mut requests = JoinSet::new();
    while Instant::now() < end {
        let at = due.tick().await;
        let mut client = client.clone();
        requests.spawn(async move {
            client.ready().await.unwrap().call(()).await.unwrap();
            at.elapsed()
        });
    }
    let mut times = requests.join_all().await;
    times.sort();
    times[times.len() * 99 / 100]
}

async fn measure<C: Changing + Send + 'static>(seconds: u64, rounds: usize) {
    // Registry and servers have threads of their own: they would be other machines.
    let others = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let serving = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let backends = serving.spawn(Backends::start(3)).await.unwrap();
    let mut changing = others.spawn(C::start()).await.unwrap();
    let servers = [0, 1, 2].map(|i| backends.address(i));
    let found = changing.found();
    let (client, members) = client(&found, servers);
    let until = async |n: usize| {
        while members() != n {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    };
    until(N).await;
    let mut times = Vec::new();
    for round in 0..2 * rounds {
        // A change that follows soon would be delayed.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let more = 1 - round % 2;
        let start = Instant::now();
        changing.change(more).await;
        until(N + more).await;
        times.push(start.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    let quiet = p99(&client, Duration::from_secs(seconds.min(20))).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let changes = others.spawn(async move {
        let mut due = interval(Duration::from_millis(10));
        let (mut changing, mut count) = (changing, 0);
        while !over.load(Ordering::Relaxed) {
            due.tick().await;
            count += 1;
            changing.change(count % 2).await;
        }
        count
    });
    // What is kept for changes, such as the registry's own events, is there after some seconds.
    p99(&client, Duration::from_secs(seconds.min(10))).await;
    let before = resident();
    let busy = p99(&client, Duration::from_secs(seconds)).await;
    is_over.store(true, Ordering::Relaxed);
    let count = changes.await.unwrap();
    others.shutdown_background();
    serving.shutdown_background();
    println!(
        "{}: one change is seen after {median:.1?} (median; {:.1?} at most); {count} changes in \
         {seconds} s: p99 of requests {quiet:.0?} quiet, {busy:.0?} meanwhile ({:.1} times), \
         {} KiB grown",
        C::NAME,
        times[times.len() - 1],
        busy.as_secs_f64() / quiet.as_secs_f64(),
        resident().saturating_sub(before) >> 10,
    );
}

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let seconds = std::env::var("SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let seconds = if is_test { 1 } else { seconds.unwrap_or(60) };
    let rounds = if is_test { 1 } else { 10 };
    run::<Streamed>(seconds, rounds);
    run::<Written>(seconds, rounds);
    run::<Agent>(seconds, rounds);
    run::<ApiServer>(seconds, rounds);
}

/// Measures a source, if it is among those that the command names, or none is.
fn run<C: Changing + Send + 'static>(seconds: u64, rounds: usize) {
    let names: Vec<_> = std::env::args()
        .skip(1)
        .filter(|name| !name.starts_with("--"))
        .collect();
    if names.is_empty() || names.iter().any(|name| C::NAME.contains(name.as_str())) {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(measure::<C>(seconds, rounds));
    }
}
