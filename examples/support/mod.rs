//! What the HTTP examples share: a server that can be killed, a client that outlives it, and a row of a table.

#![allow(dead_code)] // no example uses all of it

use std::{convert::Infallible, fmt, future::ready, io, net::SocketAddr, time::Duration};

use hdrhistogram::Histogram;
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

/// An HTTP server on loopback, 1.1 and 2, that answers every request with its name after a while.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(name: &'static str, takes: Duration) -> io::Result<Self> {
        Self::start_over(name, takes, |stream| ready(Ok(stream))).await
    }

    /// Starts one that speaks HTTP over what `accept` makes of a connection.
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
            // Dropped with the task, and all connections with it.
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

/// Sends 1 000 requests one after the other, of which the 300th finds a server dead, and prints what became of them; fails unless
/// that server is left within a second, and no request fails after that.
///
/// `takes_requests` says whether the balancer sends requests to an address still.
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

/// An error and what it came from.
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
pub(crate) struct Row {
    latencies: Histogram<u64>,
    errors: usize,
}

impl Row {
    pub(crate) fn record(&mut self, took: Duration, ok: bool) {
        self.latencies.saturating_record(took.as_micros() as u64);
        self.errors += usize::from(!ok);
    }
}

impl Default for Row {
    fn default() -> Self {
        let latencies =
            Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order");
        Self {
            latencies,
            errors: 0,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1e3;
        let (requests, errors) = (self.latencies.len(), self.errors);
        write!(
            f,
            "{requests:>8}  {errors:>6}  {:>3.0} ms  {:>3.0} ms",
            millis(0.5),
            millis(0.99)
        )
    }
}
