//! Four HTTP servers are replaced one by one under load, and no request fails.
//!
//! Each old server is first drained (weight 0: no new requests). Once its requests are done, it is
//! removed from the set and stopped. Its successor joins on another port. At the end, one of the
//! new servers dies without notice; failover covers this.
//!
//! Run: `cargo run --example rolling_deploy`

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::deploy::{Body, Deployed, Tally, call};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tower::{BoxError, Layer, ServiceBuilder};
use tower_lb::{
    BalanceLayer, Endpoint, FailoverLayer, InFlight, OutlierLayer, P2c, PendingRequestsLayer,
    Target, WatchLayer, each,
    http::{AuthorityLayer, HttpRetry},
};

const SERVERS: usize = 4;
const CONCURRENCY: usize = 32;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(Deployed::start().await?);
    }
    // What a registry would list: address and weight.
    let mut registry: BTreeMap<SocketAddr, u32> =
        servers.iter().map(|server| (server.address, 1)).collect();
    let list = |registry: &BTreeMap<SocketAddr, u32>| {
        let targets = registry.iter();
        targets
            .map(|(&address, &weight)| Target::new(address).weight(weight))
            .collect::<Vec<_>>()
    };
    let (targets, rx) = watch::channel(list(&registry));

    let pooled: Client<HttpConnector, Body> = Client::builder(TokioExecutor::new()).build_http();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(OutlierLayer::default())
        .layer(each(PendingRequestsLayer::default()))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        .service(move |_: &Endpoint| pooled.clone());
    let failover = FailoverLayer::new(HttpRetry::new()).layer(client.clone());

    // The load: `CONCURRENCY` callers, each of which sends one request after the other.
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
        let new = Deployed::start().await?;
        registry.insert(new.address, 1);
        targets.send_replace(list(&registry));
        // Drain: no new requests, but requests in flight go on.
        registry.insert(address, 0);
        targets.send_replace(list(&registry));
        let is_busy = || {
            let members = client.members();
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
    // Without notice: the registry removes the server only later.
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
