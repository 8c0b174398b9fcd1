use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::{BoxError, Layer, Service};

use super::{
    Budget, CopyRequest, RetryPolicy, TokenThrottle, allowance::Allowance, backoff::Backoff,
    copy::ByClone, failover_future::FailoverFuture,
};
use crate::{
    balance::{CallExcluding, Tried},
    chance::entropy,
    endpoint::Endpoint,
    policy::Rng,
};

/// Sends a request that has failed on one endpoint to another one.
///
/// Stands above a balancer. Each try leaves out the endpoints that the request was sent to before, while another
/// is available; with a hash policy it goes to the next distinct host in the key's order. When all available
/// endpoints were tried, one of them gets the request again.
///
/// Which answers are tried again is the [`RetryPolicy`]'s to say; how often all requests together, the
/// [`Budget`]'s. Defaults: 3 attempts, a random pause of up to 25 and 75 ms before them (full jitter), the default budget,
/// no timeout of a try, a server's wish for a pause (pushback) heard up to 5 s.
///
/// Cost of a request that needs no second try: a copy of it, one `Arc` and its part of a deposit; no allocation. A handle
/// deposits its requests a few at a time, less than one retry's worth, and the last of them when it is dropped. Each
/// further try costs a timer and an allocation or two.
///
/// ```
/// # use std::io;
/// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::*;
/// use tower_lb::retry::{FailoverLayer, Idempotent};
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
/// Tries are for one request: put a timeout for all of them together above this layer.
#[derive(Clone)]
pub struct FailoverLayer<P, K = ByClone> {
    policy: P,
    copy: K,
    settings: Settings,
    allowance: Allowance,
    seed: Option<u64>,
}

/// A service whose requests are tried again on another endpoint; see [`FailoverLayer`].
pub struct Failover<S, P, K = ByClone> {
    service: S,
    /// First tries of this handle that are to be deposited: a few at a time, for each time is an atomic operation.
    undeposited: u32,
    shared: Arc<Shared<S, P, K>>,
}

/// What a request's future needs when its first try has failed, and no sooner.
pub(super) struct Shared<S, P, K> {
    /// The handle that those of further tries are cloned from.
    pub(super) service: S,
    pub(super) policy: P,
    pub(super) copy: K,
    pub(super) settings: Settings,
    pub(super) allowance: Allowance,
    /// How many first tries make one deposit.
    batch: u32,
    seed: u64,
    draws: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) attempts: u32,
    pub(super) try_timeout: Option<Duration>,
    pub(super) longest_pushback: Duration,
    backoff: Backoff,
}

impl<P> FailoverLayer<P> {
    /// Tries again what `policy` says, with the defaults; requests are cloned.
    #[must_use]
    pub fn new(policy: P) -> Self {
        Self {
            policy,
            copy: ByClone,
            settings: Settings {
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

impl<P, K> FailoverLayer<P, K> {
    /// Sets how a request is copied, in place of `Clone`; one that is not (`None`) is never tried again.
    ///
    /// ```
    /// # use tower_lb::retry::{FailoverLayer, ConnectErrors};
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

    /// Sets how often one request may be sent, the first time included. Default 3.
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

    /// Sets how long a try may take before it is given up for another. Default: as long as it takes.
    ///
    /// A try that was given up may still be executed by its server: only an [idempotent](RetryPolicy::is_idempotent) request is tried again
    /// after it, by the ready policies. Costs a timer and an allocation for each request.
    #[must_use]
    pub const fn try_timeout(mut self, timeout: Duration) -> Self {
        self.settings.try_timeout = Some(timeout);
        self
    }

    /// Sets the pauses: before retry *k* anything up to (2^k - 1) x `base`, and to `max`. Default 25 ms and 250 ms.
    ///
    /// A `base` of zero is none: right for few clients, or where each try goes to a server of its own.
    #[must_use]
    pub const fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.settings.backoff = Backoff { base, max };
        self
    }

    /// Sets the longest pause that a server may ask for; for a longer one the request is not tried again. Default 5 s.
    #[must_use]
    pub const fn longest_pushback(mut self, longest: Duration) -> Self {
        self.settings.longest_pushback = longest;
        self
    }

    /// Sets the budget that retries are paid from. Default: one of the layer's own, with the defaults.
    ///
    /// All services of one layer share its budget.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.allowance = Allowance::Budget(budget);
        self
    }

    /// Limits retries by gRPC's token throttle, in place of the budget.
    #[must_use]
    pub fn throttle(mut self, throttle: TokenThrottle) -> Self {
        self.allowance = Allowance::Throttle(throttle);
        self
    }

    /// Makes the pauses repeatable.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }
}

impl<S, P, K> Layer<S> for FailoverLayer<P, K>
where
    S: Clone,
    P: Clone,
    K: Clone,
{
    type Service = Failover<S, P, K>;

    fn layer(&self, service: S) -> Self::Service {
        Failover {
            shared: Arc::new(Shared {
                service: service.clone(),
                policy: self.policy.clone(),
                copy: self.copy.clone(),
                settings: self.settings,
                batch: self.allowance.batch(),
                allowance: self.allowance.clone(),
                seed: self.seed.unwrap_or_else(entropy),
                draws: AtomicU64::new(0),
            }),
            undeposited: 0,
            service,
        }
    }
}

impl<S, P, K> Failover<S, P, K> {
    #[inline(always)]
    fn first_try(&mut self) {
        self.undeposited += 1;
        if self.undeposited >= self.shared.batch {
            self.shared.allowance.first_tries(self.undeposited);
            self.undeposited = 0;
        }
    }
}

impl<S, P, K> Drop for Failover<S, P, K> {
    #[inline]
    fn drop(&mut self) {
        if self.undeposited > 0 {
            self.shared.allowance.first_tries(self.undeposited);
        }
    }
}

impl<S, P, K> Shared<S, P, K> {
    /// Returns the pause before retry number `retry`.
    pub(super) fn pause(&self, retry: u32) -> Duration {
        // Relaxed: only the number must differ.
        let draw = self.draws.fetch_add(1, Relaxed);
        let random = Rng::new(self.seed, draw).next();
        self.settings.backoff.pause(retry, random)
    }
}

impl<S, P, K, Req> Service<Req> for Failover<S, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = FailoverFuture<S, Req, P, K>;

    #[inline(always)]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        self.first_try();
        let copy = self.shared.copy.copy(&request);
        let trace = self.service.trace();
        let future = self.service.call(request);
        FailoverFuture::first(future, trace, copy, self.shared.clone())
    }
}

impl<S, P, K, Req> CallExcluding<Req> for Failover<S, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    type Address = S::Address;
    type Trace = ();

    fn trace(&self) {}

    fn called(&self, future: &Self::Future, (): &()) -> Vec<Endpoint<S::Address>> {
        future.called()
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<S::Address>) -> Self::Future {
        if tried.is_empty() {
            self.first_try();
        }
        let copy = self.shared.copy.copy(&request);
        let trace = self.service.trace();
        let future = self.service.call_excluding(request, tried);
        FailoverFuture::excluding(future, trace, tried.clone(), copy, self.shared.clone())
    }
}

/// The clone is not ready: readiness is one handle's.
impl<S: Clone, P, K> Clone for Failover<S, P, K> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            undeposited: 0,
            shared: self.shared.clone(),
        }
    }
}

impl<S: fmt::Debug, P, K> fmt::Debug for Failover<S, P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failover")
            .field("service", &self.service)
            .field("settings", &self.shared.settings)
            .field("allowance", &self.shared.allowance)
            .finish_non_exhaustive()
    }
}

impl<P: fmt::Debug, K> fmt::Debug for FailoverLayer<P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailoverLayer")
            .field("policy", &self.policy)
            .field("settings", &self.settings)
            .field("allowance", &self.allowance)
            .finish_non_exhaustive()
    }
}
