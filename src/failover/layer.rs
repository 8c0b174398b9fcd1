use std::{fmt, time::Duration};

use tower::Layer;

use super::{
    backoff::Backoff,
    copy::ByClone,
    service::Failover,
    state::{FailoverSettings, FailoverState},
};
use crate::{
    budget::{Allowance, Budget},
    random::entropy,
    tried::SendsElsewhere,
};

/// Sends a request that failed on one endpoint to another one.
///
/// Place it above a balancer. Each try leaves out the endpoints that the request was sent to
/// before, as long as another one is available. With a hash policy, a try goes to the next distinct
/// endpoint in the key's order. When all available endpoints were tried, one of them gets the
/// request again.
///
/// The [`RetryPolicy`](super::RetryPolicy) decides which answers are tried again. The [`Budget`]
/// limits the retries of all requests together. Defaults: 3 attempts; a random pause of up to 25 ms
/// before the second and up to 75 ms before the third (full jitter); the default budget; no timeout
/// per try; a pause that a server asks for (pushback) is kept if it is at most 5 s.
///
/// Cost of a request that needs no second try: a copy of it, a clone of an `Arc` and a deposit; no
/// allocation besides the copy's. Each further try costs a timer and a few allocations.
///
/// ```
/// # use std::io;
/// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::*;
/// use tower_lb::failover::{FailoverLayer, Idempotent};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// # let connect = |endpoint: &Endpoint<&'static str>| {
/// #     let name = *endpoint.address();
/// #     service_fn(move |_: &'static str| async move {
/// #         if name == "broken" { Err(io::Error::other("out of order")) } else { Ok(name) }
/// #     })
/// # };
/// let mut client = ServiceBuilder::new()
///     .layer(FailoverLayer::new(Idempotent::when(|request: &&str| request.starts_with("GET"))))
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(fixed(["well", "broken"]))
///     .service(connect);
/// for _ in 0..4 {
///     assert_eq!(client.ready().await?.call("GET /").await?, "well");
/// }
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// To limit the time of all tries together, put a [`DeadlineLayer`](crate::DeadlineLayer) above
/// this layer. Where tokio has no
/// timers, the next try comes without a pause.
#[derive(Clone)]
pub struct FailoverLayer<P, Copier = ByClone> {
    policy: P,
    copy: Copier,
    settings: FailoverSettings,
    allowance: Allowance,
    seed: Option<u64>,
}

impl<P> FailoverLayer<P> {
    /// Tries again as `policy` decides, with the defaults.
    ///
    /// Requests are copied by `Clone`.
    #[must_use]
    pub fn new(policy: P) -> Self {
        Self {
            policy,
            copy: ByClone,
            settings: FailoverSettings {
                attempts: 3,
                try_timeout: None,
                longest_pushback: Duration::from_secs(5),
                backoff: Backoff {
                    base: Duration::from_millis(25),
                    max: Duration::from_millis(250),
                },
            },
            allowance: Allowance::Budget(Budget::new()),
            seed: None,
        }
    }
}

impl<P, Copier> FailoverLayer<P, Copier> {
    /// Sets how a request is copied, instead of by `Clone`.
    ///
    /// A request without a copy (`None`) is never tried again.
    ///
    /// ```
    /// # use tower_lb::failover::{FailoverLayer, ConnectErrors};
    /// struct Upload { name: String, body: Option<Vec<u8>> }
    ///
    /// let layer = FailoverLayer::new(ConnectErrors::default())
    ///     .copy_with(|upload: &Upload| match upload.body {
    ///         None => Some(Upload { name: upload.name.clone(), body: None }),
    ///         Some(_) => None,
    ///     });
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn copy_with<Req, F>(self, copy: F) -> FailoverLayer<P, F>
    where
        F: Fn(&Req) -> Option<Req>,
    {
        FailoverLayer {
            policy: self.policy,
            copy,
            settings: self.settings,
            allowance: self.allowance,
            seed: self.seed,
        }
    }

    /// Sets how often one request may be sent, including the first time. Default 3.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[must_use]
    #[track_caller]
    pub fn attempts(mut self, attempts: u32) -> Self {
        assert!(attempts > 0, "a request must be sent once");
        self.settings.attempts = attempts;
        self
    }

    /// Sets how long a try may take before it is given up. Default: no limit.
    ///
    /// The server may still execute a try that was given up. So the ready-made policies send only
    /// an [idempotent](super::RetryPolicy::is_idempotent) request again after it. Costs a timer and
    /// two allocations for each request. Where tokio has no timers, tries have no limit.
    #[must_use]
    pub const fn try_timeout(mut self, timeout: Duration) -> Self {
        self.settings.try_timeout = Some(timeout);
        self
    }

    /// Sets the pauses between tries. Default: `base` 25 ms, `max` 250 ms.
    ///
    /// The pause before retry *k* is random, up to (2^k - 1) x `base` and at most `max`. A `base`
    /// of zero means no pause. That is right for few clients, or where each try goes to a server of
    /// its own.
    #[must_use]
    pub const fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.settings.backoff = Backoff { base, max };
        self
    }

    /// Sets the longest pause that a server may ask for. Default 5 s.
    ///
    /// If the server asks for a longer one, the request is not tried again.
    #[must_use]
    pub const fn longest_pushback(mut self, longest: Duration) -> Self {
        self.settings.longest_pushback = longest;
        self
    }

    /// Sets the [`Budget`] or gRPC's [`TokenThrottle`](crate::budget::TokenThrottle) that allows
    /// retries.
    ///
    /// Default: a new budget for this layer, with the defaults. All services of one layer share it.
    #[must_use]
    pub fn budget(mut self, budget: impl Into<Allowance>) -> Self {
        self.allowance = budget.into();
        self
    }

    /// Makes the pauses reproducible.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl<S, P, Copier> Layer<S> for FailoverLayer<P, Copier>
where
    S: SendsElsewhere + Clone,
    P: Clone,
    Copier: Clone,
{
    type Service = Failover<S, P, Copier>;

    fn layer(&self, service: S) -> Self::Service {
        let seed = self.seed.unwrap_or_else(entropy);
        let shared = FailoverState::new(
            service.clone(),
            self.policy.clone(),
            self.copy.clone(),
            self.settings,
            self.allowance.clone(),
            seed,
        );
        Failover::new(service, shared)
    }
}

impl<P: fmt::Debug, Copier> fmt::Debug for FailoverLayer<P, Copier> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailoverLayer")
            .field("policy", &self.policy)
            .field("settings", &self.settings)
            .field("allowance", &self.allowance)
            .finish_non_exhaustive()
    }
}
