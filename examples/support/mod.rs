//! What the HTTP examples share: a server that can be killed, and a row of a table.

#![allow(dead_code)] // no example uses all of it

use std::{convert::Infallible, fmt, io, net::SocketAddr, time::Duration};

use hdrhistogram::Histogram;
use http_body_util::Full;
use hyper::{Response, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

/// An HTTP server on loopback that answers every request with its name after a while.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(name: &'static str, takes: Duration) -> io::Result<Self> {
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
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
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
