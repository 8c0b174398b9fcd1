use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower::{BoxError, Layer, Service};

use super::{
    Budget, CopyRequest, RetryPolicy, TokenThrottle, allowance::Allowance, copy::ByClone,
    delay::Delay, hedge_future::HedgeFuture,
};
use crate::{
    balance::{CallExcluding, Tried},
    endpoint::Endpoint,
};

/// Sends a request to a second endpoint when the first one is slow to answer.
///
/// The first answer wins, and the other try is dropped with what it counts. When no other endpoint is available, there is no hedge. Only requests that
/// the policy calls [idempotent](RetryPolicy::is_idempotent) are hedged, for both endpoints may execute one. An answer that the policy
/// would have tried again does not win while the other try is under way; if it comes before the second request was sent,
/// that one goes out at once, or after the pause that the server asked for.
///
/// Hedges are paid from a [`Budget`]; without one left, the first try is waited for.
///
/// Stands above a balancer, or above a [`Failover`](super::Failover) over one; then let one of the two layers take a
/// [drawing](Budget::drawing) clone of the same budget.
///
/// Cost of a request: that of a copy, a list of the endpoints tried and, if it is not answered at once, a timer: three allocations.
///
/// ```
/// # use std::{io, time::Duration};
/// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::*;
/// use tower_lb::retry::{HedgeLayer, Idempotent};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// # let connect = |endpoint: &Endpoint<&'static str>| {
/// #     let name = *endpoint.address();
/// #     service_fn(move |_: &'static str| async move {
/// #         if name == "stuck" { std::future::pending::<()>().await }
/// #         Ok::<_, io::Error>(name)
/// #     })
/// # };
/// let mut client = ServiceBuilder::new()
///     .layer(HedgeLayer::after(Duration::from_millis(10), Idempotent::all()))
///     .layer(BalanceLayer::new(RoundRobin::default()))
///     .layer(fixed(["well", "stuck"]))
///     .service(connect);
/// for _ in 0..4 {
///     assert_eq!(client.ready().await?.call("GET /").await?, "well");
/// }
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// Source: Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013.
#[derive(Clone)]
pub struct HedgeLayer<P, K = ByClone> {
    policy: P,
    copy: K,
    delay: Delay,
    longest_pushback: Duration,
    allowance: Allowance,
}

/// A service whose slow requests are sent twice; see [`HedgeLayer`].
pub struct Hedge<S, P, K = ByClone> {
    service: S,
    shared: Arc<Shared<S, P, K>>,
}

pub(super) struct Shared<S, P, K> {
    /// The handle that those of second tries are cloned from.
    pub(super) service: S,
    pub(super) policy: P,
    pub(super) copy: K,
    pub(super) delay: Delay,
    pub(super) longest_pushback: Duration,
    pub(super) allowance: Allowance,
}

impl<P> HedgeLayer<P> {
    /// Sends the second request when the first one has not been answered for so long.
    ///
    /// A good delay is what 95 to 99 of 100 requests are answered in: then few are sent twice.
    #[must_use]
    pub fn after(delay: Duration, policy: P) -> Self {
        Self::with(Delay::Fixed(delay), policy)
    }

    /// Sends the second request when the first one takes longer than this share of the requests, as measured.
    ///
    /// The percentile is that of the last 30 to 60 s of requests that did not fail, read anew every 64 answers, to within 1 %, and at most an hour. Nothing is
    /// hedged until 100 requests were measured. Each request pays for two readings of the clock and an uncontended lock.
    ///
    /// # Panics
    ///
    /// If `share` is not between 0 and 1.
    #[cfg(feature = "hdrhistogram")]
    #[cfg_attr(docsrs, doc(cfg(feature = "hdrhistogram")))]
    #[must_use]
    #[track_caller]
    pub fn at_percentile(share: f64, policy: P) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "the share must be between 0 and 1"
        );
        Self::with(Delay::measured(share), policy)
    }

    fn with(delay: Delay, policy: P) -> Self {
        Self {
            policy,
            copy: ByClone,
            delay,
            longest_pushback: Duration::from_secs(5),
            allowance: Allowance::Budget(Budget::new()),
        }
    }
}

impl<P, K> HedgeLayer<P, K> {
    /// Sets how a request is copied, in place of `Clone`; one that is not (`None`) is never hedged.
    #[must_use]
    pub fn copy_with<Req, F>(self, copy: F) -> HedgeLayer<P, F>
    where
        F: Fn(&Req) -> Option<Req>,
    {
        HedgeLayer {
            policy: self.policy,
            copy,
            delay: self.delay,
            longest_pushback: self.longest_pushback,
            allowance: self.allowance,
        }
    }

    /// Sets the longest pause that a server which failed may ask for; for a longer one nothing more is sent. Default 5 s.
    #[must_use]
    pub const fn longest_pushback(mut self, longest: Duration) -> Self {
        self.longest_pushback = longest;
        self
    }

    /// Limits hedges by gRPC's token throttle, in place of the budget.
    #[must_use]
    pub fn throttle(mut self, throttle: TokenThrottle) -> Self {
        self.allowance = Allowance::Throttle(throttle);
        self
    }

    /// Sets the budget that hedges are paid from. Default: one of the layer's own, with the defaults.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.allowance = Allowance::Budget(budget);
        self
    }
}

impl<S, P, K> Layer<S> for HedgeLayer<P, K>
where
    S: Clone,
    P: Clone,
    K: Clone,
{
    type Service = Hedge<S, P, K>;

    fn layer(&self, service: S) -> Self::Service {
        Hedge {
            shared: Arc::new(Shared {
                service: service.clone(),
                policy: self.policy.clone(),
                copy: self.copy.clone(),
                delay: self.delay.clone(),
                longest_pushback: self.longest_pushback,
                allowance: self.allowance.clone(),
            }),
            service,
        }
    }
}

impl<S, P, K, Req> Service<Req> for Hedge<S, P, K>
where
    S: CallExcluding<Req, Error: Into<BoxError>> + Clone,
    P: RetryPolicy<Req, S::Response>,
    K: CopyRequest<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = HedgeFuture<S, Req, P, K>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.call_excluding(request, &Tried::new())
    }
}

impl<S, P, K, Req> CallExcluding<Req> for Hedge<S, P, K>
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
        let known = tried.len();
        if known == 0 {
            self.shared.allowance.first_tries(1);
        }
        let is_idempotent = self.shared.policy.is_idempotent(&request);
        let copy = is_idempotent.then(|| self.shared.copy.copy(&request));
        // One list from the start, so that whoever tries again below knows of the hedge.
        let future = self.service.call_excluding(request, tried);
        HedgeFuture::new(
            future,
            tried.clone(),
            known,
            copy.flatten(),
            self.shared.clone(),
        )
    }
}

/// The clone is not ready: readiness is one handle's.
impl<S: Clone, P, K> Clone for Hedge<S, P, K> {
    fn clone(&self) -> Self {
        Self {
            service: self.service.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<S: fmt::Debug, P, K> fmt::Debug for Hedge<S, P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("service", &self.service)
            .field("delay", &self.shared.delay)
            .field("allowance", &self.shared.allowance)
            .finish_non_exhaustive()
    }
}

impl<P: fmt::Debug, K> fmt::Debug for HedgeLayer<P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer")
            .field("policy", &self.policy)
            .field("delay", &self.delay)
            .field("allowance", &self.allowance)
            .finish_non_exhaustive()
    }
}
