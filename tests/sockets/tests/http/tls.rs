//! The name that a TLS server is reached under, and the certificates that clients accept.

use std::{collections::HashSet, convert::Infallible, net::SocketAddr, time::Duration};

use ::http::{Request, header::HOST};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    Response,
    body::{Bytes, Incoming},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{net::TcpListener, time::timeout};
use tokio_rustls::TlsAcceptor;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{http::AuthorityLayer, *};

#[path = "../../../../examples/clients/tls.rs"]
mod identity;

const NAME: &str = "api.example.com";
const URL: &str = "https://api.example.com/";

/// HTTP/1.1 and HTTP/2 servers that answer with their address, the name in the handshake (SNI), and
/// the name in the request.
struct Servers {
    addresses: [SocketAddr; 3],
    certificate: CertificateDer<'static>,
}

impl Servers {
    async fn start() -> Self {
        let (acceptor, certificate) = identity::identity(NAME).unwrap();
        Self {
            addresses: [
                server(acceptor.clone()).await,
                server(acceptor.clone()).await,
                server(acceptor).await,
            ],
            certificate,
        }
    }

    /// Returns a client configuration that trusts only that certificate.
    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

async fn server(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let accepted = acceptor.accept(stream);
            tokio::spawn(async move {
                // Fails if the client refuses the certificate.
                let Ok(stream) = accepted.await else { return };
                let sni = stream.get_ref().1.server_name().map(str::to_owned);
                let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let host = request.headers().get(HOST);
                    let host = host.map(|host| host.to_str().unwrap().to_owned());
                    let authority = request.uri().authority().map(ToString::to_string);
                    let name = host.or(authority);
                    let seen = format!("{address} {sni:?} {name:?} {:?}", request.version());
                    async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(seen)))) }
                });
                let connections = auto::Builder::new(TokioExecutor::new());
                let _ = connections
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    address
}

/// Sends 30 requests. Asserts that they reach all servers, and that each server sees the names that
/// it would see without a balancer.
async fn assert_names_kept<S, Fut>(servers: &Servers, version: &str, send: S)
where
    S: Fn() -> Fut,
    Fut: Future<Output = Result<Bytes, BoxError>>,
{
    let mut seen = HashSet::new();
    for _ in 0..30 {
        let body = timeout(Duration::from_secs(10), send()).await;
        seen.insert(String::from_utf8(body.unwrap().unwrap().to_vec()).unwrap());
    }
    let expected = servers
        .addresses
        .map(|address| format!("{address} Some({NAME:?}) Some({NAME:?}) {version}"));
    assert_eq!(seen, HashSet::from(expected));
}

fn get(uri: &str) -> Request<Empty<Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

/// Sends a request, and reads the answer.
async fn read<B>(
    client: impl Service<Request<Empty<Bytes>>, Response = Response<B>, Error = BoxError>,
) -> Result<Bytes, BoxError>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>>,
{
    let response = client.oneshot(get(URL)).await?;
    let body = response.into_body().collect().await.map_err(Into::into)?;
    Ok(body.to_bytes())
}

#[tokio::test]
async fn a_reqwest_client_for_each_endpoint_keeps_both_names() {
    let servers = Servers::start().await;
    let root = reqwest::Certificate::from_der(&servers.certificate).unwrap();
    let balance = |name: &'static str| {
        let root = root.clone();
        ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(fixed(servers.addresses))
            .service(move |endpoint: &Endpoint| {
                let client = reqwest::Client::builder()
                    .resolve(name, *endpoint.address())
                    .tls_certs_only([root.clone()]);
                client.build().unwrap()
            })
    };
    let get = |url: &str| reqwest::Request::new(reqwest::Method::GET, url.parse().unwrap());
    let client = balance(NAME);
    assert_names_kept(&servers, "HTTP/1.1", || {
        let answer = client.clone().oneshot(get(URL));
        async { Ok(answer.await?.bytes().await?) }
    })
    .await;
    // The client checks the name: it refuses the same servers under the name of another service.
    let other = balance("other.example.com");
    let error = other.oneshot(get("https://other.example.com/")).await;
    assert_is_about_the_name(error.map(drop));
}

#[tokio::test]
async fn a_client_for_each_endpoint_keeps_both_names_over_http1_and_2() {
    let servers = Servers::start().await;
    for (version, http2) in [("HTTP/1.1", false), ("HTTP/2.0", true)] {
        let config = servers.config();
        let client = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(fixed(servers.addresses))
            .service(move |endpoint: &Endpoint| {
                let address = *endpoint.address();
                let resolve =
                    service_fn(
                        move |_| async move { Ok::<_, Infallible>(std::iter::once(address)) },
                    );
                let mut connector = HttpConnector::new_with_resolver(resolve);
                connector.enforce_http(false);
                let tls = hyper_rustls::HttpsConnectorBuilder::new()
                    .with_tls_config(config.clone())
                    .https_only();
                let connector = if http2 {
                    tls.enable_all_versions().wrap_connector(connector)
                } else {
                    tls.enable_http1().wrap_connector(connector)
                };
                Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(connector)
            });
        assert_names_kept(&servers, version, || read(client.clone())).await;
        let error = client.oneshot(get("https://other.example.com/")).await;
        assert_is_about_the_name(error.map(drop));
    }
}

#[tokio::test]
async fn one_pooled_client_keeps_both_names_if_its_connector_has_the_name() {
    let servers = Servers::start().await;
    let balance = |pooled: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>| {
        ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(AuthorityLayer::new())
            .layer(fixed(servers.addresses))
            .service(move |_: &Endpoint| pooled.clone())
    };
    let tls = || {
        hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(servers.config())
            .https_only()
    };
    let name = FixedServerNameResolver::new(ServerName::try_from(NAME).unwrap());
    let connector = tls().with_server_name_resolver(name).enable_http1().build();
    let client = balance(Client::builder(TokioExecutor::new()).build(connector));
    assert_names_kept(&servers, "HTTP/1.1", || read(client.clone())).await;

    // Without the resolver, the client expects a certificate for the address.
    let connector = tls().enable_http1().build();
    let client = balance(Client::builder(TokioExecutor::new()).build(connector));
    let error = client.oneshot(get(URL)).await;
    assert_is_about_the_name(error.map(drop));
}

/// Asserts that the client refused the certificate because of its name.
#[track_caller]
fn assert_is_about_the_name(answer: Result<(), BoxError>) {
    let error = answer.expect_err("a certificate for another name was taken");
    let mut cause = Some(&*error as &(dyn std::error::Error + 'static));
    let mut all = String::new();
    while let Some(error) = cause {
        all.push_str(&format!("{error}: "));
        cause = error.source();
    }
    assert!(all.contains("not valid for name"), "{all}");
}
