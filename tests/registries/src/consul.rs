//! Consul: a real agent, and a small one of our own with the same interface.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tower_lb::discover::Consul;

use crate::{
    program::{self, Program, free_port, until_ok},
    server::{Body, Server, parameter, parameters, text},
    traffic::Registry,
};

/// An agent, real or small, and a client of its interface.
#[derive(Debug)]
pub struct Agent {
    kind: Kind,
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
enum Kind {
    Real(PathBuf, Option<Program>),
    Small(Server, Arc<Small>),
}

/// How the small agent answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    #[default]
    Well,
    /// Not at all.
    Hangs,
    /// With bytes that are no JSON.
    Garbage,
    /// With an error that repeats the token.
    Fails,
    /// With no instances.
    Empty,
    /// Without an index.
    NoIndex,
}

impl Agent {
    /// Starts a real agent; `None` where Consul is not installed, as it is hard to come by.
    pub async fn real() -> Option<Self> {
        let program = program::find_or_say("consul", "CONSUL")?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port(Ipv4Addr::LOCALHOST)));
        let mut agent = Self::of(Kind::Real(program, None), address);
        agent.restart().await;
        Some(agent)
    }

    /// Starts a small agent.
    #[must_use]
    pub fn small() -> Self {
        let small = Arc::new(Small::default());
        let answering = small.clone();
        let server = Server::start(move |request| answer(request, answering.clone()));
        let address = server.address();
        Self::of(Kind::Small(server, small), address)
    }

    fn of(kind: Kind, address: SocketAddr) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self {
            kind,
            address,
            client,
        }
    }

    /// Returns a source of the service `users` at this agent.
    pub fn source(&self) -> Consul {
        Consul::new("users").address(self.address.to_string())
    }

    /// Changes how the small agent answers.
    pub fn set_mode(&self, mode: Mode) {
        let mut state = self.small_one().state.lock().unwrap();
        state.mode = mode;
        state.index += 1;
        drop(state);
        self.small_one().changed.send_modify(|_| ());
    }

    /// Takes requests only with this token. For the small agent.
    pub fn set_token(&self, token: &str) {
        self.small_one().state.lock().unwrap().token = Some(token.to_owned());
    }

    /// Returns the queries for instances that the small agent was asked.
    #[must_use]
    pub fn queries(&self) -> Vec<String> {
        self.small_one().state.lock().unwrap().queries.clone()
    }

    fn small_one(&self) -> &Small {
        match &self.kind {
            Kind::Small(_, small) => small,
            Kind::Real(..) => panic!("a real agent can't do that"),
        }
    }

    /// Kills the agent.
    pub async fn stop(&mut self) {
        match &mut self.kind {
            Kind::Real(_, running) => {
                if let Some(running) = running.take() {
                    running.kill().await;
                }
            }
            Kind::Small(server, _) => server.stop().await,
        }
    }

    /// Starts an agent that was stopped. It knows nothing, and its index begins anew.
    pub async fn restart(&mut self) {
        match &mut self.kind {
            Kind::Real(program, running) => {
                let port = |port: u16| format!("{port}");
                let (server, serf) = (
                    free_port(Ipv4Addr::LOCALHOST),
                    free_port(Ipv4Addr::LOCALHOST),
                );
                *running = Some(Program::start(
                    program,
                    &[
                        "agent",
                        "-dev",
                        "-bind=127.0.0.1",
                        "-http-port",
                        &port(self.address.port()),
                        "-server-port",
                        &port(server),
                        "-serf-lan-port",
                        &port(serf),
                        "-serf-wan-port=-1",
                        "-dns-port=-1",
                        "-grpc-port=-1",
                    ],
                ));
            }
            Kind::Small(server, small) => {
                *small.state.lock().unwrap() = State::default();
                server.restart();
            }
        }
        let agent = &*self;
        until_ok("the agent has a leader", async || {
            let leader = agent.ask(Method::GET, "/v1/status/leader", None).await?;
            match leader.contains(':') {
                true => Ok(()),
                false => Err(std::io::Error::other("no leader")),
            }
        })
        .await;
    }

    /// Asks the agent, and returns what it says.
    ///
    /// # Errors
    ///
    /// If it says an error, or nothing.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> std::io::Result<String> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .body(Full::from(body))
            .unwrap();
        let answer = self
            .client
            .request(request)
            .await
            .map_err(std::io::Error::other)?;
        let status = answer.status();
        let body = answer
            .into_body()
            .collect()
            .await
            .map_err(std::io::Error::other)?;
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        match status.is_success() {
            true => Ok(body),
            false => Err(std::io::Error::other(format!("{status}: {body}"))),
        }
    }

    async fn put(&self, path: &str, body: Option<Value>) {
        self.ask(Method::PUT, path, body)
            .await
            .expect("the agent takes it");
    }

    /// Registers an instance of `users`, with a check named as the instance.
    pub async fn register(&self, id: &str, address: &str, port: u16, more: Value) {
        let mut service = json!({
            "ID": id, "Name": "users", "Address": address, "Port": port,
            "Weights": { "Passing": 10, "Warning": 2 },
            "Check": { "CheckID": id, "Name": id, "TTL": "1h", "Status": "passing" }
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            service[key] = value.clone();
        }
        self.put("/v1/agent/service/register", Some(service)).await;
    }

    /// Removes an instance.
    pub async fn deregister(&self, id: &str) {
        self.put(&format!("/v1/agent/service/deregister/{id}"), None)
            .await;
    }

    /// Sets an instance's check to `pass`, `warn` or `fail`.
    pub async fn set_check(&self, id: &str, to: &str) {
        self.put(&format!("/v1/agent/check/{to}/{id}"), None).await;
    }

    /// Puts an instance into maintenance, or takes it out.
    pub async fn set_maintenance(&self, id: &str, enable: bool) {
        let path = format!("/v1/agent/service/maintenance/{id}?enable={enable}");
        self.put(&path, None).await;
    }

    /// Returns the ids of the instances that are registered.
    async fn registered(&self) -> Vec<String> {
        let services = self
            .ask(Method::GET, "/v1/agent/services", None)
            .await
            .unwrap();
        let services: BTreeMap<String, Value> = serde_json::from_str(&services).unwrap();
        services.into_keys().collect()
    }
}

impl Registry for Agent {
    async fn list(&mut self, servers: &[SocketAddr]) {
        let id = |server: &SocketAddr| format!("at-{}", server.ip());
        let before = self.registered().await;
        for server in servers {
            if !before.contains(&id(server)) {
                self.register(
                    &id(server),
                    &server.ip().to_string(),
                    server.port(),
                    json!({}),
                )
                .await;
            }
        }
        for gone in before
            .iter()
            .filter(|&before| servers.iter().all(|s| id(s) != *before))
        {
            self.deregister(gone).await;
        }
    }
}

#[derive(Debug, Default)]
struct Small {
    state: Mutex<State>,
    /// Tells queries that wait.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    index: u64,
    /// Instances by id: what was registered, and the status of each check.
    instances: BTreeMap<String, (Value, BTreeMap<String, String>)>,
    token: Option<String>,
    mode: Mode,
    queries: Vec<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            index: 10,
            instances: BTreeMap::new(),
            token: None,
            mode: Mode::Well,
            queries: Vec::new(),
        }
    }
}

async fn answer(request: Request<Incoming>, small: Arc<Small>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.strip_prefix("/v1/health/service/") {
        Some(name) => health(request.uri(), name, request.headers(), &small).await,
        None => {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await else {
                return text(400, "");
            };
            let answer = agent(&path, &parts.uri, &body.to_bytes(), &small);
            small.changed.send_modify(|_| ());
            answer
        }
    }
}

/// The interface of the agent itself.
fn agent(path: &str, uri: &http::Uri, body: &[u8], small: &Small) -> Response<Body> {
    let mut state = small.state.lock().unwrap();
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    match parts[..] {
        ["status", "leader"] => return text(200, "\"127.0.0.1:8300\""),
        ["agent", "services"] => {
            let ids = state.instances.iter();
            let services: BTreeMap<_, _> = ids.map(|(id, (service, _))| (id, service)).collect();
            return text(200, serde_json::to_string(&services).unwrap());
        }
        ["agent", "service", "register"] => {
            let service: Value = serde_json::from_slice(body).unwrap();
            let id = service["ID"].as_str().unwrap().to_owned();
            let check = service["Check"]["CheckID"].as_str().unwrap().to_owned();
            let status = service["Check"]["Status"].as_str().unwrap().to_owned();
            let checks = BTreeMap::from([
                ("serfHealth".to_owned(), "passing".to_owned()),
                (check, status),
            ]);
            state.instances.insert(id, (service, checks));
        }
        ["agent", "service", "deregister", id] => {
            state.instances.remove(id);
        }
        ["agent", "service", "maintenance", id] => {
            let enable = parameter(uri, "enable").as_deref() == Some("true");
            let Some((_, checks)) = state.instances.get_mut(id) else {
                return text(404, "unknown service");
            };
            match enable {
                true => checks.insert("maintenance".to_owned(), "critical".to_owned()),
                false => checks.remove("maintenance"),
            };
        }
        ["agent", "check", to, check] => {
            let status = match to {
                "pass" => "passing",
                "warn" => "warning",
                _ => "critical",
            };
            for (_, checks) in state.instances.values_mut() {
                if let Some(of) = checks.get_mut(check) {
                    status.clone_into(of);
                }
            }
        }
        _ => return text(404, "no such path"),
    }
    state.index += 1;
    text(200, "")
}

/// The instances of a service, once they are beyond the index that was asked for.
async fn health(
    uri: &http::Uri,
    name: &str,
    headers: &http::HeaderMap,
    small: &Small,
) -> Response<Body> {
    let mut changed = small.changed.subscribe();
    let wait = parameter(uri, "wait").and_then(|wait| wait.strip_suffix("ms")?.parse().ok());
    let wait = Duration::from_millis(wait.unwrap_or(300_000));
    let (mode, token) = {
        let mut state = small.state.lock().unwrap();
        state
            .queries
            .push(uri.query().unwrap_or_default().to_owned());
        (state.mode, state.token.clone())
    };
    let given = headers
        .get("x-consul-token")
        .and_then(|token| token.to_str().ok());
    if token.is_some() && given != token.as_deref() {
        return text(
            403,
            format!(
                "Permission denied: token {} not found",
                given.unwrap_or("-")
            ),
        );
    }
    match mode {
        Mode::Hangs => return std::future::pending().await,
        Mode::Garbage => return text(200, "\u{1}not JSON at all"),
        Mode::Fails => return text(500, format!("No cluster leader, {given:?}")),
        Mode::Well | Mode::Empty | Mode::NoIndex => {}
    }
    // As Consul does, an index beyond the newest one waits all the time.
    if let Some(index) = parameter(uri, "index").and_then(|index| index.parse::<u64>().ok()) {
        let beyond = changed.wait_for(|()| {
            let state = small.state.lock().unwrap();
            state.index > index || state.mode != mode
        });
        let _ = timeout(wait, beyond).await;
    }
    let state = small.state.lock().unwrap();
    let is_empty = state.mode == Mode::Empty;
    let instances = state.instances.iter().filter(|_| !is_empty);
    let instances =
        instances.filter(|(_, (service, checks))| is_wanted(service, checks, name, uri));
    let list: Vec<Value> = instances
        .map(|(_, (service, checks))| entry(service, checks))
        .collect();
    let mut answer = text(200, Value::from(list).to_string());
    if mode != Mode::NoIndex {
        answer
            .headers_mut()
            .insert("x-consul-index", HeaderValue::from(state.index));
    }
    answer
}

fn is_wanted(
    service: &Value,
    checks: &BTreeMap<String, String>,
    name: &str,
    uri: &http::Uri,
) -> bool {
    let tags = service["Tags"].as_array().cloned().unwrap_or_default();
    parameters(uri)
        .iter()
        .all(|(key, value)| match key.as_str() {
            "passing" => checks.values().all(|status| status == "passing"),
            "tag" => tags.iter().any(|tag| tag == value),
            _ => true,
        })
        && service["Name"] == name
}

fn entry(service: &Value, checks: &BTreeMap<String, String>) -> Value {
    let checks = checks
        .iter()
        .map(|(id, status)| json!({ "CheckID": id, "Status": status }));
    json!({
        "Node": {
            "Node": "machine", "Address": "127.0.0.1", "Datacenter": "dc1",
            "Meta": { "zone": "eu-1a" }
        },
        "Service": {
            "ID": service["ID"], "Service": service["Name"], "Address": service["Address"],
            "Port": service["Port"], "Tags": service["Tags"], "Weights": service["Weights"],
            "Meta": null
        },
        "Checks": checks.collect::<Vec<_>>()
    })
}
