//! Scripted services under paused time.

use std::{
    collections::HashMap,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::{BoxError, Service, ServiceExt};
use tower_lb::{Endpoint, P2c};

/// A server whose behaviour the test sets. Clones share their state.
#[derive(Clone)]
pub(crate) struct Server(Arc<State>);

struct State {
    name: usize,
    behaviour: Mutex<Behaviour>,
    pub(crate) calls: AtomicUsize,
    /// How often a client was asked whether it is ready.
    asked: AtomicUsize,
    /// The clients that there are.
    clients: AtomicUsize,
    gate: Mutex<Gate>,
}

/// What a server does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Behaviour {
    Answer(Duration),
    Fail(Duration),
    Hang,
}

/// What decides the result of `poll_ready`.
#[derive(Default)]
struct Gate {
    /// `None`: always ready.
    permits: Option<usize>,
    failing: bool,
    wakers: Vec<Waker>,
}

/// One client of a server: ready while it holds one of the server's permits.
pub(crate) struct Client {
    server: Server,
    holds_permit: bool,
    ready: bool,
    /// Lives as long as the service and its clones.
    _alive: Arc<()>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed as told")
    }
}

impl std::error::Error for Failed {}

impl Server {
    pub(crate) fn new(name: usize, behaviour: Behaviour) -> Self {
        Self(Arc::new(State {
            name,
            behaviour: Mutex::new(behaviour),
            calls: AtomicUsize::new(0),
            asked: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            gate: Mutex::default(),
        }))
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.0.behaviour.lock().unwrap() = behaviour;
    }

    /// Limits the server to `permits` calls from now on; further calls of this add permits.
    pub(crate) fn allow(&self, permits: usize) {
        let mut gate = self.0.gate.lock().unwrap();
        *gate.permits.get_or_insert(0) += permits;
        gate.wake();
    }

    pub(crate) fn fail_readiness(&self, failing: bool) {
        let mut gate = self.0.gate.lock().unwrap();
        gate.failing = failing;
        gate.wake();
    }

    pub(crate) fn permits(&self) -> usize {
        self.0.gate.lock().unwrap().permits.unwrap_or(usize::MAX)
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(Relaxed)
    }

    pub(crate) fn asked(&self) -> usize {
        self.0.asked.load(Relaxed)
    }

    pub(crate) fn clients(&self) -> usize {
        self.0.clients.load(Relaxed)
    }

    pub(crate) fn client(&self) -> Client {
        self.0.clients.fetch_add(1, Relaxed);
        Client {
            server: self.clone(),
            holds_permit: false,
            ready: false,
            _alive: Arc::new(()),
        }
    }
}

impl Gate {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Client {
    /// Returns a token that is dropped with the last clone of this service.
    pub(crate) fn alive(&self) -> std::sync::Weak<()> {
        Arc::downgrade(&self._alive)
    }
}

impl Clone for Client {
    fn clone(&self) -> Self {
        self.server.0.clients.fetch_add(1, Relaxed);
        Self {
            server: self.server.clone(),
            holds_permit: false,
            ready: false,
            _alive: self._alive.clone(),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.server.0.clients.fetch_sub(1, Relaxed);
        if self.holds_permit {
            self.server.allow(1);
        }
    }
}

impl<Req> Service<Req> for Client {
    type Response = usize;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<usize, Failed>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.server.0.asked.fetch_add(1, Relaxed);
        let mut gate = self.server.0.gate.lock().unwrap();
        if gate.failing {
            return Poll::Ready(Err(Failed));
        }
        if !self.holds_permit {
            match &mut gate.permits {
                None => {}
                Some(0) => {
                    gate.wakers.push(cx.waker().clone());
                    return Poll::Pending;
                }
                Some(permits) => {
                    *permits -= 1;
                    self.holds_permit = true;
                }
            }
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called before ready");
        self.holds_permit = false;
        self.server.0.calls.fetch_add(1, Relaxed);
        let (name, behaviour) = (self.server.0.name, *self.server.0.behaviour.lock().unwrap());
        Box::pin(async move {
            match behaviour {
                Behaviour::Answer(Duration::ZERO) => Ok(name),
                Behaviour::Answer(after) => {
                    sleep(after).await;
                    Ok(name)
                }
                Behaviour::Fail(after) => {
                    sleep(after).await;
                    Err(Failed)
                }
                Behaviour::Hang => std::future::pending().await,
            }
        })
    }
}

/// Makes servers `0..` with the given behaviours.
pub(crate) fn servers(behaviours: &[Behaviour]) -> Vec<Server> {
    (0..)
        .zip(behaviours)
        .map(|(i, &b)| Server::new(i, b))
        .collect()
}

/// Returns a factory of clients for endpoints whose addresses are the servers' numbers.
pub(crate) fn factory(servers: &[Server]) -> impl Fn(&Endpoint<usize>) -> Client + Clone + use<> {
    let servers: HashMap<usize, Server> = servers.iter().cloned().enumerate().collect();
    move |endpoint| servers[endpoint.address()].client()
}

/// Sends `per_second` requests for `seconds`, and drops each one after `patience`. Returns the
/// calls of each server in the whole run and in its last ten seconds.
pub(crate) async fn send<S>(
    client: S,
    servers: &[Server],
    per_second: u32,
    seconds: u64,
    patience: Option<Duration>,
) -> (Vec<usize>, Vec<usize>)
where
    S: Service<(), Error = BoxError, Future: Send> + Clone + Send + 'static,
    S::Response: Send,
{
    let start = Instant::now();
    let counts = || servers.iter().map(Server::calls).collect::<Vec<_>>();
    let before = counts();
    let mut late = before.clone();
    for i in 0..per_second * seconds as u32 {
        let at = start + Duration::from_secs(1) * i / per_second;
        sleep_until(at).await;
        if at <= start + Duration::from_secs(seconds.saturating_sub(10)) {
            late = counts();
        }
        let request = client.clone().oneshot(());
        tokio::spawn(async move {
            match patience {
                Some(patience) => drop(timeout(patience, request).await),
                None => drop(request.await),
            }
        });
    }
    tokio::task::yield_now().await;
    let difference = |from: &[usize]| {
        counts()
            .iter()
            .zip(from)
            .map(|(to, from)| to - from)
            .collect()
    };
    (difference(&before), difference(&late))
}

/// Returns the share of the calls that went to one server.
pub(crate) fn share(calls: &[usize], server: usize) -> f64 {
    calls[server] as f64 / calls.iter().sum::<usize>().max(1) as f64
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Yields often enough for the driver to act on everything it has been told.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// Polls readiness once.
pub(crate) async fn poll_ready_once<S, Req>(service: &mut S) -> Poll<Result<(), S::Error>>
where
    S: Service<Req>,
{
    poll_fn(|cx| Poll::Ready(service.poll_ready(cx))).await
}

/// Returns a P2c and prints its seed, so that a failing run can be repeated.
pub(crate) fn p2c(seed: u64) -> P2c {
    println!("seed {seed}");
    P2c::seeded(seed)
}

/// Calls the service once it is ready.
pub(crate) async fn start<S: Service<(), Error: fmt::Debug>>(service: &mut S) -> S::Future {
    service.ready().await.unwrap().call(())
}
