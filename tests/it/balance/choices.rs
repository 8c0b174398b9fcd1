//! What the balancer does with a policy's choice.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::*;

/// A policy that needs the request, which is the position to start from.
#[derive(Clone, Debug)]
struct ByRequest;

impl<A, S> Policy<A, S, usize> for ByRequest {
    type Table = ();

    fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {}

    fn pick(
        &self,
        (): &(),
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, usize>,
    ) -> Choice {
        let Some(&start) = cx.request() else {
            return Choice::NeedsRequest;
        };
        let n = candidates.members().len();
        let order = (0..n).map(|i| (start + i) % n);
        order
            .into_iter()
            .find(|&i| candidates.contains(i))
            .map_or(Choice::Nobody, Choice::Member)
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_needs_the_request_chooses_in_call() {
    let servers = answering(3);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(ByRequest))
        .layer(fixed(0..3))
        .service(factory(&servers));
    for request in 0..3 {
        balance.ready().await.unwrap();
        assert_eq!(balance.call(request).await.unwrap(), request);
    }
    // A member that is not ready or that fails is passed over for the next one in the request's
    // order.
    servers[0].allow(0);
    servers[1].fail_readiness(true);
    assert_eq!(balance.clone().oneshot(0).await.unwrap(), 2);
    // No member is ready: the response future waits until one wakes it.
    servers[2].allow(0);
    let mut answer = tokio_test::task::spawn(balance.call(2));
    tokio_test::assert_pending!(answer.poll());
    servers[0].allow(1);
    assert!(answer.is_woken());
    tokio_test::assert_pending!(answer.poll());
    assert_eq!(servers[0].calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_response_future_that_waits_is_woken_by_a_change_of_the_set() {
    let servers = answering(2);
    servers[0].allow(0);
    let (targets, rx) = watch::channel(vec![0]);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(ByRequest))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    balance.ready().await.unwrap();
    let mut answer = tokio_test::task::spawn(balance.call(0));
    tokio_test::assert_pending!(answer.poll());
    settle().await;
    tokio_test::assert_pending!(answer.poll());
    assert!(!answer.is_woken());
    targets.send_replace(vec![0, 1]);
    settle().await;
    assert!(answer.is_woken());
    tokio_test::assert_pending!(answer.poll());
    assert_eq!(servers[1].calls(), 1);
}

fn untracked<P>(
    servers: &[Server],
    targets: discover::FixedLayer<usize>,
    layer: BalanceLayer<P, ()>,
) -> Balance<P, Client, (), usize>
where
    P: Policy<usize, Client, ()> + Clone,
{
    ServiceBuilder::new()
        .layer(layer)
        .layer(targets)
        .service(factory(servers))
}

fn tracked<P>(
    servers: &[Server],
    targets: discover::FixedLayer<usize>,
    layer: BalanceLayer<P, ()>,
) -> Balance<P, Tracked, (), usize>
where
    P: Policy<usize, Tracked, ()> + Clone,
{
    ServiceBuilder::new()
        .layer(layer)
        .layer(each(PendingRequestsLayer::default()))
        .layer(targets)
        .service(factory(servers))
}

/// Always makes the same choice, whatever the candidates are.
#[derive(Clone, Debug)]
struct Always(Choice);

impl<A, S, Req> Policy<A, S, Req> for Always {
    type Table = ();

    fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {}

    fn pick(&self, (): &(), _: Candidates<'_, A, S>, _: &mut PickContext<'_, Req>) -> Choice {
        self.0
    }
}

#[tokio::test(start_paused = true)]
async fn a_choice_that_is_no_candidate_fails_the_call_and_reaches_no_other() {
    // 0 is draining, 1 is unhealthy, 7 and `usize::MAX` are out of range.
    for wrong in [0, 1, 7, usize::MAX] {
        for choice in [Choice::Member(wrong), Choice::Exactly(wrong)] {
            let servers = answering(3);
            let mut balance = untracked(
                &servers,
                fixed([(0, 0), (1, 1), (2, 1)]),
                BalanceLayer::new(Always(choice)),
            );
            settle().await;
            balance.members()[1].endpoint().mark_unhealthy();
            settle().await;
            let answer = start(&mut balance).await.await;
            assert!(answer.unwrap_err().is::<NotChosen>(), "{choice:?}");
            assert_eq!(servers[2].calls(), 0, "{choice:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_choice_that_is_not_ready_is_waited_for_and_no_other_takes_its_place() {
    for choice in [Choice::Member(1), Choice::Exactly(1)] {
        let servers = answering(3);
        servers[1].allow(0);
        let balance = untracked(&servers, fixed(0..3), BalanceLayer::new(Always(choice)));
        let mut answer = tokio_test::task::spawn(balance.oneshot(()));
        tokio_test::assert_pending!(answer.poll());
        settle().await;
        tokio_test::assert_pending!(answer.poll());
        servers[1].allow(1);
        assert!(answer.is_woken(), "{choice:?}");
        assert_eq!(answer.await.unwrap(), 1, "{choice:?}");
    }
}

/// Sends all requests to one member, as long as that may be chosen; asks another policy otherwise.
#[derive(Clone, Debug)]
struct Override<P>(usize, P);

impl<A, S, Req, P: Policy<A, S, Req>> Policy<A, S, Req> for Override<P> {
    type Table = P::Table;

    fn table(&self, from: Candidates<'_, A, S>, previous: Option<&P::Table>) -> P::Table {
        self.1.table(from, previous)
    }

    fn pick(
        &self,
        table: &P::Table,
        from: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        if from.contains(self.0) {
            Choice::Exactly(self.0)
        } else {
            self.1.pick(table, from, cx)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_one_member_is_waited_for_whatever_the_policy_would_choose_next() {
    let servers = answering(3);
    servers[1].allow(0);
    let layer = BalanceLayer::new(Override(1, RoundRobin::seeded(1)));
    let mut balance = untracked(&servers, fixed(0..3), layer);
    settle().await;
    for _ in 0..2 {
        assert!(poll_ready_once::<_, ()>(&mut balance).await.is_pending());
    }
    let mut answer = tokio_test::task::spawn(balance.clone().call_excluding((), &Tried::new()));
    tokio_test::assert_pending!(answer.poll());
    // One that failed to become ready is asked again, and no other in its place.
    servers[1].fail_readiness(true);
    let failed = balance.clone().oneshot(()).await.unwrap_err();
    assert!(failed.is::<NotReady>(), "{failed}");
    servers[1].fail_readiness(false);
    servers[1].allow(2);
    assert_eq!(answer.await.unwrap(), 1);
    assert_eq!(servers[0].calls() + servers[2].calls(), 0);
}

/// One that has places in other queues gives them up for the one that the policy now wants.
#[tokio::test(start_paused = true)]
async fn a_wish_for_exactly_one_member_ends_the_wait_for_others() {
    #[derive(Clone, Debug)]
    struct ThenExactly;

    impl<A, S, Req> Policy<A, S, Req> for ThenExactly {
        type Table = ();

        fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {}

        fn pick(
            &self,
            (): &(),
            from: Candidates<'_, A, S>,
            _: &mut PickContext<'_, Req>,
        ) -> Choice {
            if from.contains(0) {
                Choice::Member(0)
            } else {
                Choice::Exactly(1)
            }
        }
    }
    let servers = answering(2);
    servers.iter().for_each(|server| server.allow(0));
    let balance = untracked(&servers, fixed(0..2), BalanceLayer::new(ThenExactly));
    let mut answer = tokio_test::task::spawn(balance.oneshot(()));
    tokio_test::assert_pending!(answer.poll());
    settle().await;
    tokio_test::assert_pending!(answer.poll());
    servers[0].allow(1);
    tokio_test::assert_pending!(answer.poll());
    servers[1].allow(1);
    assert_eq!(answer.await.unwrap(), 1);
    assert_eq!(servers[0].permits(), 1, "its place was given up");
}

#[tokio::test(start_paused = true)]
async fn exactly_one_member_is_reached_again_where_it_was_tried() {
    let servers = answering(2);
    let layer = BalanceLayer::new(Always(Choice::Exactly(1)));
    let mut balance = untracked(&servers, fixed(0..2), layer);
    let tried = Tried::new();
    for _ in 0..2 {
        let answer = balance.call_excluding((), &tried).await;
        assert_eq!(answer.unwrap(), 1);
    }
}

/// Lets another policy choose among the members with even addresses.
#[derive(Clone, Debug)]
struct Even<P>(P, Narrow);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Narrow {
    Only,
    AsBuilt,
}

impl<S, Req, P: Policy<usize, S, Req>> Policy<usize, S, Req> for Even<P> {
    type Table = (policy::Mask, P::Table);

    fn table(&self, all: Candidates<'_, usize, S>, previous: Option<&Self::Table>) -> Self::Table {
        let members = all.members().iter().enumerate();
        let even = members.filter(|(_, member)| member.endpoint().address() % 2 == 0);
        let mask: policy::Mask = even.map(|(position, _)| position).collect();
        let table = self
            .0
            .table(all.only(&mask), previous.map(|(_, table)| table));
        (mask, table)
    }

    fn pick(
        &self,
        (mask, table): &Self::Table,
        all: Candidates<'_, usize, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        match self.1 {
            Narrow::Only => self.0.pick(table, all.only(mask), cx),
            Narrow::AsBuilt => self.0.pick(table, all.as_built(mask), cx),
        }
    }

    fn hash_of(&self, cx: &mut PickContext<'_, Req>) -> Option<u64> {
        self.0.hash_of(cx)
    }
}

async fn stays_even<P>(policy: P)
where
    P: Policy<usize, Tracked, ()> + Clone + std::fmt::Debug,
{
    for narrow in [Narrow::Only, Narrow::AsBuilt] {
        let servers = answering(50);
        let weighted = (0..50).map(|address| (address, 1 + address as u32 % 3));
        let layer = BalanceLayer::new(Even(policy.clone(), narrow));
        let balance = tracked(&servers, fixed(weighted), layer);
        for _ in 0..200 {
            let answer = balance.clone().oneshot(()).await.unwrap();
            assert_eq!(answer % 2, 0, "{policy:?} {narrow:?}");
        }
        // More than sixteen members are not ready, and still no odd one may take the request.
        servers.iter().step_by(2).for_each(|server| server.allow(0));
        let odd = servers.iter().skip(1).step_by(2);
        let mut answer = tokio_test::task::spawn(balance.oneshot(()));
        tokio_test::assert_pending!(answer.poll());
        assert_eq!(odd.map(Server::calls).sum::<usize>(), 0, "{policy:?}");
        servers.iter().step_by(2).for_each(|server| server.allow(1));
        assert!(answer.is_woken(), "{policy:?} {narrow:?}");
        assert_eq!(answer.await.unwrap() % 2, 0, "{policy:?} {narrow:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_narrows_what_another_sees_is_never_left() {
    stays_even(P2c::seeded(1)).await;
    stays_even(P2c::seeded(1).choices(3)).await;
    stays_even(LeastLoaded::seeded(1)).await;
    stays_even(Random::seeded(1)).await;
    stays_even(RoundRobin::seeded(1)).await;
    stays_even(WeightedRoundRobin::seeded(1)).await;
    let key = |(): &()| Some(7);
    stays_even(RingHash::by_key(hash::hashed(key))).await;
    stays_even(Maglev::by_key(hash::hashed(key))).await;
    stays_even(Rendezvous::by_key(hash::hashed(key))).await;
}

/// Each key goes to the endpoint that it would go to if the group were the whole set.
#[tokio::test(start_paused = true)]
async fn a_hash_policy_within_a_group_spreads_as_over_that_group_alone() {
    async fn owners<P: Policy<usize, Client, u64> + Clone>(
        policy: P,
        addresses: impl Iterator<Item = usize>,
    ) -> Vec<usize> {
        let servers = answering(10);
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(fixed(addresses))
            .service(factory(&servers));
        let mut owners = Vec::new();
        for key in 0..200_u64 {
            let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            owners.push(balance.clone().oneshot(hash).await.unwrap());
        }
        owners
    }
    let key = |key: &u64| Some(*key);
    let ring = RingHash::by_key(hash::hashed(key));
    let alone = owners(ring.clone(), (0..10).step_by(2)).await;
    assert_eq!(owners(Even(ring, Narrow::AsBuilt), 0..10).await, alone);
    let maglev = Maglev::by_key(hash::hashed(key));
    let alone = owners(maglev.clone(), (0..10).step_by(2)).await;
    assert_eq!(owners(Even(maglev, Narrow::Only), 0..10).await, alone);
}

/// Counts picks and builds, and asks to be built again.
#[derive(Clone, Debug)]
struct Counting {
    picks: Arc<AtomicUsize>,
    builds: Arc<AtomicUsize>,
    any_will_do: bool,
    every: Option<Duration>,
    rebuild: Arc<OnceLock<policy::Rebuild>>,
}

impl Counting {
    fn new(any_will_do: bool, every: Option<Duration>) -> Self {
        Self {
            picks: Arc::default(),
            builds: Arc::default(),
            any_will_do,
            every,
            rebuild: Arc::default(),
        }
    }
}

impl<A, S, Req> Policy<A, S, Req> for Counting {
    type Table = Option<Instant>;

    fn table(&self, _: Candidates<'_, A, S>, _: Option<&Self::Table>) -> Self::Table {
        self.builds.fetch_add(1, Relaxed);
        self.every.map(|every| Instant::now() + every)
    }

    fn pick(
        &self,
        _: &Self::Table,
        from: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        self.picks.fetch_add(1, Relaxed);
        let first = from.iter().next();
        first.map_or(Choice::Nobody, |(position, _)| Choice::Member(position))
    }

    fn any_will_do(&self) -> bool {
        self.any_will_do
    }

    fn refresh_at(&self, table: &Self::Table) -> Option<Instant> {
        *table
    }

    fn attach(&self, rebuild: policy::Rebuild) {
        self.rebuild.set(rebuild).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn after_sixteen_picks_any_member_will_do_if_the_policy_says_so() {
    for (any_will_do, expected) in [(true, 16), (false, 50)] {
        let servers = answering(50);
        servers[..49].iter().for_each(|server| server.allow(0));
        let policy = Counting::new(any_will_do, None);
        let picks = policy.picks.clone();
        let balance = untracked(&servers, fixed(0..50), BalanceLayer::new(policy));
        let answer = ServiceExt::<()>::oneshot(balance, ()).await;
        assert_eq!(answer.unwrap(), 49);
        assert_eq!(picks.load(Relaxed), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_has_its_table_built_again_in_its_own_time_and_when_it_asks() {
    let servers = answering(2);
    let policy = Counting::new(false, Some(ms(100)));
    let (builds, rebuild) = (policy.builds.clone(), policy.rebuild.clone());
    let _balance = untracked(&servers, fixed(0..2), BalanceLayer::new(policy));
    settle().await;
    let before = builds.load(Relaxed);
    sleep(ms(1050)).await;
    assert_eq!(builds.load(Relaxed) - before, 10);
    rebuild.get().unwrap().now();
    settle().await;
    assert_eq!(builds.load(Relaxed) - before, 11);
}

/// A set that nothing is known of is not an empty one.
#[tokio::test(start_paused = true)]
async fn a_table_built_again_before_discovery_has_reported_is_no_report() {
    let servers = answering(1);
    let policy = Counting::new(false, None);
    let rebuild = policy.rebuild.clone();
    let (changes, rx) = mpsc::unbounded_channel();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(policy))
        .service(UnboundedReceiverStream::new(rx));
    rebuild.get().unwrap().now();
    settle().await;
    let mut answer = tokio_test::task::spawn(ServiceExt::<()>::oneshot(balance, ()));
    tokio_test::assert_pending!(answer.poll());
    let endpoint = Endpoint::new(0);
    let insert = Change::Insert(endpoint.clone(), factory(&servers)(&endpoint));
    changes.send(Ok::<_, BoxError>(insert)).unwrap();
    assert_eq!(answer.await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_always_wants_a_new_table_has_one_each_millisecond() {
    let servers = answering(1);
    let policy = Counting::new(false, Some(Duration::ZERO));
    let builds = policy.builds.clone();
    let _balance = untracked(&servers, fixed(0..1), BalanceLayer::new(policy));
    settle().await;
    let before = builds.load(Relaxed);
    sleep(ms(100)).await;
    let built = builds.load(Relaxed) - before;
    assert!((50..=100).contains(&built), "{built} in 100 ms");
}

#[tokio::test(start_paused = true)]
async fn in_a_panic_members_tell_which_of_them_are_well() {
    let servers = answering(3);
    let layer = BalanceLayer::new(P2c::seeded(1)).panic_threshold(0.5);
    let balance = tracked(&servers, fixed(0..3), layer);
    settle().await;
    for member in &balance.members()[..2] {
        member.endpoint().mark_unhealthy();
    }
    settle().await;
    let members = balance.members();
    assert!(members.iter().all(Member::is_candidate));
    let available: Vec<bool> = members.iter().map(Member::is_available).collect();
    assert_eq!(available, [false, false, true]);
}

/// A policy that wraps another one can read the hash by which that one places a request.
#[tokio::test(start_paused = true)]
async fn a_policy_hands_on_the_hash_of_a_request() {
    #[derive(Clone, Debug)]
    struct Checked<P>(P);

    impl<S, P: Policy<usize, S, u64>> Policy<usize, S, u64> for Checked<P> {
        type Table = P::Table;

        fn table(&self, all: Candidates<'_, usize, S>, previous: Option<&P::Table>) -> P::Table {
            self.0.table(all, previous)
        }

        fn pick(
            &self,
            table: &P::Table,
            all: Candidates<'_, usize, S>,
            cx: &mut PickContext<'_, u64>,
        ) -> Choice {
            let hash = self.0.hash_of(cx);
            assert_eq!(hash, cx.request().copied());
            self.0.pick(table, all, cx)
        }
    }
    let servers = answering(2);
    let ring = RingHash::by_key(hash::hashed(|key: &u64| Some(*key)));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(Checked(Even(ring, Narrow::Only))))
        .layer(fixed(0..2))
        .service(factory(&servers));
    assert_eq!(balance.oneshot(7_u64).await.unwrap(), 0);
}

#[derive(Clone, Debug)]
struct Never;

impl<A, S, Req> Policy<A, S, Req> for Never {
    type Table = ();

    fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {}

    fn pick(&self, (): &(), _: Candidates<'_, A, S>, cx: &mut PickContext<'_, Req>) -> Choice {
        cx.request()
            .map_or(Choice::Nobody, |_| Choice::NeedsRequest)
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_chooses_nobody_fails_the_call() {
    let servers = answering(2);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(Never))
        .layer(fixed(0..2))
        .service(factory(&servers));
    ServiceExt::<()>::ready(&mut balance).await.unwrap();
    assert!(balance.call(()).await.unwrap_err().is::<NotChosen>());
    assert!(
        balance.call(()).await.unwrap_err().is::<NotChosen>(),
        "without poll_ready, too"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_without_poll_ready_chooses_by_itself() {
    let servers = answering(1);
    let (_targets, rx) = watch::channel(weights(1));
    let mut balance = over(&servers, BalanceLayer::new(p2c(16)), rx);
    assert_eq!(balance.call(()).await.unwrap(), 0);
}
