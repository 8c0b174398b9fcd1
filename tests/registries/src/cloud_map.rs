//! AWS Cloud Map: moto's server, and the real client pointed at it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_servicediscovery::{
    Client, Config,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
};
use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpStream, time::sleep};
use tower_lb::discover::CloudMap;

use crate::{
    program::{self, Program, free_port, until_ok},
    server::{Body, Server, text},
    traffic::Registry,
};

/// Moto's server with one service, behind a front that may misbehave.
#[derive(Debug)]
pub struct Moto {
    _program: Program,
    front: Server,
    mode: Arc<Mutex<(Mode, Vec<String>)>>,
    client: Client,
    service: String,
}

/// How the front answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As moto does.
    #[default]
    Well,
    /// Not at all.
    Hangs,
    /// With bytes that are no JSON.
    Garbage,
    /// With an error of the server's own.
    Fails,
    /// That there are too many requests.
    Throttles,
    /// With no instances.
    Empty,
}

impl Moto {
    /// Starts the server; `None` where moto is not installed.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub async fn start() -> Option<Self> {
        let program = program::find("moto_server", "MOTO_SERVER")?;
        let port = free_port(Ipv4Addr::LOCALHOST);
        let program = Program::start(&program, &["-H", "127.0.0.1", "-p", &port.to_string()]);
        let moto = SocketAddr::from(([127, 0, 0, 1], port));
        until_ok("moto listens", async || {
            TcpStream::connect(moto).await.map(drop)
        })
        .await;
        let mode = Arc::new(Mutex::new((Mode::Well, Vec::new())));
        let http = HttpClient::builder(TokioExecutor::new()).build(HttpConnector::new());
        let answering = mode.clone();
        let front =
            Server::start(move |request| answer(request, answering.clone(), http.clone(), moto));
        let client = client(front.address());
        client
            .create_http_namespace()
            .name("shop")
            .send()
            .await
            .unwrap();
        let namespaces = client.list_namespaces().send().await.unwrap();
        let namespace = namespaces.namespaces()[0].id().unwrap().to_owned();
        let service = client
            .create_service()
            .name("users")
            .namespace_id(namespace);
        let service = service.send().await.unwrap();
        let service = service.service().unwrap().id().unwrap().to_owned();
        Some(Self {
            _program: program,
            front,
            mode,
            client,
            service,
        })
    }

    /// Returns a source of the service `users`, which asks often.
    pub fn source(&self) -> CloudMap {
        CloudMap::new(self.client.clone(), "shop", "users").every(Duration::from_millis(200))
    }

    /// Changes how the front answers.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.lock().unwrap().0 = mode;
    }

    /// Returns which operations were asked for since this was last called.
    #[must_use]
    pub fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.mode.lock().unwrap().1)
    }

    /// Goes away.
    pub async fn stop(&mut self) {
        self.front.stop().await;
    }

    /// Comes back, with what it had.
    pub fn restart(&mut self) {
        self.front.restart();
    }

    /// Registers an instance.
    pub async fn register(&self, id: &str, attributes: &[(&str, &str)]) {
        let request = self.client.register_instance().service_id(&self.service);
        let request = request.instance_id(id);
        let request = attributes
            .iter()
            .fold(request, |r, (key, value)| r.attributes(*key, *value));
        request.send().await.unwrap();
    }

    /// Removes an instance.
    pub async fn deregister(&self, id: &str) {
        let request = self.client.deregister_instance().service_id(&self.service);
        request.instance_id(id).send().await.unwrap();
    }
}

impl Registry for Moto {
    async fn list(&mut self, servers: &[SocketAddr]) {
        let instances = self.client.list_instances().service_id(&self.service);
        let instances = instances.send().await.unwrap();
        let before: BTreeSet<_> = instances
            .instances()
            .iter()
            .filter_map(|i| i.id())
            .collect();
        let id = |server: &SocketAddr| format!("at-{}", server.ip());
        for server in servers
            .iter()
            .filter(|server| !before.contains(id(server).as_str()))
        {
            let (ip, port) = (server.ip().to_string(), server.port().to_string());
            let attributes = [("AWS_INSTANCE_IPV4", &*ip), ("AWS_INSTANCE_PORT", &*port)];
            self.register(&id(server), &attributes).await;
        }
        for gone in before {
            if servers.iter().all(|server| id(server) != gone) {
                self.deregister(gone).await;
            }
        }
    }
}

/// The client of the SDK, as it is but for the names: it asks `data-` before the endpoint's host.
fn client(at: SocketAddr) -> Client {
    #[derive(Clone, Debug)]
    struct Loopback;
    impl ResolveDns for Loopback {
        fn resolve_dns<'a>(&'a self, _: &'a str) -> DnsFuture<'a> {
            DnsFuture::ready(Ok(vec![[127, 0, 0, 1].into()]))
        }
    }
    let provider = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
    let http = Builder::new()
        .tls_provider(provider)
        .build_with_resolver(Loopback);
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("an-id", "s3cret", None, None, "test"))
        .endpoint_url(format!("http://localhost:{}", at.port()))
        .retry_config(RetryConfig::disabled())
        .http_client(http);
    Client::from_conf(config.build())
}

async fn answer(
    request: Request<Incoming>,
    mode: Arc<Mutex<(Mode, Vec<String>)>>,
    http: HttpClient<HttpConnector, Full<Bytes>>,
    moto: SocketAddr,
) -> Response<Body> {
    let operation = request
        .headers()
        .get("x-amz-target")
        .and_then(|name| name.to_str().ok());
    let operation = operation
        .unwrap_or_default()
        .rsplit('.')
        .next()
        .unwrap_or_default();
    let is_discovery = operation.starts_with("DiscoverInstances");
    let now = {
        let mut mode = mode.lock().unwrap();
        if is_discovery {
            mode.1.push(operation.to_owned());
        }
        mode.0
    };
    match now {
        // The tests register instances all the time.
        _ if !is_discovery => {}
        Mode::Well => {}
        Mode::Hangs => sleep(Duration::from_secs(3_600)).await,
        Mode::Garbage => return text(200, "\u{1}not JSON at all"),
        Mode::Fails => {
            return text(
                500,
                r#"{"__type": "InternalFailure", "message": "as it should"}"#,
            );
        }
        Mode::Throttles => {
            return text(
                400,
                r#"{"__type": "RequestLimitExceeded", "Message": "slower"}"#,
            );
        }
        Mode::Empty if operation == "DiscoverInstances" => {
            return text(200, r#"{"Instances": [], "InstancesRevision": 0}"#);
        }
        Mode::Empty => return text(200, r#"{"InstancesRevision": 0}"#),
    }
    let (mut parts, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return text(400, "");
    };
    parts.uri = format!("http://{moto}{}", parts.uri.path())
        .parse()
        .unwrap();
    match http
        .request(Request::from_parts(parts, Full::from(body.to_bytes())))
        .await
    {
        Ok(answer) => answer.map(|body| BodyExt::boxed_unsync(body.map_err(std::io::Error::other))),
        Err(_) => text(502, ""),
    }
}
