use std::{fmt, net::SocketAddr, time::Duration};

use futures_util::stream;
use hickory_resolver::proto::rr::Name;

use super::{resolve::Resolve, resolver::Servers};
use crate::discover::{
    AddressFamily,
    source::{
        Found, Source, StartError, follow,
        settings::{Settings, source_setters},
    },
};

/// Finds targets in DNS: the addresses of a name, or its SRV records.
///
/// ```no_run
/// use tower::{ServiceBuilder, service_fn};
/// use tower_lb::{BalanceLayer, Dns, Endpoint, P2c, PeakEwmaLayer, each};
///
/// # async fn run() -> Result<(), tower::BoxError> {
/// let users = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PeakEwmaLayer::default()))
///     .layer(Dns::new("users.internal.", 8080).start()?)
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
/// - **A change takes a TTL to be seen**, and that of each cache between. Give names of backends a
///   short one, such as 5 s, and keep a server that leaves running for at least two: nothing tells
///   the clients that it is about to go. Outlier detection and failover cover the rest.
/// - **A name ends with a dot** if it is complete. Without one, each domain of the search list is
///   tried as well: in a Kubernetes pod up to five queries for each address family.
/// - **Resolvers answer from a cache** when their server is away, or with `NXDOMAIN` when they are
///   set up wrongly. An empty answer keeps the last set; see [`when_empty`](Self::when_empty).
/// - **Some servers answer with a part** of the addresses, each time another one. Ask one that
///   answers with all of them, or the set changes with each answer.
/// - **TLS** is for the name, not the address: give the client the name to verify, and the
///   endpoint's address to connect to.
///
/// # What it does
///
/// - It asks again shortly before the TTL has passed, after 1 s to 5 min, and after at most 30 s
///   where there are no targets. While servers fail, the last answer stays in use for as long as it
///   takes.
/// - A name that does not exist, or has no addresses, is an empty answer. `SERVFAIL`, other errors
///   and time-outs are failures. Where one of several lookups fails, such as that for IPv6
///   addresses, its last answer stays, and the others count.
/// - An answer that is too long for UDP is asked for once more over TCP.
/// - Without [`servers`](Self::servers), the system's configuration tells which are asked. It is
///   read at the start, and after each failure.
#[derive(Clone)]
#[must_use = "a source does nothing unless started"]
pub struct Dns {
    name: String,
    records: Records,
    servers: Servers,
    family: AddressFamily,
    shortest: Duration,
    longest: Duration,
    settings: Settings,
}

/// What to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Records {
    /// A and AAAA; the port is known.
    Addresses {
        port: u16,
    },
    Srv,
}

impl Dns {
    /// Looks up the addresses of a name, which are targets with this port.
    ///
    /// An IP address in place of the name is the only target.
    pub fn new(name: impl Into<String>, port: u16) -> Self {
        Self::of(name.into(), Records::Addresses { port })
    }

    /// Looks up the SRV records of a name such as `_http._tcp.users.internal.`.
    ///
    /// A record's name, port, weight and priority become those of a target for each address that
    /// the name has. The name with its port is the target's
    /// [`hash_key`](crate::Target::hash_key), if it has one address. Weights compare within a
    /// priority: where a 0 stands beside others, all are taken times 10, and 0 becomes 1
    /// (RFC 2782). Cost of an answer: a query, and one or two for each name.
    pub fn srv(name: impl Into<String>) -> Self {
        Self::of(name.into(), Records::Srv)
    }

    fn of(name: String, records: Records) -> Self {
        Self {
            name,
            records,
            servers: Servers::System,
            family: AddressFamily::default(),
            shortest: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            settings: Settings::LIST,
        }
    }

    /// Sets the servers to ask. Default: those of the system's configuration.
    ///
    /// They are asked over UDP, and over TCP where an answer is long. The system's file of hosts and
    /// its search list don't count then.
    pub fn servers(mut self, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.servers = Servers::Given(servers.into_iter().collect());
        self
    }

    /// Sets which addresses of a name are used. Default: all.
    pub const fn family(mut self, family: AddressFamily) -> Self {
        self.family = family;
        self
    }

    /// Sets the least and the most time between two lookups, whatever the TTL is.
    ///
    /// Default 1 s and 5 min. A long least time makes a change late; a short one costs queries.
    ///
    /// # Panics
    ///
    /// If `shortest` is zero, or longer than `longest`.
    #[track_caller]
    pub fn refresh_between(mut self, shortest: Duration, longest: Duration) -> Self {
        assert!(!shortest.is_zero(), "the least time must not be zero");
        assert!(
            shortest <= longest,
            "the least time is longer than the most"
        );
        self.shortest = shortest;
        self.longest = longest;
        self
    }

    source_setters!();

    /// Starts to look up. The task ends when all that was made of the result is gone.
    ///
    /// # Errors
    ///
    /// If the name is none, the port is 0, or the list of servers is empty; also if there is no tokio
    /// runtime here, or none with timers.
    pub fn start(self) -> Result<Found, StartError> {
        self.source()?.start()
    }

    pub(in crate::discover) fn source(self) -> Result<Source, StartError> {
        let bad = |problem: String| Err(StartError::bad_setting(&self, problem));
        if self.records == (Records::Addresses { port: 0 }) {
            return bad("the port is 0".into());
        }
        let name = Name::from_utf8(&self.name);
        if let (Records::Addresses { port }, Ok(ip)) = (self.records, self.name.parse()) {
            let kind = self.to_string();
            return Ok(Source::fixed(vec![SocketAddr::new(ip, port)]).with(kind, self.settings));
        }
        let name = match name {
            Ok(name) if name.num_labels() > 0 => name,
            Ok(_) => return bad("the name is missing".into()),
            Err(error) => return bad(format!("{:?} is no name: {error}", self.name)),
        };
        if matches!(&self.servers, Servers::Given(servers) if servers.is_empty()) {
            return bad("the list of servers is empty".into());
        }
        let kind = self.to_string();
        let resolve = Resolve::new(
            name,
            self.records,
            self.servers,
            self.family,
            self.shortest..=self.longest,
        );
        let lists = stream::unfold(resolve, |mut resolve| async move {
            let list = resolve.next().await;
            Some((list, resolve))
        });
        Ok(follow(lists).with(kind, self.settings))
    }
}

/// Prints as the source is called.
impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.records {
            Records::Addresses { port } => write!(f, "dns {name}:{port}"),
            Records::Srv => write!(f, "srv {name}"),
        }
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dns")
            .field("name", &self.name)
            .field("records", &self.records)
            .field("servers", &self.servers)
            .field("family", &self.family)
            .finish_non_exhaustive()
    }
}
