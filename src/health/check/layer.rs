use std::{fmt, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};
use tower::Layer;

use super::{
    discover::HealthCheckDiscover,
    settings::{CheckSettings, UntilFirstCheck},
    traffic::{IdleInterval, Traffic},
};
use crate::{endpoint::Endpoint, random::entropy, upstream::DiscoverEndpoints};

/// Checks every endpoint at an interval, and takes those out of the picks whose checks fail.
///
/// A check is any `Fn(Endpoint<A>, S) -> impl Future<Output = Result<(), E>>`. It gets the
/// endpoint's own service. So it takes the same path as requests, from this layer on down; below
/// the trackers it does not count as load.
///
/// The checks of all endpoints run concurrently on the driver's task. They must not block. They end
/// with the balancer.
///
/// Three failures in a row make an endpoint unhealthy; two successes in a row make it healthy
/// again. Where the first check is [waited for](Self::until_first_check), its result alone decides.
/// A check that exceeds the timeout or panics has failed. A check that succeeds ends an ejection by
/// outlier detection.
///
/// ```
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed, health::HealthCheckLayer};
///
/// # #[derive(Clone)] struct Get(&'static str);
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let checks = HealthCheckLayer::new(|_: Endpoint<&'static str>, service| async move {
///     match ServiceExt::oneshot(service, Get("/healthz")).await {
///         Ok(200) => Ok(()),
///         Ok(status) => Err(format!("status {status}")),
///         Err(error) => Err(error),
///     }
/// });
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(checks.interval(Duration::from_secs(5)))
///     .layer(fixed(["a", "b"]))
///     .service(|_: &Endpoint<&'static str>| service_fn(|_: Get| async { Ok::<_, String>(200) }));
/// # client.oneshot(Get("/")).await?;
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[derive(Clone)]
pub struct HealthCheckLayer<Check, T = ()> {
    check: Check,
    traffic: T,
    settings: CheckSettings,
    seed: Option<u64>,
}

impl<Check> HealthCheckLayer<Check> {
    /// Checks endpoints by calling `check` with each endpoint and its service.
    pub const fn new(check: Check) -> Self {
        Self {
            check,
            traffic: (),
            settings: CheckSettings {
                interval: Duration::from_secs(10),
                edge_interval: None,
                timeout: Duration::from_secs(1),
                jitter: Duration::from_secs(1),
                initial_jitter: None,
                failures: 3,
                successes: 2,
                concurrency: None,
                until_first_check: UntilFirstCheck::Available,
                ends_ejection: true,
            },
            seed: None,
        }
    }
}

impl<Check, T> HealthCheckLayer<Check, T> {
    /// Sets the time from the end of one check to the next. Default 10 s.
    ///
    /// A shorter interval finds faults sooner, but every client then sends more checks to every
    /// endpoint.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn interval(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "the interval must not be zero");
        self.settings.interval = interval;
        self
    }

    /// Sets the interval while results contradict the present state. Default: the usual interval.
    ///
    /// A short interval decides within seconds, and costs nothing while results agree with the
    /// state.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn edge_interval(mut self, interval: Duration) -> Self {
        assert!(!interval.is_zero(), "the edge interval must not be zero");
        self.settings.edge_interval = Some(interval);
        self
    }

    /// Sets the interval for endpoints that got no request since their last check. Default: the
    /// usual interval.
    ///
    /// Cost for each request: one clone of an `Arc` and one read of a flag.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn idle_interval(self, interval: Duration) -> HealthCheckLayer<Check, IdleInterval> {
        assert!(!interval.is_zero(), "the idle interval must not be zero");
        HealthCheckLayer {
            check: self.check,
            traffic: IdleInterval(interval),
            settings: self.settings,
            seed: self.seed,
        }
    }

    /// Sets how long a check may take. Default 1 s.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// Sets the largest random time that is added to every interval. Default 1 s, but never more
    /// than the interval.
    ///
    /// Jitter keeps the clients from checking at the same moments.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.settings.jitter = jitter;
        self
    }

    /// Sets within which time an endpoint's first check starts, at random. Default: the interval,
    /// or at once where callers [wait for it](Self::until_first_check).
    ///
    /// Checks that start together stay near one another for many intervals, and so would the checks
    /// of all clients that hear of a new endpoint. With zero, an endpoint that is broken from the
    /// start is found sooner.
    #[must_use]
    pub const fn initial_jitter(mut self, jitter: Duration) -> Self {
        self.settings.initial_jitter = Some(jitter);
        self
    }

    /// Sets how many failures in a row make an endpoint unhealthy. Default 3.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn unhealthy_after(mut self, failures: u32) -> Self {
        assert_ne!(failures, 0, "the number of failures must not be zero");
        self.settings.failures = failures;
        self
    }

    /// Sets how many successes in a row make an endpoint healthy again. Default 2.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn healthy_after(mut self, successes: u32) -> Self {
        assert_ne!(successes, 0, "the number of successes must not be zero");
        self.settings.successes = successes;
        self
    }

    /// Sets how many checks may run at once; the others wait. Default: as many as are needed.
    ///
    /// That is twice the number that runs at a time if all checks exceed the timeout, but at least
    /// 64. With the default interval and timeout, it is a fifth of the endpoints. Where checks are
    /// late by more than the interval, an event of level `WARN` says so.
    ///
    /// # Panics
    ///
    /// If it is 0.
    #[must_use]
    #[track_caller]
    pub fn concurrency(mut self, checks: usize) -> Self {
        assert_ne!(checks, 0, "no check would ever run");
        self.settings.concurrency = Some(checks);
        self
    }

    /// Sets whether an endpoint is available before its first check has ended. Default: it is.
    ///
    /// If it is not, callers wait for the first checks while no other endpoint is available.
    #[must_use]
    pub const fn until_first_check(mut self, status: UntilFirstCheck) -> Self {
        self.settings.until_first_check = status;
        self
    }

    /// Lets ejections by outlier detection last while checks succeed. Default: a successful check
    /// ends an ejection.
    ///
    /// A probe then decides, as at the regular end of the ejection. So an endpoint whose checks
    /// succeed while its requests fail costs one request for each check. Keep ejections where that
    /// is too much, for example with checks every second that exercise little of what requests do.
    #[must_use]
    pub const fn keep_ejections(mut self) -> Self {
        self.settings.ends_ejection = false;
        self
    }

    /// Draws jitter with a fixed seed, so that a run can be repeated.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl<D, Check, F, T> Layer<D> for HealthCheckLayer<Check, T>
where
    D: DiscoverEndpoints,
    Check: Fn(Endpoint<D::Address>, D::Member) -> F + Clone,
    T: Traffic<D::Member> + Clone,
{
    type Service = HealthCheckDiscover<D, Check, F, D::Address, D::Member, T>;

    fn layer(&self, discover: D) -> Self::Service {
        HealthCheckDiscover::new(
            discover,
            self.check.clone(),
            self.traffic.clone(),
            self.settings,
            SmallRng::seed_from_u64(self.seed.unwrap_or_else(entropy)),
        )
    }
}

impl<Check, T> fmt::Debug for HealthCheckLayer<Check, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthCheckLayer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
