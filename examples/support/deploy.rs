//! Support for a deploy: a server that shuts down gracefully, and callers that never pause.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::Empty;
use hyper::{Request, Response, StatusCode, body::Bytes, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::sleep,
};
use tower::{BoxError, Service, ServiceExt};

/// How long a request takes.
const WORK: Duration = Duration::from_millis(15);

pub(crate) type Body = Empty<Bytes>;

/// A server that can finish its requests and stop, or stop at once.
pub(crate) struct Deployed {
    pub(crate) address: SocketAddr,
    served: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Deployed {
    pub(crate) async fn start() -> Result<Self, BoxError> {
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

    /// Stops once the requests in flight are answered.
    pub(crate) async fn shut_down(self) -> Result<usize, BoxError> {
        let _ = self.stop.send(());
        self.task.await?;
        Ok(self.served.load(Relaxed))
    }

    /// Stops at once, in the middle of its requests.
    pub(crate) fn kill(self) -> usize {
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
    // Dropped with this task, which closes all connections.
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

/// Counts how all requests ended.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) answered: usize,
    pub(crate) errors: Vec<String>,
}

/// Sends one request after the other, until it is told to stop.
pub(crate) async fn call<S>(client: S, tally: Arc<Mutex<Tally>>, stop: Arc<AtomicBool>)
where
    S: Service<Request<Body>, Response = Response<hyper::body::Incoming>, Error = BoxError> + Clone,
{
    while !stop.load(Relaxed) {
        let request = Request::get("http://api.example.com/").body(Body::new());
        let answer = client.clone().oneshot(request.expect("a valid URI")).await;
        if let Ok(mut tally) = tally.lock() {
            match answer {
                Ok(response) if response.status() == StatusCode::OK => tally.answered += 1,
                Ok(response) => tally.errors.push(response.status().to_string()),
                Err(error) => tally.errors.push(error.to_string()),
            }
        }
    }
}
