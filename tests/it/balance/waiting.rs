//! What a caller costs that no member is ready for: a look at all, and then a few places in queues.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::*;

/// A caller that waits for one of `n` servers, none of which is ready.
struct Waiting {
    servers: Vec<Server>,
    targets: watch::Sender<Vec<(usize, u32)>>,
    balance: Balance<P2c, Tracked, (), usize>,
    /// The clients of a member that the balancer itself has.
    own: usize,
}

impl Waiting {
    /// `spare` servers more are not members yet.
    async fn among(n: usize, spare: usize) -> Self {
        let servers = answering(n + spare);
        servers.iter().for_each(|server| server.allow(0));
        let (targets, rx) = watch::channel(weights(n));
        let balance = over(&servers, BalanceLayer::new(p2c(16)), rx);
        settle().await;
        let own = servers[0].clients();
        Self {
            servers,
            targets,
            balance,
            own,
        }
    }

    /// The servers in whose queues callers are.
    fn queues(&self) -> Vec<usize> {
        let servers = self.servers.iter().enumerate();
        let longer = servers.filter(|(_, server)| server.clients() > self.own);
        longer.map(|(which, _)| which).collect()
    }

    fn asked(&self) -> usize {
        self.servers.iter().map(Server::asked).sum()
    }

    async fn is_ready(&mut self) -> bool {
        poll_ready_once::<_, ()>(&mut self.balance).await.is_ready()
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_asks_all_once_and_stays_in_sixteen_queues() {
    for n in [3, 16, 17, 1000] {
        let mut all = Waiting::among(n, 0).await;
        assert!(!all.is_ready().await);
        assert_eq!(all.queues().len(), n.min(16), "of {n}");
        // The first choice is asked a second time, now for a place in its queue.
        assert!((n..=n + 1).contains(&all.asked()), "{} of {n}", all.asked());
        for _ in 0..10 {
            assert!(!all.is_ready().await);
        }
        assert!(all.asked() <= n + 1 + 10 * 16, "{} of {n}", all.asked());
        drop(all.balance);
        settle().await;
        let clients = all.servers.iter().map(Server::clients).sum::<usize>();
        assert_eq!(clients, 0, "places are given up");
    }
}

#[tokio::test(start_paused = true)]
async fn a_publication_does_not_look_at_all_again() {
    let mut all = Waiting::among(1000, 0).await;
    assert!(!all.is_ready().await);
    let mut weights = weights(1000);
    for round in 1..20 {
        weights[round].1 = 5;
        all.targets.send_replace(weights.clone());
        settle().await;
        let before = all.asked();
        assert!(!all.is_ready().await);
        assert!(all.asked() - before <= 32, "{}", all.asked() - before);
    }
    assert_eq!(all.queues().len(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_sixteen_queues_goes_to_a_newcomer() {
    let mut all = Waiting::among(100, 3).await;
    assert!(!all.is_ready().await);
    let stays_in = all.queues();
    // One that is not ready costs the caller one of its places at most.
    all.targets.send_replace(weights(102));
    settle().await;
    assert!(!all.is_ready().await);
    let queues = all.queues();
    let kept = queues.iter().filter(|queue| stays_in.contains(queue));
    assert_eq!((kept.count(), queues.len()), (15, 16));
    all.servers[102].allow(1);
    let mut ready = tokio_test::task::spawn(poll_ready(&mut all.balance));
    tokio_test::assert_pending!(ready.poll());
    all.targets.send_replace(weights(103));
    settle().await;
    assert!(ready.is_woken());
    tokio_test::assert_ready_ok!(ready.poll());
    drop(ready);
    assert_eq!(all.balance.call(()).await.unwrap(), 102);
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_sixteen_queues_goes_to_one_that_is_healthy_again() {
    let mut all = Waiting::among(100, 0).await;
    endpoint(&all.balance, 7).mark_unhealthy();
    settle().await;
    all.servers[7].allow(1);
    assert!(!all.is_ready().await);
    endpoint(&all.balance, 7).mark_healthy();
    settle().await;
    assert!(all.is_ready().await);
    assert_eq!(all.balance.call(()).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_queues_have_left_finds_others() {
    let mut all = Waiting::among(100, 0).await;
    assert!(!all.is_ready().await);
    let gone = all.queues();
    // Some places are lost, then all.
    for lost in [5, 16] {
        let mut left = weights(100);
        left.retain(|(which, _)| !gone[..lost].contains(which));
        all.targets.send_replace(left);
        settle().await;
        assert!(!all.is_ready().await);
        let queues = all.queues();
        assert_eq!(queues.len(), 16);
        assert!(!queues.iter().any(|queue| gone[..lost].contains(queue)));
    }
    let one = all.queues()[3];
    all.servers[one].allow(1);
    assert!(all.is_ready().await);
    assert_eq!(all.balance.call(()).await.unwrap(), one);
}

#[tokio::test(start_paused = true)]
async fn those_that_fail_to_become_ready_are_asked_again_while_others_are_waited_for() {
    let mut all = Waiting::among(40, 0).await;
    let failing = all.servers[1..].to_vec();
    failing
        .iter()
        .for_each(|server| server.fail_readiness(true));
    assert!(!all.is_ready().await);
    assert_eq!(all.queues(), [0]);
    let before = all.asked();
    assert!(!all.is_ready().await);
    assert!(all.asked() - before <= 17, "{}", all.asked() - before);
    failing.iter().for_each(|server| {
        server.fail_readiness(false);
        server.allow(1);
    });
    assert!(all.is_ready().await);
}

/// A request that has been to every endpoint waits for one of them, until a newcomer takes it.
#[tokio::test(start_paused = true)]
async fn an_excluded_endpoint_is_left_for_a_newcomer() {
    let mut all = Waiting::among(2, 1).await;
    let tried = Tried::new();
    for member in all.balance.members() {
        tried.insert(member.endpoint().clone());
    }
    let mut answer = tokio_test::task::spawn(all.balance.call_excluding((), &tried));
    tokio_test::assert_pending!(answer.poll());
    assert_eq!(all.queues(), [0, 1]);
    // Nothing that matters has changed.
    all.targets.send_replace(vec![(0, 1), (1, 7)]);
    settle().await;
    tokio_test::assert_pending!(answer.poll());
    assert_eq!(all.queues(), [0, 1]);
    all.targets.send_replace(weights(3));
    settle().await;
    tokio_test::assert_pending!(answer.poll());
    all.servers[0].allow(1);
    tokio_test::assert_pending!(answer.poll(), "it waits for the newcomer alone");
    all.servers[2].allow(1);
    assert_eq!(answer.await.unwrap(), 2);
}

/// The queues are those of the first members in the key's own order.
#[tokio::test(start_paused = true)]
async fn a_request_with_a_key_waits_for_the_first_in_the_keys_order() {
    macro_rules! check {
        ($policy:ident, $weight:expr) => {
            let servers = answering(100);
            servers.iter().for_each(|server| server.allow(0));
            let weighted = (0..100).map(|i| (i, $weight(i)));
            let mut balance = ServiceBuilder::new()
                .layer(BalanceLayer::new($policy::by_key(hash::owned(
                    |request: &u64| Some(request.to_le_bytes()),
                ))))
                .layer(fixed(weighted))
                .service(factory(&servers));
            settle().await;
            let own = servers[0].clients();
            for key in 0..20_u64 {
                let mut answer = tokio_test::task::spawn(balance.call(key));
                tokio_test::assert_pending!(answer.poll());
                let is_queue = |server: &usize| servers[*server].clients() > own;
                let queues: Vec<_> = (0..100).filter(is_queue).collect();
                let mut first: Vec<_> = balance.with_table(|members, table| {
                    let first = table.replicas(&key.to_le_bytes(), 16);
                    first.map(|at| *members[at].endpoint().address()).collect()
                });
                first.sort_unstable();
                assert_eq!(queues, first, "{} {key}", stringify!($policy));
            }
        };
    }
    for weight in [|_| 1, |i| 1 + i as u32 % 4] {
        check!(RingHash, weight);
        check!(Maglev, weight);
        check!(Rendezvous, weight);
    }
}

/// Chooses what it is told, by address.
#[derive(Clone)]
struct Told {
    address: Arc<AtomicUsize>,
    choice: fn(usize) -> Choice,
}

impl Told {
    fn to(address: usize, choice: fn(usize) -> Choice) -> Self {
        let address = Arc::new(AtomicUsize::new(address));
        Self { address, choice }
    }
}

impl<S: Send + Sync + 'static> Policy<usize, S, ()> for Told {
    type Table = ();

    fn table(&self, _: Candidates<'_, usize, S>, _: Option<&()>) {}

    fn pick(
        &self,
        (): &(),
        candidates: Candidates<'_, usize, S>,
        _: &mut PickContext<'_, ()>,
    ) -> Choice {
        let address = self.address.load(Relaxed);
        let mut members = candidates.members().iter();
        let position = members.position(|member| *member.endpoint().address() == address);
        position.map_or(Choice::Nobody, self.choice)
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_for_exactly_one_that_leaves_is_given_another() {
    let servers = answering(3);
    servers.iter().for_each(|server| server.allow(0));
    let (targets, rx) = watch::channel(weights(3));
    let policy = Told::to(1, Choice::Exactly);
    let mut balance = over(&servers, BalanceLayer::new(policy.clone()), rx);
    settle().await;
    let mut ready = tokio_test::task::spawn(poll_ready(&mut balance));
    tokio_test::assert_pending!(ready.poll());
    servers[0].allow(1);
    tokio_test::assert_pending!(ready.poll(), "nobody else will do");
    policy.address.store(2, Relaxed);
    targets.send_replace(vec![(0, 1), (2, 1)]);
    settle().await;
    tokio_test::assert_pending!(ready.poll());
    servers[2].allow(1);
    assert!(ready.is_woken());
    tokio_test::assert_ready_ok!(ready.poll());
    drop(ready);
    assert_eq!(balance.call(()).await.unwrap(), 2);
}

/// A session's home drains, and everybody else with it: the request waits for its home.
#[tokio::test(start_paused = true)]
async fn a_request_waits_for_its_draining_home_although_the_set_is_empty() {
    let servers = answering(2);
    servers.iter().for_each(|server| server.allow(0));
    let (_targets, rx) = watch::channel(vec![(0, 0), (1, 0)]);
    let policy = Told::to(1, Choice::EvenDraining);
    let mut balance = over(&servers, BalanceLayer::new(policy), rx);
    settle().await;
    let mut ready = tokio_test::task::spawn(poll_ready(&mut balance));
    tokio_test::assert_pending!(ready.poll());
    // Woken for nothing.
    tokio_test::assert_pending!(ready.poll());
    servers[1].allow(1);
    assert!(ready.is_woken());
    tokio_test::assert_ready_ok!(ready.poll());
    drop(ready);
    assert_eq!(balance.call(()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_poll_asks_a_member_that_fails_once() {
    let servers = answering(1);
    servers[0].fail_readiness(true);
    let key = hash::hashed(|(): &()| Some(7));
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RingHash::by_key(key)))
        .layer(fixed(0..1))
        .service(factory(&servers));
    settle().await;
    let error = balance.call(()).await.unwrap_err();
    assert_eq!(error.downcast_ref::<NotReady>().unwrap().tried(), 1);
    assert_eq!(servers[0].asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn places_that_are_lost_to_errors_are_taken_elsewhere() {
    let mut all = Waiting::among(100, 0).await;
    assert!(!all.is_ready().await);
    let lost = all.queues();
    for which in &lost[1..] {
        all.servers[*which].fail_readiness(true);
    }
    assert!(!all.is_ready().await);
    let queues = all.queues();
    assert_eq!(queues.len(), 16);
    assert_eq!(
        queues.iter().filter(|queue| lost.contains(queue)).count(),
        1
    );
}
