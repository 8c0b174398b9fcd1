//! Completion by bodies over real sockets.

use std::sync::Arc;

use crate::support::{Script, Step};
use ::http::{Request, Response};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, watch},
};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_lb::{
    http::{AuthorityLayer, CompleteOnBody, EndpointError},
    *,
};

fn on_body() -> PendingRequestsLayer<CompleteOnBody> {
    PendingRequestsLayer::default().completion(CompleteOnBody::new())
}

/// What a server sends after the head of its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sends {
    All,
    /// Half of the announced body; then the connection closes.
    Half,
    Nothing,
    /// Nothing after the head until it is released.
    Held,
}

/// Answers one request per connection as `sends` says. `release` lets held answers go on.
async fn serve(listener: TcpListener, sends: Sends, release: Arc<Notify>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let release = release.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            let length = if sends == Sends::Nothing { 0 } else { 1 << 16 };
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
            if sends == Sends::Held {
                release.notified().await;
            }
            if head.starts_with(b"HEAD") {
                return;
            }
            let length = if sends == Sends::Half {
                length / 2
            } else {
                length
            };
            let _ = stream.write_all(&vec![b'x'; length]).await;
        });
    }
}

type Pooled = hyper_util::client::legacy::Client<
    hyper_util::client::legacy::connect::HttpConnector,
    http_body_util::Empty<hyper::body::Bytes>,
>;

fn pooled() -> Pooled {
    hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http()
}

#[tokio::test]
async fn over_real_sockets_the_count_is_given_back_however_the_body_ends() {
    for sends in [Sends::All, Sends::Half, Sends::Nothing, Sends::Held] {
        for method in ["GET", "HEAD"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let release = Arc::new(Notify::new());
            tokio::spawn(serve(listener, sends, release.clone()));
            let client = pooled();
            let mut balance = ServiceBuilder::new()
                .layer(BalanceLayer::new(P2c::default()))
                .layer(each(on_body()))
                .layer(AuthorityLayer::new())
                .layer(fixed([address]))
                .service(move |_: &Endpoint| client.clone());
            let request = Request::builder().method(method).uri("http://api/");
            let request = request.body(http_body_util::Empty::new()).unwrap();
            let response = balance.ready().await.unwrap().call(request).await.unwrap();
            let in_flight = || balance.members()[0].service().in_flight();
            let is_empty = method == "HEAD" || sends == Sends::Nothing;
            assert_eq!(in_flight(), usize::from(!is_empty), "{sends:?} {method}");
            match sends {
                Sends::Held if method == "GET" => drop(response),
                _ => {
                    release.notify_one();
                    let body = response.into_body().collect().await;
                    assert_eq!(body.is_err(), sends == Sends::Half && method == "GET");
                }
            }
            assert_eq!(in_flight(), 0, "{sends:?} {method}");
        }
    }
}

/// HTTP/2 sends trailers as frames, resets streams, and carries all requests over one connection.
#[tokio::test]
async fn over_http2_the_count_is_given_back_however_the_stream_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = |request: Request<hyper::body::Incoming>| async move {
                let trailers = Step::Trailers(vec![("x-sum", "7")]);
                let steps = match request.uri().path() {
                    // hyper's servers leave it to the service to send no body here.
                    _ if request.method() == "HEAD" => vec![],
                    "/empty" => vec![],
                    "/trailers" => vec![Step::Data, trailers],
                    "/trailers-alone" => vec![trailers],
                    // More than the windows of a stream. It can neither end nor break off before it
                    // is read.
                    _ => vec![Step::Block; 64],
                };
                let is_broken = request.uri().path() == "/broken";
                let mut body =
                    Script::new(steps.into_iter().chain(is_broken.then_some(Step::Break)));
                body.tells_its_end = true;
                Ok::<_, std::convert::Infallible>(Response::new(body))
            };
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
            tokio::spawn(connection);
        }
    });
    let pooled: Pooled = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let client = pooled.clone();
    let mut on_body = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(on_body()))
        .layer(AuthorityLayer::new())
        .layer(fixed([address]))
        .service(move |_: &Endpoint| client.clone());
    for (method, path, while_open) in [
        ("GET", "/empty", 0),
        ("HEAD", "/large", 0),
        ("GET", "/trailers", 1),
        ("GET", "/trailers-alone", 1),
        ("GET", "/broken", 1),
        ("GET", "/large", 1),
        ("GET", "/dropped", 1),
        ("GET", "/never-read", 1),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://api{path}"));
        let request = request.body(http_body_util::Empty::new()).unwrap();
        let mut response = on_body.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.version(), ::http::Version::HTTP_2);
        let in_flight = || on_body.members()[0].service().in_flight();
        assert_eq!(in_flight(), while_open, "{method} {path}");
        match path {
            "/never-read" => drop(response),
            "/dropped" => {
                response.frame().await.unwrap().unwrap();
                assert_eq!(in_flight(), 1);
                drop(response);
            }
            "/broken" => {
                response.collect().await.unwrap_err();
            }
            _ => {
                let body = response.into_body().collect().await.unwrap();
                let sum = body.trailers().map(|trailers| &trailers["x-sum"]);
                assert_eq!(sum.is_some(), path.starts_with("/trailers"));
                let length = if (method, path) == ("GET", "/large") {
                    4 << 20
                } else {
                    0
                };
                assert!(body.to_bytes().len() >= length);
            }
        }
        assert_eq!(in_flight(), 0, "{method} {path}");
    }
    // For comparison: completion with the response alone.
    let mut on_response = PendingRequests::new(pooled);
    let request = Request::get(format!("http://{address}/large"));
    let request = request.body(http_body_util::Empty::new()).unwrap();
    let response = on_response.call(request).await.unwrap();
    assert_eq!(on_response.in_flight(), 0);
    drop(response);
}

/// Ten slow downloads load their server. With completion by bodies, the next requests go elsewhere.
#[tokio::test]
async fn slow_downloads_make_their_server_the_busy_one() {
    const SIZE: usize = 10 << 20;
    async fn serve(listener: TcpListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let size = if head.starts_with(b"GET /large") {
                    SIZE
                } else {
                    0
                };
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.write_all(&vec![0; size]).await;
            });
        }
    }
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        tokio::spawn(serve(listener));
    }
    let client = pooled();
    // Ten downloads, all from the first server. They are not read yet.
    let (targets, rx) = watch::channel(vec![addresses[0]]);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::seeded(1)))
        .layer(each(on_body()))
        .layer(AuthorityLayer::new())
        .layer(WatchLayer::new(rx))
        .service(move |_: &Endpoint| client.clone());
    let get = |path: &str| {
        let request = Request::get(format!("http://api{path}"));
        request.body(http_body_util::Empty::new()).unwrap()
    };
    let mut downloads = Vec::new();
    for _ in 0..10 {
        let balance = balance.ready().await.unwrap();
        downloads.push(balance.call(get("/large")).await.unwrap());
    }
    targets.send_replace(addresses.clone());
    while balance.members().len() < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        let response = balance.ready().await.unwrap().call(get("/")).await.unwrap();
        let endpoint = response.extensions().get::<Endpoint>().unwrap();
        assert_eq!(*endpoint.address(), addresses[1], "not the busy one");
    }
    for download in downloads {
        let bytes = download.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(bytes.len(), SIZE);
    }
    let members = balance.members();
    assert!(
        members
            .iter()
            .all(|member| member.service().in_flight() == 0)
    );
}

/// The error of a request to a missing server names its endpoint.
#[tokio::test]
async fn an_error_names_its_endpoint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = pooled();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(each(PendingRequestsLayer::default()))
        .layer(AuthorityLayer::new())
        .layer(fixed([address]))
        .service(move |_: &Endpoint| client.clone());
    let request =
        Request::get("http://api/").body(http_body_util::Empty::<hyper::body::Bytes>::new());
    let error: BoxError = balance.oneshot(request.unwrap()).await.unwrap_err();
    let failed = error.downcast_ref::<EndpointError>().unwrap();
    assert_eq!(failed.endpoint(), address.to_string());
    assert!(ConnectErrors::new().matches(&error), "refused: {error:?}");
}
