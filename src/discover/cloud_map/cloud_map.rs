use std::{fmt, time::Duration};

use aws_sdk_servicediscovery::{Client, types::HealthStatusFilter};
use futures_util::stream;

use super::{
    ask::{Ask, Clients, Wanted},
    instances::Reading,
};
use crate::discover::{
    AddressFamily,
    source::{
        Found, Source, StartError, follow,
        settings::{Settings, source_setters},
    },
};

/// Finds targets in AWS Cloud Map: the instances of a service.
///
/// ```no_run
/// use aws_sdk_servicediscovery::Client;
/// use tower::{ServiceBuilder, service_fn};
/// use tower_lb::{BalanceLayer, CloudMap, Endpoint, P2c, PeakEwmaLayer, each};
///
/// # async fn run(client: Client) -> Result<(), tower::BoxError> {
/// let users = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PeakEwmaLayer::default()))
///     .layer(CloudMap::new(client, "shop.internal", "users").start()?)
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
/// - **IAM**: the actions `servicediscovery:DiscoverInstances` and
///   `servicediscovery:DiscoverInstancesRevision`, limited by the condition keys
///   `servicediscovery:NamespaceName` and `servicediscovery:ServiceName`.
/// - **A change is seen within the interval**, 5 s by default. ECS deregisters a task
///   and then stops it at once: let a task that is told to stop serve on for some seconds, or
///   requests that were under way are lost. Failover covers the rest.
/// - **Health** is that of Route 53 checks, of custom checks, or of ECS. An instance without a check
///   is healthy. A task that dies without a word is found by its check; outlier detection is faster.
/// - **Quotas**: an account has so many calls a second for all its clients, see AWS's page on the
///   quotas of Cloud Map. An interval of 5 s costs each client 0.2 cheap calls a second, and a call
///   for the instances when they have changed, and each minute. While AWS says that there are too
///   many requests, the interval doubles.
/// - **1 000 instances** are what a service can have, and what an answer holds.
/// - **DNS** names of a namespace show at most eight instances in each answer: this source shows all.
///
/// # What it does
///
/// - It asks for the revision of the instances, and for the instances when that is another one.
/// - The addresses are `AWS_INSTANCE_IPV4` and `AWS_INSTANCE_IPV6`, the port is
///   `AWS_INSTANCE_PORT`. An instance without them, such as one with a `CNAME`, is left out; if all
///   are, the source fails. The id is the target's [`hash_key`](crate::Target::hash_key).
#[derive(Clone)]
#[must_use = "a source does nothing unless started"]
pub struct CloudMap {
    clients: Clients,
    wanted: Wanted,
    every: Duration,
    reading: Reading,
    settings: Settings,
}

/// Selects instances by their health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HealthFilter {
    /// The healthy ones.
    Healthy,
    /// The healthy ones, or all where none is healthy.
    #[default]
    HealthyOrElseAll,
    /// All.
    All,
}

impl CloudMap {
    /// Asks with a client of yours for the instances of a service, by their names.
    pub fn new(client: Client, namespace: impl Into<String>, service: impl Into<String>) -> Self {
        Self::of(Clients::Given(client), namespace.into(), service.into())
    }

    /// As [`new`](Self::new), with a client by the environment: region, profile, credentials.
    ///
    /// It is made when the source has started. Its TLS is rustls with ring.
    #[cfg(feature = "cloud-map-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cloud-map-rustls")))]
    pub fn from_env(namespace: impl Into<String>, service: impl Into<String>) -> Self {
        Self::of(Clients::OfEnv, namespace.into(), service.into())
    }

    fn of(clients: Clients, namespace: String, service: String) -> Self {
        Self {
            clients,
            wanted: Wanted {
                namespace,
                service,
                health: HealthStatusFilter::HealthyOrElseAll,
                attributes: Vec::new(),
            },
            every: Duration::from_secs(5),
            reading: Reading {
                family: AddressFamily::PreferV4,
                port: None,
                weight_attribute: None,
                zone_attribute: "AVAILABILITY_ZONE".to_owned(),
            },
            settings: Settings::REGISTRY,
        }
    }

    /// Sets the interval. Default 5 s. A short one costs calls, which have a quota.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[track_caller]
    pub fn every(mut self, every: Duration) -> Self {
        assert!(!every.is_zero(), "the interval must not be zero");
        self.every = every;
        self
    }

    /// Sets which instances are found by their health. Default
    /// [`HealthyOrElseAll`](HealthFilter::HealthyOrElseAll).
    pub fn health(mut self, health: HealthFilter) -> Self {
        self.wanted.health = match health {
            HealthFilter::Healthy => HealthStatusFilter::Healthy,
            HealthFilter::HealthyOrElseAll => HealthStatusFilter::HealthyOrElseAll,
            HealthFilter::All => HealthStatusFilter::All,
        };
        self
    }

    /// Takes only instances whose attribute has this value. With several, all must match.
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.wanted.attributes.push((key.into(), value.into()));
        self
    }

    /// Sets which addresses are used. Default [`PreferV4`](AddressFamily::PreferV4).
    ///
    /// An instance that has an address of each family is two endpoints with
    /// [`Both`](AddressFamily::Both).
    pub const fn family(mut self, family: AddressFamily) -> Self {
        self.reading.family = family;
        self
    }

    /// Sets the port of instances without one. Default: they are left out.
    pub const fn port(mut self, port: u16) -> Self {
        self.reading.port = Some(port);
        self
    }

    /// Sets the attribute that holds an instance's weight.
    ///
    /// Default: none, and each has weight 1, as one whose attribute is no number.
    pub fn weight_attribute(mut self, key: impl Into<String>) -> Self {
        self.reading.weight_attribute = Some(key.into());
        self
    }

    /// Sets the attribute that holds an instance's zone. Default `AVAILABILITY_ZONE`, as ECS sets.
    pub fn zone_attribute(mut self, key: impl Into<String>) -> Self {
        self.reading.zone_attribute = key.into();
        self
    }

    source_setters!();

    /// Starts to ask. The task ends when all that was made of the result is gone.
    ///
    /// # Errors
    ///
    /// If a name is missing, or the port is 0; also if there is no tokio runtime here, or none with
    /// timers. Missing credentials are a failure of the source: [`Found::first`] tells.
    pub fn start(self) -> Result<Found, StartError> {
        self.source()?.start()
    }

    pub(in crate::discover) fn source(self) -> Result<Source, StartError> {
        let kind = self.to_string();
        let bad = |problem: &str| Err(StartError::bad_setting(&kind, problem.to_owned()));
        if self.wanted.namespace.is_empty() {
            return bad("the name of the namespace is missing");
        }
        if self.wanted.service.is_empty() {
            return bad("the name of the service is missing");
        }
        if self.reading.port == Some(0) {
            return bad("the port is 0");
        }
        let ask = Ask::new(self.clients, self.wanted, self.reading, self.every);
        let lists = stream::unfold(ask, |mut ask| async move {
            let list = ask.next().await;
            Some((list, ask))
        });
        Ok(follow(lists).with(kind, self.settings))
    }
}

/// Prints as the source is called.
impl fmt::Display for CloudMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wanted {
            namespace, service, ..
        } = &self.wanted;
        write!(f, "cloud-map {namespace}/{service}")
    }
}

impl fmt::Debug for CloudMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudMap")
            .field("namespace", &self.wanted.namespace)
            .field("service", &self.wanted.service)
            .field("every", &self.every)
            .field("reading", &self.reading)
            .finish_non_exhaustive()
    }
}
