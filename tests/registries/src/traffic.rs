//! A client behind the whole stack, which sends without a pause.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{task::JoinSet, time::sleep};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_lb::{
    BalanceLayer, Endpoint, FailoverLayer, Idempotent, P2c, PeakEwmaLayer, discover::Found, each,
};

use crate::{backends::Backends, program::until};

/// Whether a request that has failed is tried once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// It is, at another endpoint.
    On,
    /// It is not.
    Off,
}

/// Asks for a path; the answer is the address of the server that answered.
pub type Stack = BoxCloneSyncService<(), SocketAddr, BoxError>;

/// Builds the stack that a user would, over a pool of HTTP/1.1 connections.
#[must_use]
pub fn stack(found: &Found, retries: Retries) -> Stack {
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>({
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector
    });
    let balanced = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PeakEwmaLayer::default()))
        .layer(found.clone())
        .service(move |endpoint: &Endpoint| {
            let (client, address) = (client.clone(), *endpoint.address());
            service_fn(move |()| {
                let client = client.clone();
                async move {
                    let uri: Uri = format!("http://{address}/").parse()?;
                    let request = Request::get(uri).body(Empty::new())?;
                    let answer = client.request(request).await?;
                    let body = answer.into_body().collect().await?.to_bytes();
                    Ok::<SocketAddr, BoxError>(std::str::from_utf8(&body)?.parse()?)
                }
            })
        });
    match retries {
        Retries::On => {
            BoxCloneSyncService::new(FailoverLayer::new(Idempotent::all()).layer(balanced))
        }
        Retries::Off => BoxCloneSyncService::new(balanced),
    }
}

/// Clients that send, one request after the other, until they are stopped.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    sent: AtomicUsize,
    failures: Mutex<Vec<String>>,
    answered: Mutex<BTreeSet<SocketAddr>>,
}

impl Traffic {
    /// Starts to send, with so many requests in flight.
    #[must_use]
    pub fn start(stack: &Stack, in_flight: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight {
            let (stack, shared) = (stack.clone(), shared.clone());
            tasks.spawn(async move {
                while !shared.is_over.load(Ordering::Relaxed) {
                    match stack.clone().oneshot(()).await {
                        Ok(address) => {
                            shared.answered.lock().unwrap().insert(address);
                        }
                        Err(error) => {
                            let chain = std::iter::successors(
                                Some(&*error as &dyn std::error::Error),
                                |e| e.source(),
                            );
                            let words: Vec<_> = chain.map(ToString::to_string).collect();
                            shared.failures.lock().unwrap().push(words.join(": "));
                        }
                    }
                    shared.sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { shared, tasks }
    }

    /// Returns how many requests have ended.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Waits until exactly these servers answer.
    ///
    /// # Panics
    ///
    /// If they don't within 90 s: the pause after many failures is up to a minute.
    pub async fn until_answered_by(&self, servers: &[SocketAddr]) {
        let servers: BTreeSet<_> = servers.iter().copied().collect();
        for _ in 0..3_000 {
            self.shared.answered.lock().unwrap().clear();
            sleep(Duration::from_millis(30)).await;
            if *self.shared.answered.lock().unwrap() == servers {
                return;
            }
        }
        let answered = self.shared.answered.lock().unwrap().clone();
        panic!("{answered:?} answer, not {servers:?}");
    }

    /// Stops, and returns the number of requests, and what the failed ones said.
    pub async fn stop(mut self) -> (usize, Vec<String>) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let failures = std::mem::take(&mut *self.shared.failures.lock().unwrap());
        (self.sent(), failures)
    }
}

/// Says to a registry which servers there are.
pub trait Registry {
    /// Lists exactly these servers.
    fn list(&mut self, servers: &[SocketAddr]) -> impl Future<Output = ()>;
}

/// Sends throughout while servers come and go, and counts what is lost.
///
/// First each change is announced before the server goes: no request may be lost, without any
/// retry. Then servers die unannounced: none may be lost with failover. At least 10 000 requests
/// each.
///
/// # Panics
///
/// If a request is lost.
pub async fn no_request_is_lost<R: Registry>(
    registry: &mut R,
    backends: &mut Backends,
    found: &Found,
) {
    let lists = |servers: &[SocketAddr]| {
        let expected: BTreeSet<_> = servers.iter().copied().collect();
        let found = found.clone();
        async move {
            until("the source lists the servers", || {
                let targets = found.targets();
                targets.iter().map(|t| t.address).collect::<BTreeSet<_>>() == expected
            })
            .await
        }
    };
    for retries in [Retries::Off, Retries::On] {
        registry.list(&backends.addresses(&[0, 1, 2])).await;
        lists(&backends.addresses(&[0, 1, 2])).await;
        let stack = stack(found, retries);
        let traffic = Traffic::start(&stack, 8);
        let mut round = 0;
        while traffic.sent() < 10_000 || round < 4 {
            let [leaves, a, b, joins] = [0, 1, 2, 3].map(|i| (round + i) % 4);
            let after = backends.addresses(&[a, b, joins]);
            if retries == Retries::On {
                backends.kill(leaves).await;
                traffic
                    .until_answered_by(&backends.addresses(&[a, b]))
                    .await;
            }
            registry.list(&after).await;
            lists(&after).await;
            traffic.until_answered_by(&after).await;
            if retries == Retries::Off {
                backends.stop(leaves).await;
            }
            backends.start_one(leaves);
            round += 1;
        }
        let (sent, failures) = traffic.stop().await;
        assert!(
            failures.is_empty(),
            "{retries:?}: {} of {sent} requests lost: {failures:?}",
            failures.len()
        );
        println!(
            "{}, retries {retries:?}: {sent} requests, {round} changes, none lost",
            found.name()
        );
    }
}
