//! Where a request goes, and the name that its server sees.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use ::http::{Request, Response, header::HOST};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{net::TcpListener, time::timeout};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{http::AuthorityLayer, *};

/// Starts an HTTP/1.1 and HTTP/2 server that answers with the names in the URI and in `Host`.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = |request: Request<Incoming>| async move {
                let authority = request.uri().authority().map(ToString::to_string);
                let host = request
                    .headers()
                    .get(HOST)
                    .map(|host| host.to_str().unwrap());
                let seen = format!("{authority:?} {host:?}");
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(seen))))
            };
            tokio::spawn(async move {
                let connections = auto::Builder::new(TokioExecutor::new());
                let service = hyper::service::service_fn(answer);
                let _ = connections
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

type Pooled<R = hyper_util::client::legacy::connect::dns::GaiResolver> =
    Client<HttpConnector<R>, Empty<Bytes>>;

fn pooled(http2: bool) -> Pooled {
    Client::builder(TokioExecutor::new())
        .http2_only(http2)
        .build_http()
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

/// Returns what the server saw.
macro_rules! seen {
    ($client:expr, $request:expr) => {{
        let response = $client.oneshot($request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }};
}

#[tokio::test]
async fn over_http1_the_host_is_the_services() {
    let (address, pooled) = (server().await, pooled(false));
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(AuthorityLayer::new())
        .layer(fixed([address]))
        .service(move |_: &Endpoint| pooled.clone());
    let sees = |host: &str| format!("None Some({host:?})");
    let request = get("http://user:password@api.example.com:8080/");
    assert_eq!(seen!(client.clone(), request), sees("api.example.com:8080"));
    let mut request = get("http://api.example.com/");
    let own = "other.example.com".parse().unwrap();
    request.headers_mut().insert(HOST, own);
    assert_eq!(seen!(client, request), sees("other.example.com"));
}

#[tokio::test]
async fn over_http2_a_client_for_each_endpoint_keeps_the_name() {
    let address = server().await;
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(fixed([address]))
        .service(|endpoint: &Endpoint| {
            let address = *endpoint.address();
            let resolver =
                service_fn(move |_| async move { Ok::<_, Infallible>(std::iter::once(address)) });
            let connector = HttpConnector::new_with_resolver(resolver);
            Client::builder(TokioExecutor::new())
                .http2_only(true)
                .build::<_, Empty<Bytes>>(connector)
        });
    let seen = seen!(client, get("http://api.example.com/"));
    assert_eq!(seen, r#"Some("api.example.com") None"#);
}

#[tokio::test]
async fn without_host_a_server_of_http2_sees_its_address_alone() {
    let (address, pooled) = (server().await, pooled(true));
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(AuthorityLayer::new().without_host())
        .layer(fixed([address]))
        .service(move |_: &Endpoint| pooled.clone());
    let mut request = get("http://api.example.com/");
    let own = "api.example.com".parse().unwrap();
    request.headers_mut().insert(HOST, own);
    let seen = seen!(client, request);
    assert_eq!(seen, format!("Some(\"{address}\") None"));
}

/// Builds a client of one endpoint that answers with the URI of the request.
fn uris(
    address: &'static str,
) -> impl Service<Request<()>, Response = Response<String>, Error = tower::BoxError> + Clone {
    ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(AuthorityLayer::new())
        .layer(fixed([address]))
        .service(|_: &Endpoint<&'static str>| {
            service_fn(|request: Request<()>| async move {
                Ok::<_, Infallible>(Response::new(request.uri().to_string()))
            })
        })
}

#[tokio::test]
async fn scheme_path_and_query_stay() {
    for (uri, expected) in [
        ("https://api/path?q=1", "https://10.0.0.1:80/path?q=1"),
        ("http://api", "http://10.0.0.1:80/"),
        ("/path?q=1", "http://10.0.0.1:80/path?q=1"),
        ("*", "http://10.0.0.1:80*"),
    ] {
        let request = Request::builder().uri(uri).body(()).unwrap();
        let response = uris("10.0.0.1:80").oneshot(request).await.unwrap();
        assert_eq!(response.body(), expected);
    }
    let request = Request::connect("db.internal:443").body(()).unwrap();
    let error = uris("10.0.0.1:80").oneshot(request).await.unwrap_err();
    assert_eq!(error.to_string(), "request to 10.0.0.1:80 failed");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_address_is_no_authority_gets_nothing() {
    for address in ["[::1]:80", "host", "host:80"] {
        let answer = uris(address).oneshot(Request::new(())).await.unwrap();
        assert_eq!(*answer.body(), format!("http://{address}/"));
    }
    for address in [
        "",
        "user@host:80",
        "host:99999",
        "http://host:80",
        "host:80/x",
        "a b",
    ] {
        let answer = uris(address).oneshot(Request::new(()));
        let answer = timeout(Duration::from_secs(1), answer).await;
        assert!(!matches!(answer, Ok(Ok(_))), "{address}");
        // If there is another endpoint, it gets all requests.
        let client = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(AuthorityLayer::new())
            .layer(fixed([address, "good:80"]))
            .service(|_: &Endpoint<&'static str>| {
                service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) })
            });
        for _ in 0..20 {
            client.clone().oneshot(Request::new(())).await.unwrap();
        }
    }
}
