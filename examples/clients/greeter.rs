//! A hand-written gRPC service, equal to what `tonic-build` generates from
//!
//! ```proto
//! package hello;
//! service Greeter {
//!     rpc Say(Text) returns (Text);
//!     rpc Count(Text) returns (stream Text);
//! }
//! message Text { string text = 1; }
//! ```

#![allow(dead_code)] // not all of it is used everywhere

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{
    Request, Response, Status,
    body::Body,
    client::{Grpc, GrpcService},
};
use tonic_prost::ProstCodec;
use tower::{BoxError, Service, service_fn};

/// The only message type.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Text {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
}

/// The server's side. Answers with its name, and streams a message for each tick.
#[derive(Clone)]
pub(crate) struct Greeter {
    name: &'static str,
    /// Each value is sent as a message on every stream. The streams end when the sender is dropped.
    ticks: watch::Receiver<u32>,
}

/// Runs a server on loopback that can be killed.
pub(crate) struct GrpcServer {
    pub(crate) address: SocketAddr,
    pub(crate) ticks: watch::Sender<u32>,
    task: JoinHandle<()>,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Text, Status>> + Send>>;

impl GrpcServer {
    pub(crate) async fn start(name: &'static str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (ticks, rx) = watch::channel(0);
        let greeter = Greeter { name, ticks: rx };
        let task = tokio::spawn(async move {
            // Dropped with the task, which closes all connections.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(greeter.clone());
                connections.spawn(async move {
                    let connections = auto::Builder::new(TokioExecutor::new()).http2_only();
                    let _ = connections
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self {
            address,
            ticks,
            task,
        })
    }

    /// Closes the listener and every connection.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl Greeter {
    async fn say(self, request: Request<Text>) -> Result<Response<Text>, Status> {
        match &*request.into_inner().text {
            "refuse" => Err(Status::unavailable("as told")),
            _ => Ok(Response::new(Text {
                text: self.name.to_owned(),
            })),
        }
    }

    async fn count(self, request: Request<Text>) -> Result<Response<Messages>, Status> {
        let numbers = WatchStream::new(self.ticks.clone());
        let messages = numbers.map(|number| {
            Ok(Text {
                text: number.to_string(),
            })
        });
        Ok(Response::new(match &*request.into_inner().text {
            // Sends one message, and then a status in the trailers.
            "break" => {
                let end = tokio_stream::once(Err(Status::unavailable("as told")));
                Box::pin(messages.take(1).chain(end))
            }
            _ => Box::pin(messages),
        }))
    }
}

impl Service<http::Request<Incoming>> for Greeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let greeter = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
            Ok(match request.uri().path() {
                SAY => {
                    let say = service_fn(|request| greeter.clone().say(request));
                    grpc.unary(say, request).await
                }
                COUNT => {
                    let count = service_fn(|request| greeter.clone().count(request));
                    grpc.server_streaming(count, request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

/// The client's side, over any service that sends gRPC requests.
pub(crate) async fn say<T>(service: T, text: &str) -> Result<String, Status>
where
    T: GrpcService<Body>,
    T::ResponseBody: http_body::Body + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<BoxError>,
{
    let mut grpc = Grpc::new(service);
    ready(&mut grpc).await?;
    let text = Text {
        text: text.to_owned(),
    };
    let codec = ProstCodec::<Text, Text>::default();
    let answer = grpc
        .unary(Request::new(text), PathAndQuery::from_static(SAY), codec)
        .await?;
    Ok(answer.into_inner().text)
}

/// Opens a stream.
pub(crate) async fn count<T>(service: T, text: &str) -> Result<tonic::Streaming<Text>, Status>
where
    T: GrpcService<Body>,
    T::ResponseBody: http_body::Body + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<BoxError>,
{
    let mut grpc = Grpc::new(service);
    ready(&mut grpc).await?;
    let text = Text {
        text: text.to_owned(),
    };
    let codec = ProstCodec::<Text, Text>::default();
    let answer = grpc
        .server_streaming(Request::new(text), PathAndQuery::from_static(COUNT), codec)
        .await?;
    Ok(answer.into_inner())
}

async fn ready<T: GrpcService<Body>>(grpc: &mut Grpc<T>) -> Result<(), Status> {
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(error.into().to_string()))
}

const SAY: &str = "/hello.Greeter/Say";
const COUNT: &str = "/hello.Greeter/Count";
