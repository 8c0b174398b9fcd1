use std::{fmt, time::Duration};

use tower::Layer;

use super::{delay::Delay, service::Hedge, slow::SlowAnswers, state::HedgeState};
use crate::{
    budget::{Allowance, Budget},
    failover::ByClone,
    tried::SendsElsewhere,
};

/// Sends a request to a second endpoint when the first one is slow to answer.
///
/// The first answer wins. The other try is dropped and no longer counts as in flight. There is no
/// hedge when no other endpoint is available, nor where tokio has no timers. Only requests that the
/// policy calls [idempotent](crate::failover::RetryPolicy::is_idempotent) are hedged, because both
/// endpoints may execute one.
///
/// An answer that the policy would try again does not win while the other try is in progress. If
/// such an answer comes before the second request was sent, the second request goes out at once, or
/// after the pause that the server asked for.
///
/// Hedges are limited in three ways. When they are, the request waits for its first try.
///
/// - They are at most a [`ratio`](Self::ratio) of the requests of the last minute, plus ten.
/// - They are paid from a [`Budget`], of which they leave at least half for retries.
/// - There are none while more than three times the wanted share of the last 64 answers took longer
///   than the delay (and more than five). Then the servers are overloaded or restarting, and
///   not only the slowest few are slow. The wanted share is 1 minus the quantile, or the ratio for
///   a fixed delay.
///
/// Place it above a balancer, or above a [`Failover`](crate::failover::Failover) over one. In the
/// second case, give one of the two layers a [drawing](Budget::drawing) clone of the same budget.
///
/// Cost of a request: a copy of it, a list of the endpoints tried and, if it is not answered at
/// once, a timer; three allocations besides the copy's.
///
/// ```
/// # use std::{io, time::Duration};
/// # use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::*;
/// use tower_lb::failover::{HedgeLayer, Idempotent};
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
pub struct HedgeLayer<P, Copier = ByClone> {
    policy: P,
    copy: Copier,
    delay: Delay,
    longest_pushback: Duration,
    allowance: Allowance,
    ratio: f64,
}

impl<P> HedgeLayer<P> {
    /// Sends the second request when the first one is unanswered after `delay`.
    ///
    /// A good delay is the time in which 95 to 99 % of the requests are answered. Then few requests
    /// are sent twice.
    #[must_use]
    pub fn after(delay: Duration, policy: P) -> Self {
        Self::with(Delay::Fixed(delay), policy)
    }

    /// Sends the second request when the first one exceeds this quantile of the measured latencies.
    ///
    /// The delay is the quantile `share` of the latencies of the last 30 to 60 s, without those of
    /// requests that failed. It is read again every 64 answers, is accurate to 1 %, and is at most
    /// an hour. Nothing is hedged while a reading has fewer than 100 requests, so the first hedge
    /// comes after 128 answers at the earliest. Each request costs two readings of the clock and a
    /// short lock, which all requests of the layer share.
    ///
    /// # Panics
    ///
    /// If `share` is not between 0 and 1.
    #[cfg(feature = "hdrhistogram")]
    #[cfg_attr(docsrs, doc(cfg(feature = "hdrhistogram")))]
    #[must_use]
    #[track_caller]
    pub fn at_quantile(share: f64, policy: P) -> Self {
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
            ratio: 0.1,
        }
    }
}

impl<P, Copier> HedgeLayer<P, Copier> {
    /// Sets how a request is copied, instead of by `Clone`.
    ///
    /// A request without a copy (`None`) is never hedged.
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
            ratio: self.ratio,
        }
    }

    /// Sets the longest pause that a server may ask for after a failure. Default 5 s.
    ///
    /// If the server asks for a longer one, nothing more is sent.
    #[must_use]
    pub const fn longest_pushback(mut self, longest: Duration) -> Self {
        self.longest_pushback = longest;
        self
    }

    /// Sets the [`Budget`] or gRPC's [`TokenThrottle`](crate::budget::TokenThrottle) that allows
    /// hedges.
    ///
    /// Default: a new budget for this layer, with the defaults. Of a budget that is shared with
    /// retries, hedges take at most half.
    #[must_use]
    pub fn budget(mut self, budget: impl Into<Allowance>) -> Self {
        self.allowance = budget.into();
        self
    }

    /// Sets how many hedges there are at most for each request. Default .1.
    ///
    /// Ten hedges a minute are allowed in addition, for clients that send little. With a larger
    /// value, hedges are more load when many requests are slow.
    ///
    /// # Panics
    ///
    /// If it is not in 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn ratio(mut self, ratio: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&ratio),
            "hedges are a share in 0 to 1, not {ratio}"
        );
        self.ratio = ratio;
        self
    }
}

impl<S, P, Copier> Layer<S> for HedgeLayer<P, Copier>
where
    S: SendsElsewhere + Clone,
    P: Clone,
    Copier: Clone,
{
    type Service = Hedge<S, P, Copier>;

    fn layer(&self, service: S) -> Self::Service {
        let shared = HedgeState {
            service: service.clone(),
            policy: self.policy.clone(),
            copy: self.copy.clone(),
            delay: self.delay.clone(),
            longest_pushback: self.longest_pushback,
            allowance: self.allowance.clone(),
            share: Budget::builder()
                .ttl(SHARE_OF)
                .ratio(self.ratio)
                .with_reserve(MOST_FREE),
            wanted: self.delay.wanted_share().unwrap_or(self.ratio),
            slow: SlowAnswers::default(),
        };
        Hedge::new(service, shared)
    }
}

impl<P: fmt::Debug, Copier> fmt::Debug for HedgeLayer<P, Copier> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer")
            .field("policy", &self.policy)
            .field("delay", &self.delay)
            .field("allowance", &self.allowance)
            .finish_non_exhaustive()
    }
}

/// The time of which hedges are a share. It is far longer than any delay.
const SHARE_OF: Duration = Duration::from_secs(60);

/// How many hedges are allowed in this time, however few requests there are.
const MOST_FREE: f64 = 10.0;
