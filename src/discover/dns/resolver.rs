use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join;
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData, RecordType, rdata::SRV},
    system_conf::read_system_conf,
};

use tokio::time::timeout;

use crate::discover::AddressFamily;

/// The servers that are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    System,
    Given(Vec<SocketAddr>),
}

/// Asks servers for names, in each domain of the search list.
pub(super) struct Resolver {
    resolver: TokioResolver,
    search: Vec<Name>,
    ndots: usize,
}

/// What servers have answered, and how long it holds.
#[derive(Debug)]
pub(super) struct Answer<T> {
    pub(super) records: Vec<T>,
    pub(super) ttl: Duration,
}

/// The answers to the lookups of one name, for each family that is asked for.
pub(super) struct LookedUp {
    pub(super) name: Name,
    v4: Option<Result<Answer<IpAddr>, Failed>>,
    v6: Option<Result<Answer<IpAddr>, Failed>>,
}

/// The addresses of one name, some of which may be those of an earlier answer.
pub(super) struct Addresses {
    pub(super) used: Vec<IpAddr>,
    pub(super) ttl: Duration,
    /// Whether a lookup of now has found addresses.
    pub(super) is_fresh: bool,
    pub(super) failed: Option<Failed>,
}

/// The addresses of each name and kind of records.
pub(super) type Known = HashMap<(Name, RecordType), Vec<IpAddr>>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    Configuration(NetError),
    Lookup(Name, RecordType, NetError),
    Slow(Duration),
}

impl Resolver {
    pub(super) fn new(servers: &Servers) -> Result<Self, NetError> {
        let (config, mut options) = match servers {
            Servers::System => read_system_conf()?,
            Servers::Given(servers) => given(servers),
        };
        // Each lookup is to see what there is now.
        options.cache_size = 0;
        let (domain, search) = (config.domain().cloned(), config.search().to_vec());
        let ndots = options.ndots;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Ok(Self {
            resolver: resolver.with_options(options).build()?,
            search: if search.is_empty() {
                domain.into_iter().collect()
            } else {
                search
            },
            ndots,
        })
    }

    /// Looks up the addresses of a name, for both families at once.
    pub(super) async fn addresses(&self, name: Name, family: AddressFamily) -> LookedUp {
        let lookup = async |kind, is_asked: bool| match is_asked {
            true => Some(self.lookup(&name, kind, ip).await),
            false => None,
        };
        let v4 = lookup(RecordType::A, family != AddressFamily::V6);
        let v6 = lookup(RecordType::AAAA, family != AddressFamily::V4);
        let (v4, v6) = join(v4, v6).await;
        LookedUp { name, v4, v6 }
    }

    pub(super) async fn srv(&self, name: &Name) -> Result<Answer<SRV>, Failed> {
        let srv = |data: &RData| match data {
            // The root stands for a service that is not to be had here.
            RData::SRV(srv) if !srv.target.is_root() => Some(srv.clone()),
            _ => None,
        };
        self.lookup(name, RecordType::SRV, srv).await
    }

    /// Looks up one kind of records, and takes what it is asked for from their data.
    ///
    /// Of the names that the search list makes, the first one with records counts. Where there is
    /// none, a failure of one of them is a failure of all: it might have had records.
    async fn lookup<T>(
        &self,
        name: &Name,
        kind: RecordType,
        take: fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, Failed> {
        let mut ttl = Duration::MAX;
        let mut failed = None;
        for name in self.names(name) {
            // By itself, so that one server that is silent about one kind does not silence all.
            let lookup = timeout(LONGEST_LOOKUP, self.resolver.lookup(name.clone(), kind)).await;
            match lookup.unwrap_or(Err(NetError::Timeout)) {
                Ok(lookup) => {
                    let answers = lookup.answers();
                    let records: Vec<T> = answers.iter().filter_map(|r| take(&r.data)).collect();
                    // A name that is an alias holds as long as the shortest of the records.
                    let least = answers.iter().map(|record| record.ttl).min();
                    ttl = ttl.min(Duration::from_secs(least.unwrap_or(0).into()));
                    if !records.is_empty() {
                        return Ok(Answer { records, ttl });
                    }
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
                    let least = nothing.negative_ttl.unwrap_or(0);
                    ttl = ttl.min(Duration::from_secs(least.into()));
                }
                Err(error) => failed = Some(Failed::Lookup(name, kind, error)),
            }
        }
        match failed {
            Some(failed) => Err(failed),
            None => Ok(Answer {
                records: Vec::new(),
                ttl,
            }),
        }
    }

    /// Returns the complete names that a name may stand for, in the order to try them.
    fn names(&self, name: &Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name.clone()];
        }
        let mut alone = name.clone();
        alone.set_fqdn(true);
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let search = self.search.iter();
        // A name that would be too long is none.
        let searched = search.filter_map(|domain| name.clone().append_domain(domain).ok());
        let searched = searched.map(|mut name| {
            name.set_fqdn(true);
            name
        });
        match dots >= self.ndots {
            true => std::iter::once(alone).chain(searched).collect(),
            false => searched.chain([alone]).collect(),
        }
    }
}

impl LookedUp {
    /// Puts the last answers in the place of those that failed.
    ///
    /// What is used is noted in `known` for the next time.
    pub(super) fn merge(self, last: &Known, known: &mut Known, family: AddressFamily) -> Addresses {
        let name = self.name;
        let mut ttl = Duration::MAX;
        let (mut is_fresh, mut failed) = (false, None);
        let mut use_of = |kind, looked_up: Option<Result<Answer<IpAddr>, Failed>>| {
            let key = (name.clone(), kind);
            let used = match looked_up {
                Some(Ok(Answer {
                    records,
                    ttl: holds,
                })) => {
                    ttl = ttl.min(holds);
                    is_fresh |= !records.is_empty();
                    records
                }
                Some(Err(error)) => {
                    failed = Some(error);
                    last.get(&key).cloned().unwrap_or_default()
                }
                None => Vec::new(),
            };
            known.insert(key, used.clone());
            used
        };
        let v4 = use_of(RecordType::A, self.v4);
        let v6 = use_of(RecordType::AAAA, self.v6);
        Addresses {
            used: family.choose(v4, v6),
            ttl,
            is_fresh,
            failed,
        }
    }
}

fn given(servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = Duration::from_secs(2);
    let servers = servers.iter().map(|server| {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut config.connections {
            connection.port = server.port();
        }
        config
    });
    (
        ResolverConfig::from_name_servers(servers.collect()),
        options,
    )
}

fn ip(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(a.0.into()),
        RData::AAAA(aaaa) => Some(aaaa.0.into()),
        _ => None,
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(error) => write!(f, "the system's configuration of DNS: {error}"),
            Self::Lookup(name, kind, error) => write!(f, "{name} {kind}: {error}"),
            Self::Slow(longest) => write!(f, "no answer within {longest:?}"),
        }
    }
}

/// Leaves time for others within the time of the whole answer.
const LONGEST_LOOKUP: Duration = Duration::from_secs(4);
