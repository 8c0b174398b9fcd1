//! A small API server of Kubernetes: EndpointSlices that are listed in pages and watched.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tower_lb::discover::Kubernetes;

use crate::{
    server::{Body, Server, parameter, pieces, text},
    traffic::Registry,
};

/// An API server with the slices of the namespace `shop`.
#[derive(Debug)]
pub struct ApiServer {
    server: Server,
    shared: Arc<Shared>,
    folder: TempDir,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Holds the newest version.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    version: u64,
    slices: BTreeMap<String, Value>,
    events: Vec<(u64, Value)>,
    /// Watches from before this version are told that they are too old.
    oldest: u64,
    token: String,
    mode: Mode,
    lists: usize,
    watches: usize,
}

/// How the server answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As it should.
    #[default]
    Well,
    /// Each answer in pieces of some bytes, with pauses.
    InPieces,
    /// Lists break after their first page.
    BreaksLists,
    /// Not at all.
    Hangs,
    /// With bytes that are no JSON.
    Garbage,
    /// With an error of the server's own.
    Fails,
}

impl ApiServer {
    /// Starts a server without slices.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                version: 100,
                slices: BTreeMap::new(),
                events: Vec::new(),
                oldest: 0,
                token: "first-token".to_owned(),
                mode: Mode::Well,
                lists: 0,
                watches: 0,
            }),
            changed: watch::channel(100).0,
        });
        let answering = shared.clone();
        let server = Server::start(move |request| answer(request, answering.clone()));
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", server.address()) } }],
            "users": [{ "name": "u", "user": { "tokenFile": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "c", "user": "u", "namespace": "shop" } }],
            "current-context": "test"
        });
        fs::write(folder.path().join("config"), kubeconfig.to_string()).unwrap();
        fs::write(token, "first-token").unwrap();
        Self {
            server,
            shared,
            folder,
        }
    }

    /// Returns a source of the service `users`, by a client that is set up for this server.
    pub fn source(&self) -> Kubernetes {
        Kubernetes::new("users").kubeconfig(self.folder.path().join("config"))
    }

    /// Changes how it answers. Watches that go on are not told.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.state.lock().unwrap().mode = mode;
    }

    /// Takes only this token from now on, and writes it where the client reads it.
    pub fn rotate_token(&self, token: &str) {
        fs::write(self.folder.path().join("token"), token).unwrap();
        self.shared.state.lock().unwrap().token = token.to_owned();
    }

    /// Creates or replaces a slice.
    pub fn apply(&self, name: &str, slice: Value) {
        self.change(name, Some(slice));
    }

    /// Deletes a slice.
    pub fn delete(&self, name: &str) {
        self.change(name, None);
    }

    /// Changes many slices without an event: as while nobody could watch.
    pub fn replace_all(&self, slices: BTreeMap<String, Value>) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        state.events.clear();
        state.oldest = version;
        let complete = |(name, slice): (String, Value)| {
            let slice = complete(&name, version, slice);
            (name, slice)
        };
        state.slices = slices.into_iter().map(complete).collect();
    }

    fn change(&self, name: &str, slice: Option<Value>) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let (kind, object) = match slice {
            Some(slice) => {
                let slice = complete(name, version, slice);
                let before = state.slices.insert(name.to_owned(), slice.clone());
                (
                    if before.is_some() {
                        "MODIFIED"
                    } else {
                        "ADDED"
                    },
                    slice,
                )
            }
            None => {
                let mut slice = state.slices.remove(name).expect("it exists");
                slice["metadata"]["resourceVersion"] = version.to_string().into();
                ("DELETED", slice)
            }
        };
        let event = json!({ "type": kind, "object": object });
        state.events.push((version, event));
        if state.events.len() > MOST_EVENTS {
            state.oldest = state.events.remove(0).0 + 1;
        }
        drop(state);
        self.shared.changed.send_replace(version);
    }

    /// Forgets all events: watches that begin from a version that is known by now are too old.
    pub fn compact(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        state.oldest = state.version + 1;
        state.events.clear();
    }

    /// Breaks all connections.
    pub async fn break_connections(&mut self) {
        self.server.break_connections().await;
    }

    /// Goes away.
    pub async fn stop(&mut self) {
        self.server.stop().await;
    }

    /// Comes back.
    pub fn restart(&mut self) {
        self.server.restart();
    }

    /// Returns how many lists, by page, and watches were asked for.
    #[must_use]
    pub fn asked(&self) -> (usize, usize) {
        let state = self.shared.state.lock().unwrap();
        (state.lists, state.watches)
    }
}

/// So many events are remembered.
const MOST_EVENTS: usize = 500;

/// A slice with these endpoints, all ready, at their port.
#[must_use]
pub fn slice(servers: &[SocketAddr]) -> Value {
    let endpoint = |server: &SocketAddr| json!({ "addresses": [server.ip().to_string()] });
    let endpoints: Vec<_> = servers.iter().map(endpoint).collect();
    let port = servers.first().map_or(80, SocketAddr::port);
    json!({
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": port, "protocol": "TCP" }]
    })
}

fn complete(name: &str, version: u64, mut slice: Value) -> Value {
    slice["apiVersion"] = "discovery.k8s.io/v1".into();
    slice["kind"] = "EndpointSlice".into();
    slice["metadata"]["name"] = name.into();
    slice["metadata"]["namespace"] = "shop".into();
    slice["metadata"]["resourceVersion"] = version.to_string().into();
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = "users".into();
    slice
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code
    })
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> http::Response<Body> {
    let uri = request.uri();
    let (mode, token) = {
        let state = shared.state.lock().unwrap();
        (state.mode, state.token.clone())
    };
    match mode {
        Mode::Hangs => return std::future::pending().await,
        Mode::Garbage => return text(200, "\u{1}not JSON at all"),
        Mode::Fails => return text(500, status(500, "InternalError").to_string()),
        Mode::Well | Mode::InPieces | Mode::BreaksLists => {}
    }
    let authorization = request.headers().get(http::header::AUTHORIZATION);
    if authorization.is_none_or(|given| *given != format!("Bearer {token}")) {
        return text(401, status(401, "Unauthorized").to_string());
    }
    if uri.path() != "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
        || parameter(uri, "labelSelector").as_deref() != Some("kubernetes.io/service-name=users")
    {
        return text(404, status(404, "NotFound").to_string());
    }
    match parameter(uri, "watch") {
        Some(_) => watch_from(uri, &shared, mode),
        None => list(uri, &shared, mode),
    }
}

/// Answers with a page, and a token for the next one.
fn list(uri: &http::Uri, shared: &Shared, mode: Mode) -> http::Response<Body> {
    let mut state = shared.state.lock().unwrap();
    state.lists += 1;
    let limit = parameter(uri, "limit").and_then(|limit| limit.parse().ok());
    // Pages of the tests are small, so that there are several.
    let limit = limit.unwrap_or(usize::MAX).min(3);
    let after = parameter(uri, "continue");
    if after.is_some() && mode == Mode::BreaksLists {
        let cut = b"{\"kind\": \"EndpointSliceList\", \"items\": [{".as_slice();
        let broken = std::io::Error::other("broken as it should");
        return pieces(200, stream::iter([Ok(cut.into()), Err(broken)]));
    }
    let left = state
        .slices
        .iter()
        .filter(|(name, _)| after.as_ref().is_none_or(|a| *name > a));
    let left: Vec<_> = left.collect();
    let page = &left[..limit.min(left.len())];
    let next = (page.len() < left.len()).then(|| page[page.len() - 1].0.clone());
    let items: Vec<_> = page.iter().map(|(_, slice)| (*slice).clone()).collect();
    let list = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSliceList",
        "metadata": { "resourceVersion": state.version.to_string(), "continue": next },
        "items": items
    });
    let body = Bytes::from(list.to_string());
    match mode {
        Mode::InPieces => pieces(200, slowly(body)),
        _ => text(200, body),
    }
}

/// Cuts bytes into pieces that end anywhere.
fn slowly(bytes: Bytes) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    stream::unfold((bytes, 1), |(mut bytes, n)| async move {
        if bytes.is_empty() {
            return None;
        }
        sleep_until(Instant::now() + Duration::from_millis(1)).await;
        let piece = bytes.split_to(bytes.len().min(n));
        Some((Ok(piece), (bytes, n * 7 % 97 + 1)))
    })
}

/// Answers with the events after a version as they come, and a bookmark each second.
fn watch_from(uri: &http::Uri, shared: &Arc<Shared>, mode: Mode) -> http::Response<Body> {
    let from = parameter(uri, "resourceVersion").and_then(|version| version.parse().ok());
    let seconds = parameter(uri, "timeoutSeconds").and_then(|seconds| seconds.parse().ok());
    let from: u64 = from.unwrap_or(0);
    let oldest = {
        let mut state = shared.state.lock().unwrap();
        state.watches += 1;
        state.oldest
    };
    if from + 1 < oldest {
        let gone = json!({ "type": "ERROR", "object": status(410, "Expired") });
        return text(200, format!("{gone}\n"));
    }
    let watching = Watching {
        shared: shared.clone(),
        changed: shared.changed.subscribe(),
        from,
        bookmark: Instant::now() + Duration::from_secs(1),
        end: Instant::now() + Duration::from_secs(seconds.unwrap_or(290)),
    };
    let events = stream::unfold(watching, |mut watching| async move {
        let lines = watching.next().await?;
        Some((lines, watching))
    });
    let in_pieces = mode == Mode::InPieces;
    use futures_util::StreamExt;
    let body = events.flat_map(move |lines| match in_pieces {
        true => slowly(lines).left_stream(),
        false => stream::iter([Ok(lines)]).right_stream(),
    });
    pieces(200, body)
}

/// A watch that goes on.
struct Watching {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// The version that the client knows.
    from: u64,
    bookmark: Instant,
    end: Instant,
}

impl Watching {
    /// Returns the lines of the next events, or a bookmark; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changed.mark_unchanged();
            let lines: String = {
                let state = self.shared.state.lock().unwrap();
                let first = state.events.partition_point(|event| event.0 <= self.from);
                let events = state.events[first..].iter();
                self.from = events.clone().last().map_or(self.from, |event| event.0);
                events.map(|(_, event)| format!("{event}\n")).collect()
            };
            if !lines.is_empty() {
                return Some(lines.into());
            }
            tokio::select! {
                Ok(()) = self.changed.changed() => {}
                () = sleep_until(self.end) => return None,
                () = sleep_until(self.bookmark) => {
                    self.bookmark += Duration::from_secs(1);
                    let object = json!({
                        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                        "metadata": { "resourceVersion": self.from.to_string() },
                        "addressType": "", "endpoints": null
                    });
                    let event = json!({ "type": "BOOKMARK", "object": object });
                    return Some(format!("{event}\n").into());
                }
            }
        }
    }
}

/// One slice for each server, so that a change is several events.
impl Registry for ApiServer {
    async fn list(&mut self, servers: &[SocketAddr]) {
        let names = |state: &State| state.slices.keys().cloned().collect::<Vec<_>>();
        let before = names(&self.shared.state.lock().unwrap());
        for server in servers {
            let name = format!("users-{}", server.ip());
            if !before.contains(&name) {
                self.apply(&name, slice(&[*server]));
            }
        }
        for name in before {
            let is_listed = servers
                .iter()
                .any(|server| name == format!("users-{}", server.ip()));
            if !is_listed {
                self.delete(&name);
            }
        }
    }
}
