//! Foreign code, runtimes and sources that fail do not stop the driver.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::sync::Notify;
use tokio_stream::Stream;

use super::*;

/// The addresses of the members, in the order of joining.
fn listed<P, S, A>(balance: &Balance<P, S, (), A>) -> Vec<A>
where
    P: Policy<A, S, ()>,
    S: Clone,
    A: Clone,
{
    let members = balance.members();
    let addresses = members
        .iter()
        .map(|member| member.endpoint().address().clone());
    addresses.collect()
}

/// Whatever has failed: updates are taken in, and ejections end.
async fn goes_on<P>(
    balance: &Balance<P, Tracked, (), usize>,
    targets: &watch::Sender<Vec<(usize, u32)>>,
) where
    P: Policy<usize, Tracked, ()>,
{
    let endpoint = balance.members()[0].endpoint().clone();
    endpoint.eject(Instant::now() + ms(10));
    sleep(ms(11)).await;
    assert_eq!(endpoint.status(), Status::Available, "the ejection is over");
    targets.send_modify(|list| list.push((7, 1)));
    settle().await;
    assert!(listed(balance).contains(&7), "an endpoint joins");
    targets.send_modify(|list| list.retain(|(address, _)| *address != 7));
    settle().await;
    assert!(!listed(balance).contains(&7), "an endpoint leaves");
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_panics_costs_its_endpoint_alone_until_that_is_listed_again() {
    let servers = answering(8);
    let make = factory(&servers);
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = is_broken.clone();
    let (targets, rx) = watch::channel(weights(3));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint<usize>| {
            let fails = *endpoint.address() == 1 && broken.load(Relaxed);
            assert!(!fails, "the factory's own panic");
            make(endpoint)
        });
    settle().await;
    assert_eq!(listed(&balance), [0, 2]);
    goes_on(&balance, &targets).await;
    is_broken.store(false, Relaxed);
    targets.send_replace(vec![(0, 1), (2, 1)]);
    settle().await;
    targets.send_replace(weights(3));
    settle().await;
    assert_eq!(listed(&balance), [0, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn when_every_factory_panics_the_set_is_known_to_be_empty() {
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(fixed([0, 1]))
        .service(|_: &Endpoint<usize>| -> Client { panic!("the factory's own panic") });
    let error = ServiceExt::<()>::oneshot(balance, ()).await.unwrap_err();
    assert!(error.is::<NoEndpoints>(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_panics_costs_its_endpoint_alone() {
    let servers = answering(8);
    let (targets, rx) = watch::channel(weights(3));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(each_with(|endpoint: &Endpoint<usize>| {
            assert_ne!(*endpoint.address(), 2, "the layer's own panic");
            PendingRequestsLayer::default()
        }))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    assert_eq!(listed(&balance), [0, 1]);
    goes_on(&balance, &targets).await;
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_fails_costs_its_endpoint_alone() {
    let servers = answering(8);
    let make = factory(&servers);
    let (targets, rx) = watch::channel(weights(3));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fallible())
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint<usize>| match endpoint.address() {
            0 => Err("no certificate"),
            _ => Ok(make(endpoint)),
        });
    settle().await;
    assert_eq!(listed(&balance), [1, 2]);
    goes_on(&balance, &targets).await;
}

/// A service whose clones panic once it is told so.
struct Fragile(Arc<AtomicBool>);

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert!(!self.0.load(Relaxed), "the clone's own panic");
        Self(self.0.clone())
    }
}

impl Service<()> for Fragile {
    type Response = ();
    type Error = Failed;
    type Future = std::future::Ready<Result<(), Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_panics_when_it_is_cloned_costs_its_endpoint_alone() {
    let flags: [Arc<AtomicBool>; 3] = Default::default();
    let fragile = flags.clone();
    let (targets, rx) = watch::channel(vec![0, 1]);
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint<usize>| Fragile(fragile[*endpoint.address()].clone()));
    settle().await;
    assert_eq!(listed(&balance), [0, 1]);
    flags[0].store(true, Relaxed);
    targets.send_replace(vec![0, 1, 2]);
    settle().await;
    flags[0].store(false, Relaxed);
    assert_eq!(listed(&balance), [1, 2]);
}

/// Panics when a table is built for more than so many members.
#[derive(Clone, Debug)]
struct Brittle(Arc<AtomicUsize>, RoundRobin);

impl<A, S, Req> Policy<A, S, Req> for Brittle {
    type Table = <RoundRobin as Policy<A, S, Req>>::Table;

    fn table(&self, all: Candidates<'_, A, S>, before: Option<&Self::Table>) -> Self::Table {
        assert!(
            all.members().len() <= self.0.load(Relaxed),
            "the table's own panic"
        );
        Policy::<A, S, Req>::table(&self.1, all, before)
    }

    fn pick(
        &self,
        table: &Self::Table,
        all: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Req>,
    ) -> Choice {
        Policy::<A, S, Req>::pick(&self.1, table, all, cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_panics_leaves_the_one_before_and_is_tried_again() {
    let servers = answering(8);
    let most = Arc::new(AtomicUsize::new(2));
    let policy = Brittle(most.clone(), RoundRobin::seeded(1));
    let (targets, rx) = watch::channel(weights(2));
    let balance = over(&servers, BalanceLayer::new(policy), rx);
    settle().await;
    targets.send_replace(weights(3));
    settle().await;
    assert_eq!(listed(&balance), [0, 1]);
    assert!(balance.clone().oneshot(()).await.is_ok());
    most.store(10, Relaxed);
    sleep(ms(1100)).await;
    assert_eq!(listed(&balance), [0, 1, 2]);
    goes_on(&balance, &targets).await;
}

/// Lists two endpoints, and then panics.
struct Panicking(Vec<Change<Endpoint<usize>, Client>>);

impl Stream for Panicking {
    type Item = Result<Change<Endpoint<usize>, Client>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = self.0.pop().expect("discovery's own panic");
        Poll::Ready(Some(Ok(change)))
    }
}

#[tokio::test(start_paused = true)]
async fn discovery_that_panics_leaves_the_set_as_it_is() {
    let servers = answering(2);
    let make = factory(&servers);
    let insert = |address| {
        let endpoint = Endpoint::new(address);
        let service = make(&endpoint);
        Change::Insert(endpoint, service)
    };
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .service(Panicking(vec![insert(1), insert(0)]));
    settle().await;
    assert_eq!(listed(&balance), [0, 1]);
    assert!(balance.is_driven());
    let endpoint = balance.members()[0].endpoint().clone();
    endpoint.eject(Instant::now() + ms(10));
    settle().await;
    for _ in 0..4 {
        assert_eq!(balance.clone().oneshot(()).await.unwrap(), 1);
    }
    sleep(ms(11)).await;
    assert_eq!(endpoint.status(), Status::Available, "the ejection is over");
}

/// What happens to a handle that outlives the runtime which the balancer was built in.
#[test]
fn calls_fail_by_name_when_the_driver_is_gone() {
    for layer in [
        BalanceLayer::new(RoundRobin::seeded(1)),
        BalanceLayer::new(RoundRobin::seeded(1)).wait_for_endpoints(),
    ] {
        for targets in [2, 0] {
            let runtime = || {
                let builder = &mut tokio::runtime::Builder::new_current_thread();
                builder.enable_time().start_paused(true).build().unwrap()
            };
            let first = runtime();
            let servers = answering(2);
            let (_targets, rx) = watch::channel(weights(targets));
            let mut balance = first.block_on(async {
                let balance = over(&servers, layer.clone(), rx);
                settle().await;
                balance
            });
            assert!(balance.is_driven());
            drop(first);
            assert!(!balance.is_driven());
            let error = runtime().block_on(async {
                let fresh = balance.clone().oneshot(()).await.unwrap_err();
                assert!(fresh.is::<NotDriven>(), "{fresh}");
                start(&mut balance).await.await.unwrap_err()
            });
            assert!(error.is::<NotDriven>(), "{error}");
            assert!(error.to_string().contains("Balance::pair"), "{error}");
            assert_eq!(servers.iter().map(Server::calls).sum::<usize>(), 0);
        }
    }
}

/// A request that waits when the driver goes is told so.
#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_is_told_that_the_driver_is_gone() {
    let servers = answering(1);
    servers[0].allow(0);
    let discover = fixed([0]).layer(factory(&servers));
    let (balance, mut driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    std::future::poll_fn(|cx| {
        let _ = Pin::new(&mut driver).poll(cx);
        Poll::Ready(())
    })
    .await;
    let request = tokio::spawn(balance.oneshot(()));
    settle().await;
    drop(driver);
    assert!(request.await.unwrap().unwrap_err().is::<NotDriven>());
}

/// Fails at every poll, or says at every poll that nothing is there.
struct Failing {
    polls: Arc<Mutex<Vec<Instant>>>,
    is_empty: bool,
}

impl Stream for Failing {
    type Item = Result<Change<Endpoint<usize>, Client>, BoxError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.polls.lock().unwrap().push(Instant::now());
        Poll::Ready(Some(Err(match self.is_empty {
            true => NoEndpoints::new().into(),
            false => "away".into(),
        })))
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_always_fails_is_asked_after_growing_pauses() {
    for is_empty in [false, true] {
        let polls = Arc::new(Mutex::new(Vec::new()));
        let failing = Failing {
            polls: polls.clone(),
            is_empty,
        };
        let balance: Balance<_, _, (), _> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .service(failing);
        let error = balance.clone().oneshot(()).await.unwrap_err();
        assert!(error.is::<NoEndpoints>(), "{error}");
        sleep(Duration::from_secs(120)).await;
        let polls = polls.lock().unwrap();
        let pauses: Vec<_> = polls.windows(2).map(|two| two[1] - two[0]).collect();
        // Ten that double, and then one each 5 to 10 s.
        assert!((20..=40).contains(&pauses.len()), "{pauses:?}");
        // An empty set is believed at once when it is said first.
        let (first, longest) = if is_empty { (1, ms(21)) } else { (0, ms(11)) };
        assert!((ms(5)..=longest).contains(&pauses[first]), "{pauses:?}");
        let last = pauses.last().unwrap();
        let longest = Duration::from_secs(5)..=Duration::from_secs(11);
        assert!(longest.contains(last), "{pauses:?}");
    }
}

/// A registry without endpoints that says so every second is in good health.
#[tokio::test(start_paused = true)]
async fn a_source_that_keeps_saying_that_it_is_empty_is_heard_at_once() {
    let (changes, rx) = mpsc::unbounded_channel();
    let balance: Balance<_, _, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(UnboundedReceiverStream::new(rx)));
    for _ in 0..60 {
        let empty: BoxError = NoEndpoints::new().into();
        changes.send(Err(empty)).unwrap();
        sleep(ms(1000)).await;
        assert!(balance.members().is_empty());
    }
    let client = answering(1)[0].client();
    changes.send(Ok(Change::Insert(0, client))).unwrap();
    settle().await;
    assert_eq!(listed(&balance), [0]);
}

#[tokio::test(start_paused = true)]
async fn discovery_that_ended_with_nothing_is_not_waited_for() {
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()).wait_for_endpoints())
        .layer(fixed::<usize>([]))
        .service(|_: &Endpoint<usize>| Server::new(0, Behaviour::Hang).client());
    let answer = timeout(ms(1000), ServiceExt::<()>::oneshot(balance, ())).await;
    let error = answer.unwrap().unwrap_err();
    let error = error.downcast_ref::<NoEndpoints>().unwrap();
    assert!(error.has_ended());
    assert_eq!(error.to_string(), "no endpoints: discovery has ended");
}

/// The drop of the last handle wakes nothing that is gone.
#[tokio::test(start_paused = true)]
async fn a_driver_that_ends_by_itself_is_no_error() {
    let done = Arc::new(Notify::new());
    let servers = answering(1);
    let discover = fixed([0]).layer(factory(&servers));
    let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let told = done.clone();
    tokio::spawn(async move {
        driver.await;
        told.notify_one();
    });
    assert!(balance.clone().oneshot(()).await.is_ok());
    assert!(balance.is_driven());
    drop(balance);
    done.notified().await;
}

/// What the layers above a source do themselves goes on while the source fails, or has panicked.
#[tokio::test(start_paused = true)]
async fn heartbeats_are_missed_in_time_whatever_the_source_does() {
    for panics in [false, true] {
        let client = answering(1)[0].client();
        let mut first = Some(Change::Insert(Endpoint::new(0), client));
        let source = tokio_stream::iter(std::iter::from_fn(move || {
            Some(match first.take() {
                Some(change) => Ok(change),
                None if panics => panic!("as told"),
                None => Err::<_, BoxError>("away".into()),
            })
        }));
        let heartbeats = Heartbeats::new(ms(60_000));
        let balance: Balance<_, _, (), _> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(heartbeats)
            .service(source);
        settle().await;
        let endpoint = balance.members()[0].endpoint().clone();
        sleep(ms(59_990)).await;
        assert_eq!(endpoint.status(), Status::Available);
        sleep(ms(20)).await;
        assert_eq!(endpoint.status(), Status::Unhealthy, "panics: {panics}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_drains_is_waited_for_though_discovery_has_ended() {
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()).wait_for_endpoints())
        .layer(fixed([(0, 0)]))
        .service(factory(&answering(1)));
    settle().await;
    let endpoint = balance.members()[0].endpoint().clone();
    let call = tokio::spawn(balance.oneshot(()));
    settle().await;
    assert!(!call.is_finished());
    endpoint.set_attributes(&Target::new(0));
    assert_eq!(call.await.unwrap().unwrap(), 0);
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Before, the second panic in one drop aborted the process.
#[tokio::test(start_paused = true)]
async fn services_that_panic_when_they_are_dropped_do_not_abort() {
    for leave_first in [true, false] {
        let (targets, rx) = watch::channel(weights(3));
        let balance: Balance<_, _, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(WatchLayer::new(rx))
            .service(|_: &Endpoint<usize>| {
                let bomb = Arc::new(Bomb);
                tower::service_fn(move |()| {
                    let is_alone = Arc::strong_count(&bomb) == 1;
                    async move { Ok::<_, Failed>(is_alone) }
                })
            });
        settle().await;
        assert_eq!(balance.members().len(), 3);
        if leave_first {
            targets.send_replace(Vec::new());
            settle().await;
            assert!(balance.members().is_empty());
        }
        drop(balance);
        settle().await;
        assert!(targets.is_closed());
    }
}

/// A policy whose table takes 50 ms to build.
#[derive(Clone)]
struct TakesLong(Arc<AtomicUsize>);

impl<A, S, Req> Policy<A, S, Req> for TakesLong {
    type Table = ();

    fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {
        self.0.fetch_add(1, Relaxed);
        let mut advance = std::pin::pin!(advance(ms(50)));
        let _ = advance
            .as_mut()
            .poll(&mut Context::from_waker(std::task::Waker::noop()));
    }

    fn pick(
        &self,
        (): &(),
        candidates: Candidates<'_, A, S>,
        _: &mut PickContext<'_, Req>,
    ) -> Choice {
        let first = candidates.iter().next();
        first.map_or(Choice::Nobody, |(position, _)| Choice::Member(position))
    }
}

/// Before, a trickle of changes kept the thread busy all the time.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_takes_long_is_followed_by_a_pause_of_four_times_as_long() {
    let servers = answering(3);
    let built = Arc::new(AtomicUsize::new(0));
    let client: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(TakesLong(built.clone())))
        .layer(fixed(0..3))
        .service(factory(&servers));
    settle().await;
    let endpoint = client.members()[1].endpoint().clone();
    let before = built.load(Relaxed);
    let start = Instant::now();
    while start.elapsed() < ms(5000) {
        endpoint.mark_unhealthy();
        sleep(ms(5)).await;
        endpoint.mark_healthy();
        sleep(ms(5)).await;
    }
    let snapshots = built.load(Relaxed) - before;
    assert!((15..=21).contains(&snapshots), "{snapshots} in 5 s");
    // The last change is published, too.
    sleep(ms(500)).await;
    assert!(client.members()[1].is_available());
}

/// A service like a `Buffer`, whose worker may die: then no `poll_ready` succeeds any more.
#[derive(Clone)]
struct Worker {
    name: usize,
    is_dead: Arc<AtomicBool>,
}

impl Service<()> for Worker {
    type Response = usize;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<usize, Failed>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        match self.is_dead.load(Relaxed) {
            true => Poll::Ready(Err(Failed)),
            false => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        let name = self.name;
        Box::pin(async move {
            sleep(ms(500)).await;
            Ok(name)
        })
    }
}

type Workers = Arc<Mutex<Vec<(usize, Arc<AtomicBool>, Instant)>>>;

/// Makes workers, and lists them with the time when they were made.
fn workers() -> (Workers, impl Fn(&Endpoint<usize>) -> Worker + Clone) {
    let made = Workers::default();
    let all = made.clone();
    let make = move |endpoint: &Endpoint<usize>| {
        let worker = Worker {
            name: *endpoint.address(),
            is_dead: Arc::default(),
        };
        let entry = (worker.name, worker.is_dead.clone(), Instant::now());
        all.lock().unwrap().push(entry);
        worker
    };
    (made, make)
}

fn made_of(workers: &Workers, name: usize) -> Vec<(Arc<AtomicBool>, Instant)> {
    let workers = workers.lock().unwrap();
    let all = workers.iter().filter(|(worker, ..)| *worker == name);
    all.map(|(_, dead, at)| (dead.clone(), *at)).collect()
}

/// Before, out until discovery replaced it.
#[tokio::test(start_paused = true)]
async fn a_service_that_failed_for_good_is_made_again_after_growing_pauses() {
    for with_outliers in [false, true] {
        let (made, make) = workers();
        let (_targets, rx) = watch::channel(vec![0, 1, 2]);
        let discover = each(PendingRequestsLayer::default()).layer(WatchLayer::new(rx).layer(make));
        let client = match with_outliers {
            true => {
                let discover = OutlierLayer::default().seeded(1).layer(discover);
                let layer = BalanceLayer::new(RoundRobin::seeded(1));
                tower::util::BoxCloneSyncService::new(layer.layer(discover))
            }
            false => {
                let layer = BalanceLayer::new(RoundRobin::seeded(1));
                tower::util::BoxCloneSyncService::new(layer.layer(discover))
            }
        };
        let send = |client: &tower::util::BoxCloneSyncService<(), usize, BoxError>| {
            tokio::spawn(client.clone().oneshot(()))
        };
        settle().await;
        // A request that is in flight on the old service ends there.
        let in_flight: Vec<_> = (0..3).map(|_| send(&client)).collect();
        settle().await;
        let mut pauses = Vec::new();
        for round in 1..6 {
            let dies = Instant::now();
            made_of(&made, 0).last().unwrap().0.store(true, Relaxed);
            while made_of(&made, 0).len() == round {
                send(&client);
                sleep(ms(10)).await;
                assert!(dies.elapsed() < Duration::from_secs(20), "not made again");
            }
            pauses.push(dies.elapsed().as_millis());
        }
        println!("{pauses:?}, with outlier detection: {with_outliers}");
        for answer in in_flight {
            answer.await.unwrap().unwrap();
        }
        // 100 ms until it is certain, and then 100, 200, 400 ms, and up to a quarter of that.
        assert!(pauses[0] >= 200, "{pauses:?}");
        assert!(pauses[4] >= 1700, "{pauses:?}");
        if !with_outliers {
            assert!(pauses[0] <= 260 && pauses[4] <= 2250, "{pauses:?}");
        }
        sleep(ms(100)).await;
        let answers: Vec<_> = (0..9).map(|_| send(&client)).collect();
        let mut of_it = 0;
        for answer in answers {
            of_it += usize::from(answer.await.unwrap().unwrap() == 0);
        }
        assert!(of_it >= 1, "it is used");
        assert_eq!((made_of(&made, 1).len(), made_of(&made, 2).len()), (1, 1));
    }
}

/// One failure says little, and a service that is only busy is not dead.
#[tokio::test(start_paused = true)]
async fn a_service_that_works_now_and_then_is_not_made_again() {
    let (made, make) = workers();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(0..2))
        .service(make);
    settle().await;
    let is_dead = made_of(&made, 0)[0].0.clone();
    for _ in 0..100 {
        is_dead.store(true, Relaxed);
        tokio::spawn(client.clone().oneshot(()));
        tokio::spawn(client.clone().oneshot(()));
        sleep(ms(90)).await;
        is_dead.store(false, Relaxed);
        sleep(ms(20)).await;
    }
    assert_eq!(made.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_discovery_of_ones_own_has_inserted_is_never_made_again() {
    let (made, make) = workers();
    let services: Vec<_> = (0..2).map(|name| make(&Endpoint::new(name))).collect();
    made_of(&made, 0)[0].0.store(true, Relaxed);
    let inserts = services.into_iter().enumerate();
    let inserts = inserts.map(|(name, service)| Ok::<_, Failed>(Change::Insert(name, service)));
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .service(from_discover(tokio_stream::iter(inserts)));
    settle().await;
    for _ in 0..200 {
        tokio::spawn(client.clone().oneshot(()));
        sleep(ms(10)).await;
    }
    assert_eq!(client.members().len(), 2);
    assert_eq!(made.lock().unwrap().len(), 2);
}

/// Before, each failure was a snapshot, which woke the caller, who asked the dead member again.
#[tokio::test(start_paused = true)]
async fn a_dead_member_costs_no_snapshots() {
    for has_factory in [false, true] {
        let (_made, make) = workers();
        let dead = make(&Endpoint::new(0));
        dead.is_dead.store(true, Relaxed);
        let built = Arc::new(AtomicUsize::new(0));
        let layer = BalanceLayer::new(TakesLong(built.clone()));
        let client = match has_factory {
            true => {
                let factory = move |_: &Endpoint<usize>| dead.clone();
                tower::util::BoxCloneSyncService::new(layer.layer(fixed([0]).layer(factory)))
            }
            false => {
                let inserts = [Ok::<_, Failed>(Change::Insert(0, dead))];
                let discover = from_discover(tokio_stream::iter(inserts));
                tower::util::BoxCloneSyncService::new(layer.layer(discover))
            }
        };
        settle().await;
        let before = built.load(Relaxed);
        for _ in 0..50 {
            client.clone().oneshot(()).await.unwrap_err();
            settle().await;
        }
        assert_eq!(built.load(Relaxed), before);
    }
}

/// No further list can come, and nobody of the last one has a service.
#[tokio::test(start_paused = true)]
async fn a_fixed_set_whose_factories_all_fail_is_not_waited_for() {
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)).wait_for_endpoints())
        .layer(each(PendingRequestsLayer::default()))
        .layer(fallible())
        .layer(fixed(0..3))
        .service(|_: &Endpoint<usize>| Err::<Worker, _>(Failed));
    let answer = timeout(ms(100), client.oneshot(())).await;
    let error = answer.expect("not waited for").unwrap_err();
    assert!(error.downcast_ref::<NoEndpoints>().unwrap().has_ended());
}
