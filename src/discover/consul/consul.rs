use std::{fmt, path::PathBuf, time::Duration};

use futures_util::stream;
use http::{Request, Response, Uri};
use http_body::Body;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tower::{BoxError, Service};

use super::{
    client::{self, Client},
    instances::Reading,
    query::{Consistency, Query},
    token::Token,
};
use crate::discover::source::{
    Found, Source, StartError, follow,
    settings::{Settings, source_setters},
};

/// Finds targets in Consul: the healthy instances of a service.
///
/// ```no_run
/// use tower::{ServiceBuilder, service_fn};
/// use tower_lb::{BalanceLayer, Consul, Endpoint, P2c, PeakEwmaLayer, each};
///
/// # async fn run() -> Result<(), tower::BoxError> {
/// let users = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PeakEwmaLayer::default()))
///     .layer(Consul::new("users").tag("v2").start()?)
///     .service(|endpoint: &Endpoint| {
///         let address = *endpoint.address();
///         service_fn(move |()| async move { Ok::<_, std::io::Error>(address) })
///     });
/// # let _ = tower::ServiceExt::oneshot(users, ()).await?;
/// # Ok(())
/// # }
/// ```
///
/// # In production
///
/// - **Ask the agent of the own machine**, which is the default. It is there when the servers are
///   not, and its token need not leave the machine.
/// - **How old an answer is.** A change is seen some milliseconds after the servers know of it. They
///   know of a failed check when its agent has synchronized: after its interval, and within a
///   second more. A machine that is lost is found by gossip, in some ten seconds.
///   [`Consistency::Stale`] takes load from the leader, and answers while there is none; then the
///   answer may be as old as the cut.
/// - **An agent that restarts** answers with what it knows, at first perhaps with nothing. For 30 s
///   the last set stays, see [`when_empty`](Self::when_empty).
/// - **Deregister, wait, then stop.** Put the instance into maintenance, let a second pass, finish
///   what has begun. Then no request is lost.
/// - **The token** needs `service:read` for the service and `node:read` for its nodes: without the
///   latter, Consul leaves instances out and says nothing.
/// - **TLS** is by a client of yours, see [`client`](Self::client).
///
/// # What it does
///
/// - It asks `/v1/health/service/` by blocking queries: each one waits until something changes, or
///   for a minute. Changes that come within 50 ms are one answer.
/// - After an error, a lost connection or an index that has gone back, the next query asks for what
///   there is, and does not wait.
/// - An instance without an address is at its node's. One whose address is a name, or that has no
///   port, is left out; if all are, the source fails.
/// - The id of the instance is its [`hash_key`](crate::Target::hash_key); with the node's name where
///   the id is not unique, or is the service's name.
/// - The locality's zone is the target's zone, or what [`zone_meta`](Self::zone_meta) names.
///
/// Cost: each change sends and reads the whole list, **O(n)**, on a thread for blocking work.
#[must_use = "a source does nothing unless started"]
pub struct Consul {
    service: String,
    address: String,
    client: Option<Client>,
    token: Token,
    parameters: Vec<(&'static str, String)>,
    consistency: Consistency,
    wait: Duration,
    reading: Reading,
    settings: Settings,
}

impl Consul {
    /// Asks the agent at `http://127.0.0.1:8500` for the instances of a service whose checks pass.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            address: "http://127.0.0.1:8500".to_owned(),
            client: None,
            token: Token::None,
            parameters: Vec::new(),
            consistency: Consistency::Default,
            wait: Duration::from_secs(60),
            reading: Reading::default(),
            settings: Settings::REGISTRY,
        }
    }

    /// As [`new`](Self::new), with what the environment sets, as for Consul's own tools.
    ///
    /// That is `CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN` or `CONSUL_HTTP_TOKEN_FILE`, and
    /// `CONSUL_NAMESPACE`.
    pub fn from_env(service: impl Into<String>) -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut consul = Self::new(service);
        if let Some(address) = variable("CONSUL_HTTP_ADDR") {
            consul = consul.address(address);
        }
        if let Some(path) = variable("CONSUL_HTTP_TOKEN_FILE") {
            consul = consul.token_file(path);
        }
        if variable("CONSUL_HTTP_TOKEN").is_some() {
            consul = consul.token_variable("CONSUL_HTTP_TOKEN");
        }
        match variable("CONSUL_NAMESPACE") {
            Some(namespace) => consul.namespace(namespace),
            None => consul,
        }
    }

    /// Sets where the agent is: `http://host:port`, with a path before `/v1` if it has one.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Sets the client that asks. Default: one over HTTP/1.1, without TLS.
    ///
    /// Take any `tower` service of `http` requests, such as hyper-util's client over a connector
    /// with TLS. It must not end a query before its wait is over: no timeout below a minute.
    pub fn client<C, B>(mut self, client: C) -> Self
    where
        C: Service<Request<String>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
        C: Clone + Send + 'static,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        self.client = Some(client::of_service(client));
        self
    }

    /// Sets the ACL token. Default: none, and what the agent gives to requests without one.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Token::Value(token.into());
        self
    }

    /// Takes the ACL token from a file, which is read for each query.
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Token::File(path.into());
        self
    }

    /// Takes the ACL token from an environment variable, which is read for each query.
    pub fn token_variable(mut self, name: impl Into<String>) -> Self {
        self.token = Token::Variable(name.into());
        self
    }

    /// Takes instances with warnings as well, with the weight that Consul has for them.
    ///
    /// Default: only those whose every check passes. The weights are `Service.Weights`; Consul's
    /// defaults are 1 and 1, so set a lower one for warnings.
    pub const fn with_warnings(mut self) -> Self {
        self.reading.with_warnings = true;
        self
    }

    /// Takes only instances with this tag. With several, they must have all.
    pub fn tag(self, tag: impl Into<String>) -> Self {
        self.with("tag", tag)
    }

    /// Sets the namespace, in Consul Enterprise. Default: that of the token.
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        self.with("ns", namespace)
    }

    /// Sets the datacenter. Default: that of the agent.
    pub fn datacenter(self, datacenter: impl Into<String>) -> Self {
        self.with("dc", datacenter)
    }

    /// Asks for the instances sorted by the round-trip time from this node; `_agent` is the agent's.
    ///
    /// The order means nothing to a balancer. It does to what stands between, such as a proxy that
    /// cuts the list.
    pub fn near(self, node: impl Into<String>) -> Self {
        self.with("near", node)
    }

    /// Takes only instances that this expression selects, such as `Service.Meta.version == "2"`.
    pub fn filter(self, expression: impl Into<String>) -> Self {
        self.with("filter", expression)
    }

    /// Sets how Consul's servers agree on an answer.
    pub const fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Sets how long a query waits for a change. Default one minute.
    ///
    /// A connection that died without a word is found some ten seconds after. Consul waits ten
    /// minutes at most.
    ///
    /// # Panics
    ///
    /// If it is less than a second, or more than ten minutes.
    #[track_caller]
    pub fn wait(mut self, wait: Duration) -> Self {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(600);
        assert!(allowed.contains(&wait), "a query waits for 1 s to 10 min");
        self.wait = wait;
        self
    }

    /// Takes the zone from the metadata of the instance's node, at this key.
    ///
    /// Default: the zone of the locality, which Consul knows from version 1.17 on.
    pub fn zone_meta(mut self, key: impl Into<String>) -> Self {
        self.reading.zone_meta = Some(key.into());
        self
    }

    fn with(mut self, parameter: &'static str, value: impl Into<String>) -> Self {
        if parameter != "tag" {
            self.parameters.retain(|(name, _)| *name != parameter);
        }
        self.parameters.push((parameter, value.into()));
        self
    }

    source_setters!();

    /// Starts to ask. The task ends when all that was made of the result is gone.
    ///
    /// # Errors
    ///
    /// If the service's name is missing, or the address is none, or is one with TLS without a client
    /// for it; also if there is no tokio runtime here, or none with timers.
    pub fn start(self) -> Result<Found, StartError> {
        self.source()?.start()
    }

    pub(in crate::discover) fn source(self) -> Result<Source, StartError> {
        let kind = self.to_string();
        let uri = match self.uri() {
            Ok(uri) => uri,
            Err(problem) => return Err(StartError::bad_setting(&kind, problem)),
        };
        let client = self.client.unwrap_or_else(client::plain);
        let query = Query::new(client, uri, self.token, self.wait, self.reading);
        let lists = stream::unfold(query, |mut query| async move {
            let list = query.next().await;
            Some((list, query))
        });
        Ok(follow(lists).with(kind, self.settings))
    }

    /// Returns what is asked for, but for the index.
    fn uri(&self) -> Result<String, String> {
        if self.service.is_empty() {
            return Err("the name of the service is missing".to_owned());
        }
        let address = self.address.trim_end_matches('/');
        let address = match address.contains("://") {
            true => address.to_owned(),
            false => format!("http://{address}"),
        };
        let parsed: Uri = match address.parse() {
            Ok(uri) => uri,
            Err(error) => return Err(format!("{address:?} is no address: {error}")),
        };
        match parsed.scheme_str() {
            Some("http") => {}
            Some("https") if self.client.is_some() => {}
            Some("https") => return Err("https needs a client with TLS, see `client`".to_owned()),
            _ => return Err(format!("{address:?} is no address of http or https")),
        }
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (service, wait) = (encode(&self.service), self.wait.as_millis());
        let mut uri = format!("{address}/v1/health/service/{service}?wait={wait}ms");
        if !self.reading.with_warnings {
            uri += "&passing=1";
        }
        for (name, value) in &self.parameters {
            uri += &format!("&{name}={}", encode(value));
        }
        if let Some(parameter) = self.consistency.parameter() {
            uri += &format!("&{parameter}=");
        }
        Ok(uri)
    }
}

/// Prints as the source is called.
impl fmt::Display for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "consul {}", self.service)
    }
}

impl fmt::Debug for Consul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consul")
            .field("service", &self.service)
            .field("address", &self.address)
            .field("token", &self.token)
            .field("parameters", &self.parameters)
            .field("consistency", &self.consistency)
            .finish_non_exhaustive()
    }
}
