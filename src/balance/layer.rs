use std::{fmt, marker::PhantomData, panic::catch_unwind, sync::Arc, time::Duration};

use tokio::runtime::Handle;
use tower::{BoxError, Layer, discover::Discover};

use super::{
    driver::Driver,
    service::Balance,
    shared::{Config, InPanic, Shared, WhenEmpty},
    slow_start::SlowStart,
};
use crate::{
    endpoint::{Address, Endpoint},
    policy::{Candidates, Policy, Rebuild},
    random::{Rng, entropy},
    upstream::DiscoverEndpoints,
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

    /// Makes `poll_ready` wait while no endpoint takes requests. Default: each call fails at once.
    ///
    /// The wait has no end of its own: put a
    /// [`DeadlineLayer`](crate::DeadlineLayer) above the balancer.
    #[must_use]
    pub const fn wait_for_endpoints(mut self) -> Self {
        self.config.when_empty = WhenEmpty::Wait;
        self
    }

    /// Makes calls fail with [`Unavailable`](crate::Unavailable) in a panic. Default: all members
    /// are tried, but not those that drain or whose first check is waited for.
    #[must_use]
    pub const fn fail_closed(mut self) -> Self {
        self.config.in_panic = InPanic::Fail;
        self
    }

    /// Sets the share of available members below which the balancer panics.
    ///
    /// Default 0: it panics only when no member is available. In a panic the balancer ignores
    /// statuses and tries all members, but not those that drain or whose first check is waited for.
    /// With [`fail_closed`](Self::fail_closed) it tries none. A larger share protects the last
    /// healthy members from the traffic of all, at the price of failed requests. Envoy's default is
    /// .5.
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

    /// Warms up endpoints that join or come back: their share of the requests grows. Default: off.
    ///
    /// It affects policies that go by weight: [`P2c`](crate::P2c),
    /// [`LeastLoaded`](crate::LeastLoaded), [`Random`](crate::Random),
    /// [`WeightedRoundRobin`](crate::WeightedRoundRobin). Hash policies and
    /// [`RoundRobin`](crate::RoundRobin) are not affected. When a whole set is new, its endpoints
    /// start warm.
    ///
    /// Costs nothing while no endpoint warms up. Meanwhile a new snapshot is published for each
    /// 64th of the window, but at most every 10 ms and at least every second.
    #[must_use]
    pub const fn slow_start(mut self, slow_start: SlowStart) -> Self {
        self.config.slow_start = Some(slow_start);
        self
    }

    /// Creates a balancer and its driver. Poll or spawn the driver: it does not run by itself.
    ///
    /// Poll it within a tokio runtime that has timers. Without timers it panics when it first needs
    /// one: when an endpoint is ejected or warms up, or when the policy wants a new table at a
    /// certain time.
    pub fn into_pair<D, S, A>(self, discover: D) -> BalanceAndDriver<D, P, S, Req, A>
    where
        D: Discover<Key = Endpoint<A>, Service = S>,
        P: Policy<A, S, Req>,
        S: Clone,
        A: Address,
    {
        let table = self.policy.table(Candidates::new(&[]), None);
        let seed = self.policy.seed().unwrap_or_else(entropy);
        let shared = Arc::new(Shared::new(self.policy, table, self.config));
        shared.policy.attach(Rebuild::new(&shared.driver));
        let driver = Driver::new(discover, &shared);
        (Balance::from_shared(shared, Rng::new(seed, 0)), driver)
    }
}

/// A balancer and its driver.
pub type BalanceAndDriver<D, P, S, Req, A = std::net::SocketAddr> =
    (Balance<P, S, Req, A>, Driver<D, P, S, Req, A>);

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
        // The driver needs timers, for example for the ends of ejections. Better no balancer than
        // one whose driver panics at the first ejection.
        let has_timers = || catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).is_ok();
        assert!(
            Handle::try_current().is_ok() && has_timers(),
            "`BalanceLayer` and `Balance::new` spawn the balancer's driver: build the stack within a \
             tokio runtime that has timers, or take `Balance::pair` and poll the driver yourself"
        );
        let (balance, driver) = self.into_pair(discover);
        tokio::spawn(driver);
        balance
    }
}

impl<D, P, Req> Layer<D> for BalanceLayer<P, Req>
where
    D: DiscoverEndpoints<Address: Address, Member: Clone + Send + Sync + 'static> + Send + 'static,
    P: Policy<D::Address, D::Member, Req> + Clone,
    Req: 'static,
{
    type Service = Balance<P, D::Member, Req, D::Address>;

    /// # Panics
    ///
    /// Outside a tokio runtime with timers, which `Runtime::new` and `#[tokio::main]` enable;
    /// [`into_pair`](Self::into_pair) hands you the driver instead.
    #[track_caller]
    fn layer(&self, discover: D) -> Self::Service {
        self.clone().into_spawned(discover)
    }
}

impl<P, S, Req, A> Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Clone + Send + Sync + 'static,
    A: Address,
{
    /// Balances over what `discover` yields, on a driver task of the current runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with timers; [`pair`](Self::pair) hands you the driver instead.
    #[track_caller]
    pub fn new<D>(discover: D, policy: P) -> Self
    where
        D: Discover<Key = Endpoint<A>, Service = S, Error: Into<BoxError>> + Send + 'static,
        Req: 'static,
    {
        BalanceLayer::new(policy).into_spawned(discover)
    }

    /// Balances over what `discover` yields, and returns the driver for you to run.
    ///
    /// Poll the driver within a tokio runtime that has timers, see
    /// [`into_pair`](BalanceLayer::into_pair).
    pub fn pair<D>(discover: D, policy: P) -> BalanceAndDriver<D, P, S, Req, A>
    where
        D: Discover<Key = Endpoint<A>, Service = S>,
    {
        BalanceLayer::new(policy).into_pair(discover)
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
