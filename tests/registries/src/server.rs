//! An HTTP server that can go away and come back at the same port.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpSocket, task::JoinSet};

use crate::program::free_port;

/// The body of an answer, in as many pieces as it comes.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What answers a request. The body of the request is not read.
pub type Answer =
    dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync;

/// An HTTP/1.1 server.
pub struct Server {
    address: SocketAddr,
    answer: Arc<Answer>,
    tasks: JoinSet<()>,
}

impl Server {
    /// Starts a server at a free port of 127.0.0.1.
    pub fn start<F, Answered>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Answered + Send + Sync + 'static,
        Answered: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut server = Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST))),
            answer: Arc::new(move |request| Box::pin(answer(request))),
            tasks: JoinSet::new(),
        };
        server.restart();
        server
    }

    /// Returns where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks all connections, and takes no new one.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Listens again, at the same port.
    pub fn restart(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(1024).unwrap();
        self.address = listener.local_addr().unwrap();
        let answer = self.answer.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Some(_) = connections.join_next() => continue,
                };
                let Ok((stream, _)) = accepted else { continue };
                let answer = answer.clone();
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                connections.spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }

    /// Breaks all connections, and listens again at once.
    pub async fn break_connections(&mut self) {
        self.stop().await;
        self.restart();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// An answer of one piece.
pub fn text(status: u16, text: impl Into<Bytes>) -> Response<Body> {
    let piece = Ok(text.into());
    pieces(status, stream::iter([piece]))
}

/// An answer in pieces. An error breaks the connection.
pub fn pieces(
    status: u16,
    pieces: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Response<Body> {
    let frames = pieces.map(|piece| piece.map(Frame::data));
    let body = BodyExt::boxed_unsync(StreamBody::new(frames));
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

/// Returns the value of a parameter in a query, decoded.
#[must_use]
pub fn parameter(uri: &http::Uri, name: &str) -> Option<String> {
    parameters(uri)
        .into_iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

/// Returns all parameters in a query, decoded.
#[must_use]
pub fn parameters(uri: &http::Uri) -> Vec<(String, String)> {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.into_owned().collect()
}
