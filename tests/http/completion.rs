//! When a request is over.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use ::http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, watch},
    time::advance,
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    health::OutlierLayer,
    http::{
        AuthorityLayer, CompleteOnBody, CompleteOnFirstData, EndpointError, GrpcStatus, HttpStatus,
    },
    *,
};

use crate::support::*;

/// A tracked service that answers once with this body.
macro_rules! tracked {
    ($layer:expr, $response:expr) => {{
        let response = std::sync::Mutex::new(Some($response));
        $layer.layer(service_fn(move |(): ()| {
            let response = response.lock().unwrap().take().unwrap();
            async move { Ok::<_, std::io::Error>(response) }
        }))
    }};
}

fn on_body() -> PendingRequestsLayer<CompleteOnBody> {
    PendingRequestsLayer::default().completion(CompleteOnBody::new())
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_body_ends() {
    let body = || Script::new([Step::Data, Step::Data]);
    // Read to the end.
    let mut service = tracked!(on_body(), Response::new(body()));
    let response = service.call(()).await.unwrap();
    assert_eq!(service.in_flight(), 1);
    assert_eq!(response.body().size_hint().exact(), Some(8));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((bytes.len(), service.in_flight()), (8, 0));
    // With the response alone, for comparison.
    let mut service = tracked!(PendingRequestsLayer::default(), Response::new(body()));
    let _response = service.call(()).await.unwrap();
    assert_eq!(service.in_flight(), 0);
    // Dropped midway.
    let mut service = tracked!(on_body(), Response::new(body()));
    let mut response = service.call(()).await.unwrap();
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 1);
    drop(response);
    assert_eq!(service.in_flight(), 0);
    // Never polled.
    let mut service = tracked!(on_body(), Response::new(body()));
    drop(service.call(()).await.unwrap());
    assert_eq!(service.in_flight(), 0);
    // Erring midway: given back with the error, not with the drop.
    let broken = Script::new([Step::Data, Step::Break]);
    let mut service = tracked!(on_body(), Response::new(broken));
    let mut response = service.call(()).await.unwrap();
    response.frame().await.unwrap().unwrap();
    response.frame().await.unwrap().unwrap_err();
    assert_eq!(service.in_flight(), 0);
    // Trailers go through, and end it.
    let trailers = Script::new([Step::Data, Step::Trailers(vec![("x-sum", "7")])]);
    let mut service = tracked!(on_body(), Response::new(trailers));
    let mut response = service.call(()).await.unwrap();
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 1);
    let frame = response.frame().await.unwrap().unwrap();
    assert_eq!(frame.trailers_ref().unwrap()["x-sum"], "7");
    assert_eq!(service.in_flight(), 0);
}

#[tokio::test]
async fn a_body_that_says_that_it_has_ended_has() {
    // An answer to `HEAD`, and an empty one.
    let empty = Script {
        frames: VecDeque::new(),
        tells_its_end: true,
    };
    let mut service = tracked!(on_body(), Response::new(empty));
    let response = service.call(()).await.unwrap();
    assert!(response.body().is_end_stream());
    assert_eq!(service.in_flight(), 0);
    // The last frame is known to be the last.
    let known = Script {
        frames: [Step::Data].into(),
        tells_its_end: true,
    };
    let mut service = tracked!(on_body(), Response::new(known));
    let mut response = service.call(()).await.unwrap();
    assert!(!response.body().is_end_stream());
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 0);
}

#[tokio::test]
async fn the_first_data_ends_it_where_that_is_the_answer() {
    let layer = PendingRequestsLayer::default().completion(CompleteOnFirstData::new());
    let mut service = tracked!(
        layer.clone(),
        Response::new(Script::new([Step::Data, Step::Data]))
    );
    let mut response = service.call(()).await.unwrap();
    assert_eq!(service.in_flight(), 1);
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 0);
    assert_eq!(response.collect().await.unwrap().to_bytes().len(), 4);
    // Without any data, the end.
    for last in [None, Some(Step::Trailers(vec![])), Some(Step::Break)] {
        let mut service = tracked!(layer.clone(), Response::new(Script::new(last)));
        let mut response = service.call(()).await.unwrap();
        let _ = response.frame().await;
        assert_eq!(service.in_flight(), 0);
    }
}

#[test]
fn frames_and_bodies_allocate_nothing() {
    use std::task::{Context, Waker};
    let mut service = tracked!(
        on_body(),
        Response::new(Script::new(vec![Step::Data; 1000]))
    );
    let mut cx = Context::from_waker(Waker::noop());
    let future = pin!(service.call(()));
    let std::task::Poll::Ready(Ok(response)) = future.poll(&mut cx) else {
        panic!("it answers at once");
    };
    let mut body = pin!(response.into_body());
    let allocations = allocation_counter::measure(|| {
        while let std::task::Poll::Ready(Some(_)) = body.as_mut().poll_frame(&mut cx) {}
    });
    assert_eq!(allocations.count_total, 0);
}

// What trailers say.

/// Calls one endpoint of three behind outlier detection by gRPC status; returns how many calls it took to eject it.
async fn calls_until_ejected(status: &'static str, place: Place) -> Option<usize> {
    let outliers = OutlierLayer::default()
        .classify(GrpcStatus::new())
        .completion(CompleteOnBody::classify(GrpcStatus::new()));
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(outliers)
        .layer(fixed(0..3))
        .service(move |endpoint: &Endpoint<usize>| {
            let name = *endpoint.address();
            service_fn(move |(): ()| {
                let status = if name == 0 { status } else { "0" };
                let answer = match place {
                    Place::Headers => response(200, &[("grpc-status", status)], Script::default()),
                    Place::Trailers => {
                        let trailers = Step::Trailers(vec![("grpc-status", status)]);
                        response(200, &[], Script::new([Step::Data, trailers]))
                    }
                };
                async move { Ok::<_, std::io::Error>(answer) }
            })
        });
    for call in 1..=20 {
        let response = client.ready().await.unwrap().call(()).await.unwrap();
        response.into_body().collect().await.unwrap();
        tokio::task::yield_now().await;
        let first = client.endpoints().swap_remove(0);
        if first.endpoint().ejection().is_some() {
            return Some(call);
        }
    }
    None
}

#[derive(Clone, Copy)]
enum Place {
    Headers,
    Trailers,
}

#[tokio::test(start_paused = true)]
async fn a_status_in_trailers_reaches_outlier_detection() {
    for place in [Place::Headers, Place::Trailers] {
        for status in ["4", "8", "13", "14"] {
            assert_eq!(
                calls_until_ejected(status, place).await,
                Some(5),
                "{status}"
            );
        }
        for status in ["0", "3", "5", "16"] {
            assert_eq!(calls_until_ejected(status, place).await, None, "{status}");
        }
    }
}

/// Calls one endpoint of three, whose bodies are scripted; returns how many calls it took to eject it.
macro_rules! calls_until_ejected {
    ($outliers:expr, $steps:expr) => {{
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer($outliers)
            .layer(fixed(0..3))
            .service(move |endpoint: &Endpoint<usize>| {
                let well = vec![Step::Data, Step::Trailers(vec![("grpc-status", "0")])];
                let steps = if *endpoint.address() == 0 {
                    $steps
                } else {
                    well
                };
                service_fn(move |(): ()| {
                    let body = Script::new(steps.clone());
                    async move { Ok::<_, std::io::Error>(Response::new(body)) }
                })
            });
        let mut calls = 0;
        loop {
            calls += 1;
            let mut response = client.ready().await.unwrap().call(()).await.unwrap();
            // As long as it takes a reader who has had enough.
            for _ in 0..50 {
                let Some(Ok(_)) = response.frame().await else {
                    break;
                };
                advance(Duration::from_millis(100)).await;
            }
            drop(response);
            tokio::task::yield_now().await;
            let first = client.endpoints().swap_remove(0);
            if first.endpoint().ejection().is_some() {
                break Some(calls);
            } else if calls == 20 {
                break None;
            }
        }
    }};
}

#[tokio::test(start_paused = true)]
async fn what_a_body_shows_reaches_outlier_detection() {
    let grpc = OutlierLayer::default().classify(GrpcStatus::new());
    let http = OutlierLayer::default().classify(HttpStatus::new());
    let unavailable = || vec![Step::Trailers(vec![("grpc-status", "14")])];
    // Without data, its end decides for the first data too.
    let on_data = grpc
        .clone()
        .completion(CompleteOnFirstData::classify(GrpcStatus::new()));
    assert_eq!(
        calls_until_ejected!(on_data.clone(), unavailable()),
        Some(5)
    );
    let with_data = || vec![Step::Data, Step::Trailers(vec![("grpc-status", "14")])];
    assert_eq!(calls_until_ejected!(on_data, with_data()), None);
    // A body that breaks off, where the status leaves it to the body.
    let breaks = || vec![Step::Data, Step::Break];
    let on_body = http.clone().completion(CompleteOnBody::new());
    assert_eq!(calls_until_ejected!(on_body, breaks()), None);
    let undecided = http
        .classify(HttpStatus::new().class(2, Outcome::Undecided))
        .completion(CompleteOnBody::new());
    assert_eq!(calls_until_ejected!(undecided.clone(), breaks()), Some(5));
    assert_eq!(calls_until_ejected!(undecided, vec![Step::Data]), None);
    // A stream that is left in the middle was not waited for in vain.
    let impatient = grpc
        .completion(CompleteOnBody::classify(GrpcStatus::new()))
        .cancelled_after(Duration::from_secs(1));
    assert_eq!(calls_until_ejected!(impatient, vec![Step::Data; 100]), None);
}

/// A server that was ejected and is well again, whose answers are streams that last.
#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_open_is_a_good_probe() {
    // With messages, and without any for the time being.
    for steps in [vec![Step::Data; 10], vec![]] {
        let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (broken, script) = (is_broken.clone(), steps.clone());
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer(
                OutlierLayer::default()
                    .classify(GrpcStatus::new())
                    .completion(CompleteOnBody::classify(GrpcStatus::new())),
            )
            .layer(fixed(0..3))
            .service(move |endpoint: &Endpoint<usize>| {
                let (name, broken, script) = (*endpoint.address(), broken.clone(), script.clone());
                service_fn(move |(): ()| {
                    let is_broken = name == 0 && broken.load(std::sync::atomic::Ordering::Relaxed);
                    let status = if is_broken { "14" } else { "0" };
                    let status: &[_] = if is_broken {
                        &[("grpc-status", status)]
                    } else {
                        &[]
                    };
                    let answer = response(200, status, (name, Script::new(script.clone())));
                    let (head, (name, body)) = answer.into_parts();
                    let mut answer = Response::from_parts(head, body);
                    answer.extensions_mut().insert(name);
                    async move { Ok::<_, std::io::Error>(answer) }
                })
            });
        for _ in 0..5 {
            client.ready().await.unwrap().call(()).await.unwrap();
        }
        tokio::task::yield_now().await;
        assert!(client.endpoints()[0].endpoint().ejection().is_some());
        is_broken.store(false, std::sync::atomic::Ordering::Relaxed);
        // A stream each ten seconds, of which one message is read, if there is one; they stay open.
        let mut open = Vec::new();
        let mut to_first = 0;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let mut stream = client.ready().await.unwrap().call(()).await.unwrap();
            if !steps.is_empty() {
                stream.frame().await.unwrap().unwrap();
            }
            to_first += usize::from(stream.extensions().get() == Some(&0_usize));
            open.push(stream);
        }
        // With messages from the first probe on; without, once the longest ejection has passed.
        let least = if steps.is_empty() { 20 } else { 50 };
        assert!(to_first > least, "{to_first} of 60");
        assert!(client.endpoints()[0].endpoint().ejection().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_in_trailers_reaches_peak_ewma() {
    for (status, penalty) in [("0", false), ("14", true)] {
        let layer = PeakEwmaLayer::default()
            .classify(GrpcStatus::new())
            .completion(CompleteOnBody::classify(GrpcStatus::new()));
        let trailers = Step::Trailers(vec![("grpc-status", status)]);
        let mut service = tracked!(layer, Response::new(Script::new([Step::Data, trailers])));
        let response = service.call(()).await.unwrap();
        advance(Duration::from_millis(10)).await;
        response.into_body().collect().await.unwrap();
        // The penalty is 5 s.
        let estimate = service.estimate();
        assert_eq!(estimate >= Duration::from_secs(4), penalty, "{estimate:?}");
    }
    // A body dropped before its trailers says nothing of the endpoint.
    let layer = PeakEwmaLayer::default()
        .classify(GrpcStatus::new())
        .completion(CompleteOnBody::classify(GrpcStatus::new()));
    let mut service = tracked!(layer, Response::new(Script::new([Step::Data])));
    let before = service.estimate();
    let response = service.call(()).await.unwrap();
    advance(Duration::from_secs(3)).await;
    drop(response);
    assert!(service.estimate() <= before);
}

/// A gateway that answers 503 in .2 ms, beside servers that take 20 ms.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_fails_fast_draws_little_traffic() {
    let calls = Arc::new(std::sync::Mutex::new([0_usize; 2]));
    let seen = calls.clone();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::seeded(4)))
        .layer(each(PeakEwmaLayer::default().classify(HttpStatus::new())))
        .layer(fixed([0, 1]))
        .service(move |endpoint: &Endpoint<usize>| {
            let (name, calls) = (*endpoint.address(), calls.clone());
            service_fn(move |(): ()| {
                calls.lock().unwrap()[name] += 1;
                async move {
                    let (after, status) = [(200, 503), (20_000, 200)][name];
                    tokio::time::sleep(Duration::from_micros(after)).await;
                    Ok::<_, std::io::Error>(response(status, &[], ()))
                }
            })
        });
    for _ in 0..6000 {
        tokio::spawn(client.clone().oneshot(()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let [gateway, server] = *seen.lock().unwrap();
    let share = gateway as f64 / (gateway + server) as f64;
    println!("{share:.4} of the traffic went to the gateway");
    assert!(share <= 0.05, "{share}");
}

// Over real sockets.

/// What a server sends after the head of its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sends {
    All,
    /// Half of what it has announced, and then it goes.
    Half,
    Nothing,
    /// It waits to be told after the head.
    Held,
}

/// Answers each connection's one request as told; `release` lets those go on that are held.
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
            let in_flight = || balance.endpoints()[0].service().in_flight();
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

/// Over HTTP/2: trailers are frames of their own, streams are reset, and one connection has them all.
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
                    // hyper's servers leave it to the service to have no body here.
                    _ if request.method() == "HEAD" => vec![],
                    "/empty" => vec![],
                    "/trailers" => vec![Step::Data, trailers],
                    "/trailers-alone" => vec![trailers],
                    // More than the windows of a stream: it cannot end, or break off, before it is read.
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
        let in_flight = || on_body.endpoints()[0].service().in_flight();
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
    // With the response alone, for comparison.
    let mut on_response = PendingRequests::new(pooled);
    let request = Request::get(format!("http://{address}/large"));
    let request = request.body(http_body_util::Empty::new()).unwrap();
    let response = on_response.call(request).await.unwrap();
    assert_eq!(on_response.in_flight(), 0);
    drop(response);
}

/// Ten slow downloads make their server the busy one: with the body counted, the next requests go elsewhere.
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
    // Ten downloads, all from the first server; they are not read yet.
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
    while balance.endpoints().len() < 2 {
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
    let members = balance.endpoints();
    assert!(
        members
            .iter()
            .all(|member| member.service().in_flight() == 0)
    );
}

/// A server that is not there: the error names it.
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
    assert!(
        retry::ConnectErrors::new().is_one(&error),
        "refused: {error:?}"
    );
}
