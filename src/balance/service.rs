use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tower::{BoxError, Service, load::Load};

use super::{
    future::ResponseFuture,
    reserved::{Reserved, Selected},
    selection::{Selection, first_choice},
    shared::Shared,
    watcher::{self, Watcher},
};
use crate::{
    endpoint::{Address, Endpoint, Status},
    member::Member,
    metric::{Cost, InFlight},
    policy::Policy,
    random::Rng,
    split_arc::SplitArc,
    tried::{CallExcluding, SendsElsewhere, Tried},
};

/// Spreads requests over a changing set of endpoints.
///
/// This is a handle: clones share members, loads and policy. A clone costs O(1), whatever the
/// number of members: some 30 ns, which is fine for each request. A handle that is cloned often has
/// a reference count for each thread, and so has one that many requests wait with. When the last
/// handle is dropped, so are the driver, discovery and every service.
///
/// A handle that has made its call, or has not been polled yet, keeps nothing alive but the
/// balancer itself. A handle whose `poll_ready` was ready keeps the service that it has reserved
/// until the call. A handle that was told to wait keeps its places in the queues of up to sixteen
/// members that were not ready, and may be given their capacity. Poll such a handle again, or drop
/// it.
///
/// Cost of a request: the policy's pick and one clone of the member's service. No allocation, no
/// lock. So a service should be cheap to clone: one pointer, not several as in hyper-util's client.
/// That client's requests need only `&self`, so a `service_fn` over an `Arc` of it will do.
///
/// # Cancel safety
///
/// Dropping a handle gives back what it has reserved.
pub struct Balance<P, S, Req, A = SocketAddr>
where
    P: Policy<A, S, Req>,
{
    shared: SplitArc<Shared<A, S, P, P::Table>>,
    /// `call` uses this service if its member is still a candidate then.
    reserved: Option<Reserved<S>>,
    /// `call` returns this error, unless a snapshot newer than this version has been published.
    failed: Option<(BoxError, u64)>,
    selection: Selection<S, Req, A>,
    rng: Rng,
    /// Seeds the clones' random streams, together with their numbers: no two are the same.
    seed: u64,
}

impl<P, S, Req, A> Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Clone,
{
    pub(super) fn from_shared(shared: Arc<Shared<A, S, P, P::Table>>, rng: Rng) -> Self {
        Self::from_split(SplitArc::new(shared), rng)
    }

    #[inline]
    fn from_split(shared: SplitArc<Shared<A, S, P, P::Table>>, mut rng: Rng) -> Self {
        Self {
            seed: rng.next(),
            rng,
            shared,
            reserved: None,
            failed: None,
            selection: Selection::new(),
        }
    }

    /// Lists the members with endpoint, status and load, for example for a dashboard.
    ///
    /// The list shows this moment. It keeps the services in it alive. Cost: **O(n)**.
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
    /// for member in client.members() {
    ///     println!(
    ///         "{} weight {} {:?} in flight {} load {}",
    ///         member.endpoint(),
    ///         member.weight(),
    ///         member.endpoint().status(),
    ///         member.service().in_flight(),
    ///         member.service().load(),
    ///     );
    /// }
    /// # assert_eq!(client.members().len(), 2);
    /// # Ok::<_, tower::BoxError>(()) })?;
    /// # Ok::<_, tower::BoxError>(())
    /// ```
    #[must_use]
    pub fn members(&self) -> Vec<Member<A, S>> {
        self.shared.snapshot().members.to_vec()
    }

    /// Returns whether the driver is there, which takes in updates of the set.
    ///
    /// Without it every call fails with [`NotDriven`](crate::NotDriven).
    #[must_use]
    pub fn is_driven(&self) -> bool {
        self.shared.is_driven()
    }

    /// Gives `look` the members and the table that the policy picks with.
    ///
    /// With a hash policy, the table answers which endpoints own a key. Keep `look` short, because
    /// the snapshot and its services stay alive meanwhile.
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

impl<P, S, Req, A> Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Send + Sync + 'static,
    A: Address,
{
    /// Returns a handle that lists the members and their loads.
    ///
    /// Take it before the balancer is boxed; it still works afterwards.
    #[must_use]
    pub fn watcher(&self) -> Watcher<A>
    where
        S: InFlight + Load<Metric: Cost>,
    {
        Watcher::new(self.shared.as_arc(), watcher::tracked)
    }

    /// Returns a handle that lists the members without loads.
    ///
    /// For a balancer whose endpoints have no tracker.
    #[must_use]
    pub fn watcher_without_loads(&self) -> Watcher<A> {
        Watcher::new(self.shared.as_arc(), watcher::untracked)
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
        // 1. Make a first choice, unless an earlier call has left a choice or a wait.
        let fresh = self.reserved.is_none() && !self.selection.is_waiting();
        if fresh {
            let reserved = &mut self.reserved;
            let needs_request = first_choice(&self.shared, &mut self.rng, None, reserved);
            if needs_request {
                self.failed = None;
                return Poll::Ready(Ok(()));
            }
        }
        // 2. Keep the choice while its member is a candidate and ready.
        if let Some(reserved) = &mut self.reserved {
            if fresh || reserved.holds(&self.shared) {
                match reserved.service.poll_ready(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                    unready => self.pass_over(unready),
                }
            }
        }
        // 3. Otherwise search for another member. If pending, the selection has registered the
        // waker.
        self.poll_selection(cx)
    }

    #[inline(always)]
    fn call(&mut self, request: Req) -> Self::Future {
        match &mut self.reserved {
            Some(reserved) if reserved.holds(&self.shared) => {
                let future = reserved.service.call(request);
                let member = reserved.wish.id();
                self.reserved = None;
                ResponseFuture::called(future, member)
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
    /// Sends the request to an endpoint that is not in `tried`, if one is available.
    ///
    /// The chosen endpoint is added to `tried` when it is called. With a hash policy, it is the
    /// next distinct endpoint in the key's order. When all available endpoints have been tried, one
    /// of them gets the request again, unless `tried` is [strict](Tried::strict).
    ///
    /// Uses the member that `poll_ready` reserved unless it is in `tried`. Otherwise the response
    /// future waits for another one to become ready. So this may be called without `poll_ready`.
    /// Cost: **O(n)** for each endpoint in `tried`.
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
    /// let tried = Tried::new();
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
            let endpoint = self.shared.endpoint(reserved.wish.id());
            if let Some(endpoint) = endpoint.filter(|endpoint| !tried.list().contains(endpoint)) {
                tried.insert(endpoint);
                let member = reserved.wish.id();
                return ResponseFuture::called(reserved.service.call(request), member);
            }
        }
        let selection = Selection::excluding(&self.shared, tried.clone());
        self.wait(request, selection)
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

    /// Returns the error that `poll_ready` found, or chooses a member for the request.
    #[inline(never)]
    fn call_unreserved(&mut self, request: Req) -> ResponseFuture<P, S, Req, A> {
        self.reserved = None;
        if let Some((error, version)) = self.failed.take() {
            if self.shared.is_current(version) {
                return ResponseFuture::failed(error);
            }
        }
        let mut selection = Selection::new();
        let mut reserved = None;
        first_choice(&self.shared, &mut self.rng, Some(&request), &mut reserved);
        if let Some(mut reserved) = reserved {
            // There is no waker yet. If the member is not ready, the future asks again.
            match reserved
                .service
                .poll_ready(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Ready(Ok(())) => {
                    let future = reserved.service.call(request);
                    return ResponseFuture::called(future, reserved.wish.id());
                }
                unready => selection.pass_over(&self.shared, reserved, unready),
            }
        }
        self.wait(request, selection)
    }

    /// Lets the response future wait for a member.
    #[cold]
    #[inline(never)]
    fn wait(
        &mut self,
        request: Req,
        selection: Selection<S, Req, A>,
    ) -> ResponseFuture<P, S, Req, A> {
        let rng = Rng::new(self.rng.next(), 0);
        ResponseFuture::selecting(self.shared.lend(), rng, request, selection)
    }
}

impl<P, S, Req, A> SendsElsewhere for Balance<P, S, Req, A> where P: Policy<A, S, Req> {}

impl<P, S, Req, A> CallExcluding<Req> for Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Service<Req, Error: Into<BoxError>> + Clone,
    A: Address,
{
    type Address = A;

    fn called(&self, future: &Self::Future) -> Vec<Endpoint<A>> {
        let member = future.member();
        let endpoint = member.and_then(|id| self.shared.endpoint(id));
        endpoint.into_iter().collect()
    }

    fn call_excluding(&mut self, request: Req, tried: &Tried<A>) -> Self::Future {
        Self::call_excluding(self, request, tried)
    }

    fn has_other(&self, tried: &Tried<A>) -> bool {
        let snapshot = self.shared.snapshot();
        let tried = tried.list();
        // The endpoints' own statuses: the snapshot may not have heard of the last change.
        let is_available = |endpoint: &Endpoint<A>| {
            endpoint.weight() > 0 && endpoint.status() == Status::Available
        };
        let mut others = snapshot.members.iter().map(Member::endpoint);
        others.any(|endpoint| !tried.contains(endpoint) && is_available(endpoint))
    }
}

/// The clone has its own random stream and no reservation, because readiness belongs to one handle.
impl<P, S, Req, A> Clone for Balance<P, S, Req, A>
where
    P: Policy<A, S, Req>,
    S: Clone,
{
    #[inline]
    fn clone(&self) -> Self {
        let (shared, number) = self.shared.share();
        Self::from_split(shared, Rng::new(self.seed, number))
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
