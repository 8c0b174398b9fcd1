//! What the HTTP examples share: a server that can be killed, a client that goes on without it, and
//! a row of a table.

#![allow(dead_code)] // no example uses all of it

pub(crate) mod deploy;
pub(crate) mod phases;

use std::{convert::Infallible, fmt, future::ready, io, net::SocketAddr, time::Duration};

use http_body_util::Full;
use hyper::{Response, body::Bytes, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tower::{BoxError, Service, ServiceExt};
use tower_lb::Member;

/// An HTTP/1.1 and HTTP/2 server on loopback that answers with its name after a while.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(name: &'static str, takes: Duration) -> io::Result<Self> {
        Self::start_over(name, takes, |stream| ready(Ok(stream))).await
    }

    /// Starts a server that speaks HTTP over the stream that `accept` makes of a connection.
    pub(crate) async fn start_over<F, Io>(
        name: &'static str,
        takes: Duration,
        accept: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = io::Result<Io>> + Send + 'static,
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answer = service_fn(move |_| async move {
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(
                name.as_bytes(),
            ))))
        });
        let task = tokio::spawn(async move {
            // Dropped with the task, which closes all connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let accepted = accept(stream);
                connections.spawn(async move {
                    if let Ok(stream) = accepted.await {
                        let connections = auto::Builder::new(TokioExecutor::new());
                        let stream = TokioIo::new(stream);
                        let _ = connections.serve_connection(stream, answer).await;
                    }
                });
            }
        });
        Ok(Self { address, task })
    }

    /// Closes the listener and every connection.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Starts three servers.
pub(crate) async fn three_servers() -> io::Result<[Server; 3]> {
    let start = |name| Server::start(name, Duration::from_millis(1));
    Ok([start("A").await?, start("B").await?, start("C").await?])
}

/// Sends 1 000 requests one after the other, kills a server before the 300th, and prints how they
/// ended. Fails unless requests stop going to that server within a second and none fails after
/// that.
///
/// `takes_requests` returns whether the balancer still sends requests to an address.
pub(crate) async fn outlive<S, Req>(
    what: &str,
    client: S,
    request: impl Fn() -> Req,
    victim: Server,
    takes_requests: impl Fn(&SocketAddr) -> bool,
) -> Result<(), BoxError>
where
    S: Service<Req, Error = BoxError> + Clone,
{
    let address = victim.address;
    let mut victim = Some(victim);
    let (mut before, mut after, mut last) = (Vec::new(), Vec::new(), None);
    let (mut died, mut left) = (None, None);
    for number in 1..=1000 {
        if number == 300 {
            if let Some(victim) = victim.take() {
                victim.kill().await;
            }
            died = Some(Instant::now());
        }
        let has_left = died.is_some() && !takes_requests(&address);
        if has_left && left.is_none() {
            left = died.map(|died| (number, died.elapsed()));
        }
        if let Err(error) = client.clone().oneshot(request()).await {
            let failed = if has_left { &mut after } else { &mut before };
            failed.push(number);
            last = Some(error);
        }
    }
    let Some((number, took)) = left else {
        return Err(format!("{what}: {address} died and was never left").into());
    };
    println!("{what}: {address} died at request 300 and was left at {number}, after {took:.0?}");
    println!("    requests {before:?} failed before that, {after:?} after");
    if let Some(error) = last {
        println!("    the last one: {}", Causes(&*error));
    }
    if took < Duration::from_secs(1) && after.is_empty() {
        Ok(())
    } else {
        Err(format!("{what}: requests failed, or it took too long").into())
    }
}

/// Returns whether the balancer sends requests to this address.
pub(crate) fn takes_requests<S>(members: &[Member<SocketAddr, S>], address: &SocketAddr) -> bool {
    let mut taking = members.iter().filter(|member| member.is_candidate());
    taking.any(|member| member.endpoint().address() == address)
}

/// Displays an error and its sources.
pub(crate) struct Causes<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// One row of a table: requests, errors, p50 and p99.
#[derive(Default)]
pub(crate) struct Row {
    latencies: Vec<Duration>,
    errors: usize,
}

impl Row {
    pub(crate) fn record(&mut self, took: Duration, ok: bool) {
        self.latencies.push(took);
        self.errors += usize::from(!ok);
    }

    /// Returns the latency that this share of the requests does not exceed.
    fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        let last = sorted.len().saturating_sub(1);
        let at = (last as f64 * share).ceil() as usize;
        sorted.get(at).copied().unwrap_or_default()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99] = [0.5, 0.99].map(|share| self.quantile(share).as_secs_f64() * 1e3);
        let (requests, errors) = (self.latencies.len(), self.errors);
        write!(
            f,
            "{requests:>8}  {errors:>6}  {p50:>3.0} ms  {p99:>3.0} ms"
        )
    }
}
