use std::{fmt, path::PathBuf};

use futures_util::stream;

use super::{
    slices::{Reading, ServicePort},
    watch::{Place, Watch},
};
use crate::discover::{
    AddressFamily,
    source::{
        Found, Source, StartError, follow,
        settings::{Settings, source_setters},
    },
};

/// Finds targets in Kubernetes: the ready endpoints of a service, from its EndpointSlices.
///
/// ```no_run
/// use tower::{ServiceBuilder, service_fn};
/// use tower_lb::{BalanceLayer, Endpoint, Kubernetes, P2c, PeakEwmaLayer, each};
///
/// # async fn run() -> Result<(), tower::BoxError> {
/// let users = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PeakEwmaLayer::default()))
///     .layer(Kubernetes::new("users").namespace("shop").port("http").start()?)
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
/// - **The Role** that the pod's service account needs, bound by a RoleBinding in the namespace of
///   the service:
///   ```yaml
///   kind: Role
///   apiVersion: rbac.authorization.k8s.io/v1
///   metadata: { name: endpoint-reader, namespace: shop }
///   rules:
///   - apiGroups: ["discovery.k8s.io"]
///     resources: ["endpointslices"]
///     verbs: ["get", "list", "watch"]
///   ```
/// - **TLS** to the API server needs the feature `kubernetes-rustls`, or a TLS feature of the crate
///   `kube` in your own dependencies.
/// - **How long a dead pod keeps traffic.** One that fails its readiness probe: the probe's period
///   times its failure threshold, 30 s by default. One whose node is lost: 40 to 50 s until the node is
///   `Unknown`, then its endpoints are not ready. All this time, put
///   [`OutlierLayer`](crate::OutlierLayer) above: it ejects such a pod after five failures, and
///   [`FailoverLayer`](crate::FailoverLayer) sends the requests elsewhere.
/// - **Termination.** A pod is told to stop at the moment that its endpoint begins to terminate, not
///   after the clients know. Give it a `preStop` hook that sleeps for some seconds, and let the
///   server finish what it has begun. Pods that terminate and still serve get requests only while
///   none is ready.
/// - **Readiness gates** and `publishNotReadyAddresses` count as in `kube-proxy`: the slice says
///   what is ready.
/// - **TLS to a pod** is for the service's name, not the pod's address: give the client the name to
///   verify, and the endpoint's address to connect to.
///
/// # What it does
///
/// - It lists, then watches. After a disconnect the watch goes on from where it was; where that is
///   too old (410), or the API server was away, it lists once more. A set that is listed by half is
///   never seen: until the list is complete, the last set stays.
/// - Slices are merged, and an address counts once. The zone is the target's zone. The name of a
///   pod of a stateful set, such as `web-0`, is its [`hash_key`](crate::Target::hash_key).
/// - After a failure, the configuration and credentials are read again. Tokens in files are read
///   again each minute.
///
/// Cost: a list of n endpoints for each change, **O(n)**; changes that come together are one.
#[derive(Clone)]
#[must_use = "a source does nothing unless started"]
pub struct Kubernetes {
    place: Place,
    reading: Reading,
    settings: Settings,
}

impl Kubernetes {
    /// Watches the slices of a service.
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            place: Place {
                service: service.into(),
                namespace: None,
                kubeconfig: None,
                context: None,
            },
            reading: Reading {
                port: None,
                family: AddressFamily::PreferV4,
                weight_annotation: None,
            },
            settings: Settings::REGISTRY,
        }
    }

    /// Sets the namespace of the service. Default: that of the pod, or of the context.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.place.namespace = Some(namespace.into());
        self
    }

    /// Sets the port: its name in the service, or the number that the pods listen at.
    ///
    /// Default: the only TCP port. Where there are several, the source fails and names them.
    pub fn port(mut self, port: impl Into<ServicePort>) -> Self {
        self.reading.port = Some(port.into());
        self
    }

    /// Sets which addresses are used. Default [`PreferV4`](AddressFamily::PreferV4).
    ///
    /// In a cluster of two families, each pod has an address of each: with
    /// [`Both`](AddressFamily::Both) it is two endpoints.
    pub const fn family(mut self, family: AddressFamily) -> Self {
        self.reading.family = family;
        self
    }

    /// Sets the annotation of an EndpointSlice that holds the weight of its endpoints.
    ///
    /// It is for slices that you write yourself: those of Kubernetes have no such annotation.
    /// Default: none, and each endpoint has weight 1, as where the annotation is no number.
    pub fn weight_annotation(mut self, key: impl Into<String>) -> Self {
        self.reading.weight_annotation = Some(key.into());
        self
    }

    /// Sets the file with the configuration of the client.
    ///
    /// Default: the service account of the pod; outside a cluster, `KUBECONFIG` or
    /// `~/.kube/config`.
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.place.kubeconfig = Some(path.into());
        self
    }

    /// Sets the context of the configuration. Default: the current one.
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.place.context = Some(context.into());
        self
    }

    source_setters!();

    /// Starts to watch. The task ends when all that was made of the result is gone.
    ///
    /// # Errors
    ///
    /// If the service's name is none, or the port is 0; also if there is no tokio runtime here, or
    /// none with timers. A configuration that can't be read is a failure of the source, which tries
    /// again: [`Found::first`] tells.
    pub fn start(self) -> Result<Found, StartError> {
        self.source()?.start()
    }

    pub(in crate::discover) fn source(self) -> Result<Source, StartError> {
        let kind = self.to_string();
        let bad = |problem: &str| Err(StartError::bad_setting(&kind, problem.to_owned()));
        if !is_name(&self.place.service) {
            return bad("the name of the service is none");
        }
        if self
            .place
            .namespace
            .as_deref()
            .is_some_and(|name| !is_name(name))
        {
            return bad("the name of the namespace is none");
        }
        if self.reading.port == Some(ServicePort::Number(0)) {
            return bad("the port is 0");
        }
        let watch = Watch::new(self.place, self.reading);
        let lists = stream::unfold(watch, |mut watch| async move {
            let list = watch.next().await;
            Some((list, watch))
        });
        Ok(follow(lists).with(kind, self.settings))
    }
}

/// Returns whether a text may be the name of a service or a namespace (RFC 1123).
fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(is_part)
}

/// Prints as the source is called.
impl fmt::Display for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place {
            service, namespace, ..
        } = &self.place;
        f.write_str("kubernetes ")?;
        if let Some(namespace) = namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(service)?;
        match &self.reading.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes")
            .field("place", &self.place)
            .field("reading", &self.reading)
            .finish_non_exhaustive()
    }
}
