use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower::{BoxError, Service, discover::Discover};

use super::{
    future::ResponseFuture,
    hold::Hold,
    layer::{BalanceAndDriver, BalanceLayer},
    select::{self, Reserved, Selected, Selection},
    shared::Shared,
    tried::{CallExcluding, Tried},
};
use crate::{
    endpoint::{Address, Endpoint},
    policy::{Member, Policy, Rng},
};

/// Spreads requests over a changing set of endpoints.
///
/// A handle: clones share members, loads and policy, and are made in O(1) whatever the number of members. When
/// the last one goes, driver, discovery and every service go. A clone for each request is fine: some 30 ns, and no allocation
/// but one for a handle that is cloned often, or whose policy needs the request: its clones are then counted apart from those of others.
///
/// A handle that has made its call, or has not been polled yet, keeps nothing alive but the balancer itself. One
/// whose `poll_ready` answered ready keeps the service that it has reserved, until the call; one that was
/// told to wait keeps its places in the queues of the members that were not ready, and may be given
/// their capacity. Poll such a handle again, or drop it.
///
/// Cost of a request: that of the policy's pick and one clone of the member's service; no allocation, no
/// lock. So a service should be cheap to clone: one pointer, not the several of hyper-util's client, whose requests need no more than
/// `&self`; a `service_fn` over an `Arc` of it will do.
///
/// # Cancel safety
///
/// Dropping a handle gives back what it has reserved.
pub struct Balance<P, S, Req, A = SocketAddr>
where
    P: Policy<A, S, Req>,
{
    shared: Hold<Shared<A, S, P, P::Table>>,
    /// `call` goes here, if the member is still there then.
    reserved: Option<Reserved<S>>,
    /// `call` answers this, if no other snapshot than this version is published before.
    failed: Option<(BoxError, u64)>,
    selection: Selection<S, Req, A>,
    rng: Rng,
    /// With the number of a clone, its seed: no two have the same.
    seed: u64,
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

    /// Balances over what `discover` yields while the returned driver is polled, within a tokio runtime.
    pub fn pair<D>(discover: D, policy: P) -> BalanceAndDriver<D, P, S, Req, A>
    where
        D: Discover<Key = Endpoint<A>, Service = S>,
    {
        BalanceLayer::new(policy).into_pair(discover)
    }
}

impl<P, S, Req, A> Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Clone,
{
    pub(super) fn from_shared(shared: Arc<Shared<A, S, P, P::Table>>, rng: Rng) -> Self {
        Self::from_hold(Hold::new(shared), rng)
    }

    #[inline]
    fn from_hold(shared: Hold<Shared<A, S, P, P::Table>>, mut rng: Rng) -> Self {
        Self {
            seed: rng.next(),
            rng,
            shared,
            reserved: None,
            failed: None,
            selection: Selection::new(),
        }
    }

    /// Lists the members, as a dashboard wants them: endpoint, status, load.
    ///
    /// The list is a picture of this moment and keeps the services in it alive. Cost: **O(n)**.
    ///
    /// ```
    /// # use tower::{Service, service_fn};
    /// # use tower_lb::*;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// # let factory = |_: &Endpoint<&'static str>| {
    /// #     service_fn(|()| async { Ok::<_, std::io::Error>(()) })
    /// # };
    /// let mut client = tower::ServiceBuilder::new()
    ///     .layer(BalanceLayer::new(P2c::default()))
    ///     .layer(each(PendingRequestsLayer::default()))
    ///     .layer(fixed([("a", 1), ("b", 3)]))
    ///     .service(factory);
    /// # tower::ServiceExt::ready(&mut client).await?.call(()).await?;
    /// for member in client.endpoints() {
    ///     println!(
    ///         "{} weight {} {:?} in flight {} load {}",
    ///         member.endpoint(),
    ///         member.weight(),
    ///         member.endpoint().status(),
    ///         member.service().in_flight(),
    ///         member.service().load(),
    ///     );
    /// }
    /// # assert_eq!(client.endpoints().len(), 2);
    /// # Ok::<_, tower::BoxError>(()) })?;
    /// # Ok::<_, tower::BoxError>(())
    /// ```
    #[must_use]
    pub fn endpoints(&self) -> Vec<Member<A, S>> {
        self.shared.snapshot().members.to_vec()
    }

    /// Looks at the members and at the table that the policy picks from them.
    ///
    /// With a hash policy, that is where a key's endpoints are asked for. `look` should be quick, for the snapshot
    /// stays alive meanwhile, and the services in it.
    ///
    /// ```
    /// # use tower::{ServiceExt, service_fn};
    /// # use tower_lb::*;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// # let factory = |_: &Endpoint<&'static str>| {
    /// #     service_fn(|_: String| async { Ok::<_, std::io::Error>(()) })
    /// # };
    /// # let client = tower::ServiceBuilder::new()
    /// #     .layer(BalanceLayer::new(RingHash::by(|path: &String| path.as_bytes())))
    /// #     .layer(fixed(["a", "b", "c"]))
    /// #     .service(factory);
    /// # client.clone().oneshot("/".to_owned()).await?;
    /// let owners: Vec<Endpoint<_>> = client.with_table(|members, ring| {
    ///     let replicas = ring.replicas(b"/logo.png", 2);
    ///     replicas.map(|position| members[position].endpoint().clone()).collect()
    /// });
    /// # assert_eq!(owners.len(), 2);
    /// # Ok::<_, tower::BoxError>(()) })?;
    /// # Ok::<_, tower::BoxError>(())
    /// ```
    pub fn with_table<T>(&self, look: impl FnOnce(&[Member<A, S>], &P::Table) -> T) -> T {
        let snapshot = self.shared.snapshot();
        look(&snapshot.members, &snapshot.table)
    }
}

impl<P, S, Req, A> Service<Req> for Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req, Error: Into<BoxError>> + Clone,
    A: Address,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<P, S, Req, A>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // 1. A first choice, where none stands from an earlier call.
        let fresh = self.reserved.is_none() && !self.selection.is_waiting();
        if fresh {
            let reserved = &mut self.reserved;
            let needs_request = select::first_choice(&self.shared, &mut self.rng, None, reserved);
            if needs_request {
                self.failed = None;
                return Poll::Ready(Ok(()));
            }
        }
        // 2. It stands while its member is there and ready.
        if let Some(reserved) = &mut self.reserved {
            if fresh || reserved.holds(&self.shared) {
                match reserved.service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    unready => self.pass_over(unready),
                }
            }
        }
        // 3. Otherwise, another one. Pending: the selection has registered the waker.
        self.poll_selection(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        match &mut self.reserved {
            Some(reserved) if reserved.holds(&self.shared) => {
                let future = reserved.service.call(request);
                self.reserved = None;
                ResponseFuture::called(future)
            }
            _ => self.call_unreserved(request),
        }
    }
}

impl<P, S, Req, A> Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req, Error: Into<BoxError>> + Clone,
    A: Address,
{
    /// Sends the request to an endpoint that is not in `tried` while another is available.
    ///
    /// The endpoint chosen is added to `tried` when it is called. With a hash policy it is the next distinct host in the
    /// key's order. When all available endpoints have been tried, one of them gets the request again.
    ///
    /// What was reserved by `poll_ready` is used if it suits, and otherwise the response future waits for a member
    /// that is ready, not one in `tried` while another is available; so this may be called without `poll_ready`. Cost: **O(n)** for each endpoint in `tried`.
    ///
    /// ```
    /// # use tower::{Service, service_fn};
    /// # use tower_lb::*;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// # let factory = |endpoint: &Endpoint<&'static str>| {
    /// #     let name = *endpoint.address();
    /// #     service_fn(move |()| async move { Ok::<_, std::io::Error>(name) })
    /// # };
    /// # let mut client = tower::ServiceBuilder::new()
    /// #     .layer(BalanceLayer::new(RoundRobin::default()))
    /// #     .layer(fixed(["a", "b"]))
    /// #     .service(factory);
    /// let tried = balance::Tried::new();
    /// let first = client.call_excluding((), &tried).await?;
    /// let second = client.call_excluding((), &tried).await?;
    /// assert_ne!(first, second);
    /// assert_eq!(tried.len(), 2);
    /// # Ok::<_, tower::BoxError>(()) })?;
    /// # Ok::<_, tower::BoxError>(())
    /// ```
    pub fn call_excluding(
        &mut self,
        request: Req,
        tried: &Tried<A>,
    ) -> ResponseFuture<P, S, Req, A> {
        self.failed = None;
        let reserved = self.reserved.take();
        if let Some(mut reserved) = reserved.filter(|reserved| reserved.holds(&self.shared)) {
            let endpoint = self.shared.endpoint(reserved.id);
            if let Some(endpoint) = endpoint.filter(|endpoint| !tried.list().contains(endpoint)) {
                tried.insert(endpoint);
                return ResponseFuture::called(reserved.service.call(request));
            }
        }
        let selection = Selection::excluding(&self.shared, tried.clone());
        self.select(request, selection)
    }

    #[inline(never)]
    fn pass_over(&mut self, unready: Poll<Result<(), S::Error>>) {
        if let Some(reserved) = self.reserved.take() {
            self.selection.pass_over(&self.shared, reserved, unready);
        }
    }

    #[inline(never)]
    fn poll_selection(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.reserved = None;
        self.failed = None;
        match ready!(self.selection.poll(&self.shared, &mut self.rng, None, cx)) {
            Selected::Reserved(reserved) => self.reserved = Some(reserved),
            Selected::NeedsRequest => {}
            Selected::Failed { error, version } => self.failed = Some((error, version)),
        }
        Poll::Ready(Ok(()))
    }

    /// Has the response future choose, or say why there is nothing to choose from.
    #[inline(never)]
    fn call_unreserved(&mut self, request: Req) -> ResponseFuture<P, S, Req, A> {
        self.reserved = None;
        match self.failed.take() {
            Some((error, version)) if self.shared.is_current(version) => {
                ResponseFuture::failed(error)
            }
            _ => self.select(request, Selection::new()),
        }
    }

    fn select(
        &mut self,
        request: Req,
        selection: Selection<S, Req, A>,
    ) -> ResponseFuture<P, S, Req, A> {
        ResponseFuture::selecting(self.shared.lend(), self.rng.next(), request, selection)
    }
}

impl<P, S, Req, A> CallExcluding<Req> for Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req, Error: Into<BoxError>> + Clone,
    A: Address,
{
    type Address = A;
    /// The id of the member that was reserved.
    type Trace = Option<u64>;

    #[inline(always)]
    fn trace(&self) -> Option<u64> {
        self.reserved.as_ref().map(|reserved| reserved.id)
    }

    fn called(&self, future: &Self::Future, reserved: &Option<u64>) -> Vec<Endpoint<A>> {
        let member = future.member(*reserved);
        let endpoint = member.and_then(|id| self.shared.endpoint(id));
        endpoint.into_iter().collect()
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<A>) -> Self::Future {
        Self::call_excluding(self, request, tried)
    }
}

/// The clone has a random stream of its own, and no reservation: readiness is one handle's.
impl<P, S, Req, A> Clone for Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Clone,
{
    #[inline]
    fn clone(&self) -> Self {
        let (shared, number) = self.shared.share();
        Self::from_hold(shared, Rng::new(self.seed, number))
    }
}

impl<P, S, Req, A> fmt::Debug for Balance<P, S, Req, A>
where
    P: Policy<A, S, Req> + fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance")
            .field("shared", &*self.shared)
            .field("selection", &self.selection)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::time::Duration;

    use tower::{Layer, ServiceExt, service_fn};

    use super::*;
    use crate::{
        discover::{each, fixed},
        load::PeakEwmaLayer,
        metric::READINGS,
        policy::{LeastLoaded, P2c},
    };

    /// However long ago the thread sent the last one.
    #[tokio::test(start_paused = true)]
    async fn a_request_reads_the_clock_twice() {
        async fn check<P>(policy: P)
        where
            P: Policy<usize, crate::load::PeakEwma<Echo>, ()>,
        {
            let factory = |_: &Endpoint<usize>| service_fn(echo as fn(()) -> _);
            let discover = each(PeakEwmaLayer::default()).layer(fixed(0..10).layer(factory));
            let mut balance = Balance::new(discover, policy);
            balance.ready().await.unwrap().call(()).await.unwrap();
            for pause in [0, 1, 1000, 100_000] {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let before = READINGS.get();
                for _ in 0..10 {
                    balance.ready().await.unwrap().call(()).await.unwrap();
                }
                assert_eq!(READINGS.get() - before, 20, "after {pause} ms");
            }
        }
        type Echo = tower::util::ServiceFn<fn(()) -> std::future::Ready<Result<(), BoxError>>>;
        fn echo((): ()) -> std::future::Ready<Result<(), BoxError>> {
            std::future::ready(Ok(()))
        }
        check(P2c::default()).await;
        check(P2c::default().choices(3)).await;
        check(LeastLoaded::default()).await;
    }
}
