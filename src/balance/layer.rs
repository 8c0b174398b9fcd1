use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use tower::{BoxError, Layer, discover::Discover};

use super::{
    driver::Driver,
    service::Balance,
    shared::{Config, InPanic, Shared, WhenEmpty},
};
use crate::{
    chance::entropy,
    endpoint::{Address, Endpoint},
    health::SlowStart,
    policy::{Policy, Rng},
};

/// Turns discovery into a [`Balance`].
///
/// ```
/// use tower_lb::{BalanceLayer, P2c};
///
/// # fn shape<Req>() -> BalanceLayer<P2c, Req> {
/// BalanceLayer::new(P2c::default()).panic_threshold(0.5)
/// # }
/// ```
pub struct BalanceLayer<P, Req> {
    policy: P,
    config: Config,
    _request: PhantomData<fn(Req)>,
}

impl<P, Req> BalanceLayer<P, Req> {
    /// Balances with `policy`.
    #[must_use]
    pub const fn new(policy: P) -> Self {
        Self {
            policy,
            config: Config {
                when_empty: WhenEmpty::Fail,
                in_panic: InPanic::TryAll,
                panic_threshold: 0.0,
                slow_start: None,
            },
            _request: PhantomData,
        }
    }

    /// Has `poll_ready` wait while no endpoint takes requests. Default: each call fails at once.
    ///
    /// Callers then need a timeout above the balancer: the wait has no end of its own.
    #[must_use]
    pub const fn wait_for_endpoints(mut self) -> Self {
        self.config.when_empty = WhenEmpty::Wait;
        self
    }

    /// Has calls fail with [`Unavailable`](crate::Unavailable) in a panic. Default: all members are tried.
    #[must_use]
    pub const fn fail_closed(mut self) -> Self {
        self.config.in_panic = InPanic::Fail;
        self
    }

    /// Sets the share of available members below which the balancer panics. Default 0: only when none is.
    ///
    /// In a panic statuses are not believed: all members but the draining ones are tried, or, with
    /// [`fail_closed`](Self::fail_closed), none. A larger share spares the last healthy members from
    /// the traffic of all, at the price of failures; Envoy's default is .5.
    ///
    /// # Panics
    ///
    /// If `share` is not in 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn panic_threshold(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "a panic threshold is a share in 0 to 1, not {share}"
        );
        self.config.panic_threshold = share;
        self
    }

    /// Has endpoints that join or come back warm up: their share of the requests grows. Default: they do not.
    ///
    /// For policies that go by weight: [`P2c`](crate::P2c), [`LeastLoaded`](crate::LeastLoaded), [`Random`](crate::Random),
    /// [`WeightedRoundRobin`](crate::WeightedRoundRobin). Hash policies are not affected, nor is
    /// [`RoundRobin`](crate::RoundRobin). Endpoints of a set that is new as a whole start warm.
    ///
    /// Costs nothing while no endpoint warms up; meanwhile, a new snapshot for each 64th of the window.
    #[must_use]
    pub const fn slow_start(mut self, slow_start: SlowStart) -> Self {
        self.config.slow_start = Some(slow_start);
        self
    }

    /// Makes a balancer and its driver, which runs nowhere until you poll or spawn it.
    ///
    /// The driver is to be polled within a tokio runtime that has timers: it panics without one when an
    /// endpoint is ejected.
    pub fn into_pair<D, S, A>(self, discover: D) -> BalanceAndDriver<D, P, S, Req, A>
    where
        D: Discover<Key = Endpoint<A>, Service = S>,
        P: Policy<A, S, Req>,
        S: Clone,
        A: Address,
    {
        let table = self.policy.table(&[], None);
        let seed = self.policy.seed().unwrap_or_else(entropy);
        let shared = Arc::new(Shared::new(self.policy, table, self.config));
        let driver = Driver::new(discover, &shared);
        (Balance::from_shared(shared, Rng::new(seed, 0)), driver)
    }
}

/// A balancer and its driver.
pub type BalanceAndDriver<D, P, S, Req, A> = (Balance<P, S, Req, A>, Driver<D, P, S, Req, A>);

impl<P, Req> BalanceLayer<P, Req> {
    #[track_caller]
    pub(super) fn into_spawned<D, S, A>(self, discover: D) -> Balance<P, S, Req, A>
    where
        D: Discover<Key = Endpoint<A>, Service = S, Error: Into<BoxError>> + Send + 'static,
        P: Policy<A, S, Req>,
        S: Clone + Send + Sync + 'static,
        Req: 'static,
        A: Address,
    {
        // Ends of ejections need timers: better no balancer than one whose driver panics at the first.
        drop(tokio::time::sleep(Duration::ZERO));
        let (balance, driver) = self.into_pair(discover);
        tokio::spawn(driver);
        balance
    }
}

impl<D, P, S, Req, A> Layer<D> for BalanceLayer<P, Req>
where
    D: Discover<Key = Endpoint<A>, Service = S, Error: Into<BoxError>> + Send + 'static,
    P: Policy<A, S, Req> + Clone,
    S: Clone + Send + Sync + 'static,
    Req: 'static,
    A: Address,
{
    type Service = Balance<P, S, Req, A>;

    /// # Panics
    ///
    /// Outside a tokio runtime with timers, which `Runtime::new` and `#[tokio::main]` enable;
    /// [`into_pair`](Self::into_pair) hands you the driver instead.
    #[track_caller]
    fn layer(&self, discover: D) -> Self::Service {
        self.clone().into_spawned(discover)
    }
}

impl<P: Clone, Req> Clone for BalanceLayer<P, Req> {
    fn clone(&self) -> Self {
        Self {
            policy: self.policy.clone(),
            ..*self
        }
    }
}

impl<P: fmt::Debug, Req> fmt::Debug for BalanceLayer<P, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceLayer")
            .field("policy", &self.policy)
            .field("config", &self.config)
            .finish()
    }
}
