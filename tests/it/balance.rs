//! The balancer's own rules.

use std::{rc::Rc, task::Poll, time::Duration};

use static_assertions::{assert_impl_all, assert_not_impl_any};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, advance, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    discover::Change,
    limit::{ConcurrencyLimit, ConcurrencyLimitLayer},
};
use tower_lb::*;

use crate::support::*;

type Tracked = PendingRequests<Client>;
assert_impl_all!(Balance<P2c, Tracked, ()>: Clone, Send, Sync, Service<()>);
// A request type that cannot be sent does not take that from the balancer.
assert_impl_all!(Balance<P2c, Tracked, Rc<()>>: Clone, Send, Sync, Service<Rc<()>>);
assert_not_impl_any!(Rc<()>: Send);

fn over<P>(
    servers: &[Server],
    layer: BalanceLayer<P, ()>,
    targets: watch::Receiver<Vec<(usize, u32)>>,
) -> Balance<P, Tracked, (), usize>
where
    P: Policy<usize, Tracked, ()> + Clone,
{
    ServiceBuilder::new()
        .layer(layer)
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(targets))
        .service(factory(servers))
}

fn endpoint(balance: &Balance<P2c, Tracked, (), usize>, address: usize) -> Endpoint<usize> {
    let members = balance.endpoints();
    let member = members
        .iter()
        .find(|member| *member.endpoint().address() == address);
    member.unwrap().endpoint().clone()
}

fn answering(n: usize) -> Vec<Server> {
    servers(&vec![Behaviour::Answer(ms(1)); n])
}

fn weights(n: usize) -> Vec<(usize, u32)> {
    (0..n).map(|i| (i, 1)).collect()
}

#[tokio::test(start_paused = true)]
async fn waits_until_discovery_has_reported() {
    let servers = answering(1);
    let (changes, rx) = mpsc::unbounded_channel::<Result<_, BoxError>>();
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(1)))
        .layer(each(PendingRequestsLayer::default()))
        .service(from_discover(UnboundedReceiverStream::new(rx)));
    let waiting = ServiceExt::<()>::ready(&mut balance);
    assert!(timeout(Duration::from_secs(3600), waiting).await.is_err());
    let mut waiting = tokio_test::task::spawn(poll_ready(&mut balance));
    tokio_test::assert_pending!(waiting.poll());
    changes
        .send(Ok(Change::Insert(0, servers[0].client())))
        .unwrap();
    settle().await;
    assert!(waiting.is_woken(), "the report wakes those who wait for it");
    drop(waiting);
    assert_eq!(balance.oneshot(()).await.unwrap(), 0);
}

async fn poll_ready<S: Service<()>>(service: &mut S) -> Result<(), S::Error> {
    std::future::poll_fn(|cx| service.poll_ready(cx)).await
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_fails_each_call_or_waits_if_told_so() {
    let servers = answering(1);
    let (targets, rx) = watch::channel(vec![]);
    let failing = over(&servers, BalanceLayer::new(p2c(2)), rx.clone());
    let waiting = over(&servers, BalanceLayer::new(p2c(2)).wait_for_endpoints(), rx);
    let error = failing.clone().oneshot(()).await.unwrap_err();
    assert_eq!(error.to_string(), "no endpoints");
    let request = tokio::spawn(waiting.oneshot(()));
    settle().await;
    assert!(!request.is_finished());
    targets.send_replace(weights(1));
    assert_eq!(request.await.unwrap().unwrap(), 0);
    assert_eq!(failing.oneshot(()).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_is_answered_only_while_it_lasts() {
    let servers = answering(1);
    let (targets, rx) = watch::channel(vec![]);
    let mut balance = over(&servers, BalanceLayer::new(p2c(3)), rx);
    ServiceExt::<()>::ready(&mut balance).await.unwrap();
    targets.send_replace(weights(1));
    settle().await;
    assert_eq!(
        balance.call(()).await.unwrap(),
        0,
        "the set is not empty any more"
    );
}

#[tokio::test(start_paused = true)]
async fn draining_endpoints_get_nothing_new() {
    let servers = answering(2);
    let (targets, rx) = watch::channel(vec![(0, 1), (1, 0)]);
    let balance = over(&servers, BalanceLayer::new(p2c(4)), rx);
    for _ in 0..100 {
        assert_eq!(balance.clone().oneshot(()).await.unwrap(), 0);
    }
    targets.send_replace(vec![(0, 0), (1, 0)]);
    settle().await;
    let error = balance.clone().oneshot(()).await.unwrap_err();
    assert_eq!(error.downcast_ref::<NoEndpoints>().unwrap().draining(), 2);
    // Not even in a panic.
    endpoint(&balance, 0).mark_unhealthy();
    settle().await;
    assert!(balance.oneshot(()).await.unwrap_err().is::<NoEndpoints>());
    assert_eq!(servers[1].calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn ejected_and_unhealthy_endpoints_are_left_and_come_back() {
    let servers = answering(2);
    let (_targets, rx) = watch::channel(weights(2));
    let balance = over(&servers, BalanceLayer::new(p2c(5)), rx);
    settle().await;
    let end = Instant::now() + Duration::from_secs(30);
    endpoint(&balance, 1).eject(end);
    settle().await;
    let calls = || servers.iter().map(Server::calls).collect::<Vec<_>>();
    for _ in 0..20 {
        balance.clone().oneshot(()).await.unwrap();
    }
    assert_eq!(calls(), [20, 0]);
    // It comes back by itself, with no traffic to notice it.
    sleep(Duration::from_secs(30)).await;
    settle().await;
    assert_eq!(endpoint(&balance, 1).status(), Status::Available);
    endpoint(&balance, 0).mark_unhealthy();
    settle().await;
    for _ in 0..20 {
        balance.clone().oneshot(()).await.unwrap();
    }
    assert_eq!(calls(), [20, 20]);
}

#[tokio::test(start_paused = true)]
async fn with_none_available_all_are_tried() {
    let servers = answering(2);
    let (_targets, rx) = watch::channel(weights(2));
    let balance = over(&servers, BalanceLayer::new(p2c(6)), rx);
    settle().await;
    endpoint(&balance, 0).mark_unhealthy();
    endpoint(&balance, 1).eject(Instant::now() + Duration::from_secs(30));
    settle().await;
    for _ in 0..100 {
        balance.clone().oneshot(()).await.unwrap();
    }
    assert!(servers.iter().all(|server| server.calls() > 20));
}

#[tokio::test(start_paused = true)]
async fn failing_closed_answers_unavailable() {
    let servers = answering(2);
    let (_targets, rx) = watch::channel(weights(2));
    let balance = over(&servers, BalanceLayer::new(p2c(7)).fail_closed(), rx);
    settle().await;
    (0..2).for_each(|address| endpoint(&balance, address).mark_unhealthy());
    settle().await;
    let error = balance.clone().oneshot(()).await.unwrap_err();
    let unavailable = error.downcast_ref::<Unavailable>().unwrap();
    assert_eq!((unavailable.available(), unavailable.endpoints()), (0, 2));
    endpoint(&balance, 1).mark_healthy();
    settle().await;
    assert_eq!(balance.oneshot(()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn below_the_panic_threshold_statuses_are_not_believed() {
    let servers = answering(4);
    let (_targets, rx) = watch::channel(weights(4));
    let balance = over(&servers, BalanceLayer::new(p2c(8)).panic_threshold(0.5), rx);
    settle().await;
    let requests = async || {
        let before: Vec<usize> = servers.iter().map(Server::calls).collect();
        for _ in 0..200 {
            balance.clone().oneshot(()).await.unwrap();
        }
        let used = servers
            .iter()
            .zip(before)
            .filter(|(server, before)| server.calls() > *before);
        used.count()
    };
    (0..2).for_each(|address| endpoint(&balance, address).mark_unhealthy());
    settle().await;
    assert_eq!(
        requests().await,
        2,
        "half of them available is no panic yet"
    );
    endpoint(&balance, 2).mark_unhealthy();
    settle().await;
    assert_eq!(requests().await, 4);
    endpoint(&balance, 2).mark_healthy();
    settle().await;
    assert_eq!(requests().await, 2);
}

#[tokio::test(start_paused = true)]
async fn failing_closed_below_the_panic_threshold_says_how_many_are_left() {
    let servers = answering(4);
    let (_targets, rx) = watch::channel(weights(4));
    let layer = BalanceLayer::new(p2c(20))
        .panic_threshold(0.5)
        .fail_closed();
    let balance = over(&servers, layer, rx);
    settle().await;
    (0..3).for_each(|address| endpoint(&balance, address).mark_unhealthy());
    settle().await;
    let error = balance.oneshot(()).await.unwrap_err();
    assert_eq!(error.to_string(), "1 of 4 endpoints are available, too few");
}

#[test]
#[should_panic(expected = "a panic threshold is a share in 0 to 1, not NaN")]
fn a_threshold_that_is_no_share_is_refused() {
    let _ = BalanceLayer::<P2c, ()>::new(P2c::default()).panic_threshold(f64::NAN);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_ready_is_passed_over() {
    let servers = answering(3);
    servers[0].allow(0);
    servers[1].fail_readiness(true);
    let (_targets, rx) = watch::channel(weights(3));
    let balance = over(&servers, BalanceLayer::new(p2c(9)), rx);
    for _ in 0..50 {
        assert_eq!(balance.clone().oneshot(()).await.unwrap(), 2);
    }
    // A failed `poll_ready` removes nobody.
    servers[1].fail_readiness(false);
    for _ in 0..50 {
        balance.clone().oneshot(()).await.unwrap();
    }
    assert!(servers[1].calls() > 0);
    assert_eq!(servers[0].calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn every_polled_endpoint_wakes_the_caller() {
    for first in 0..3 {
        let servers = answering(3);
        servers.iter().for_each(|server| server.allow(0));
        let (_targets, rx) = watch::channel(weights(3));
        let mut balance = over(&servers, BalanceLayer::new(p2c(10)), rx);
        settle().await;
        let mut ready = tokio_test::task::spawn(poll_ready(&mut balance));
        tokio_test::assert_pending!(ready.poll());
        servers[first].allow(1);
        assert!(ready.is_woken());
        tokio_test::assert_ready_ok!(ready.poll());
        drop(ready);
        assert_eq!(balance.call(()).await.unwrap(), first);
        let left: Vec<_> = servers.iter().map(Server::permits).collect();
        assert_eq!(left, [0; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_wakes_the_caller() {
    let servers = answering(2);
    servers[0].allow(0);
    let (targets, rx) = watch::channel(weights(1));
    let mut balance = over(&servers, BalanceLayer::new(p2c(11)), rx);
    settle().await;
    let mut ready = tokio_test::task::spawn(poll_ready(&mut balance));
    tokio_test::assert_pending!(ready.poll());
    targets.send_replace(weights(2));
    settle().await;
    assert!(ready.is_woken());
    tokio_test::assert_ready_ok!(ready.poll());
    drop(ready);
    assert_eq!(balance.call(()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_leaves_is_let_go_by_those_who_wait_for_it() {
    let servers = answering(2);
    servers.iter().for_each(|server| server.allow(0));
    let (targets, rx) = watch::channel(weights(2));
    let mut balance = over(&servers, BalanceLayer::new(p2c(12)), rx);
    settle().await;
    let mut ready = tokio_test::task::spawn(poll_ready(&mut balance));
    tokio_test::assert_pending!(ready.poll());
    targets.send_replace(vec![(1, 1)]);
    settle().await;
    tokio_test::assert_pending!(ready.poll());
    servers[0].allow(1);
    tokio_test::assert_pending!(ready.poll());
    servers[1].allow(1);
    tokio_test::assert_ready_ok!(ready.poll());
    drop(ready);
    assert_eq!(balance.call(()).await.unwrap(), 1);
    assert_eq!(servers[0].calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_gives_everything_back() {
    let servers = answering(2);
    servers[0].allow(1);
    servers[1].allow(1);
    let (_targets, rx) = watch::channel(weights(2));
    let balance = over(&servers, BalanceLayer::new(p2c(13)), rx);
    let permits = || servers.iter().map(Server::permits).sum::<usize>();
    // A handle with a reservation.
    let mut handle = balance.clone();
    ServiceExt::<()>::ready(&mut handle).await.unwrap();
    assert_eq!(permits(), 1);
    drop(handle);
    assert_eq!(permits(), 2);
    // A clone has no reservation of its own.
    let mut handle = balance.clone();
    ServiceExt::<()>::ready(&mut handle).await.unwrap();
    let clone = handle.clone();
    assert_eq!(permits(), 1);
    drop((handle, clone));
    assert_eq!(permits(), 2);
    // A response future, before and after its first poll.
    let mut handle = balance.clone();
    let mut answer =
        tokio_test::task::spawn(ServiceExt::<()>::ready(&mut handle).await.unwrap().call(()));
    let in_flight = || {
        balance
            .endpoints()
            .iter()
            .map(|m| m.service().in_flight())
            .sum::<usize>()
    };
    assert_eq!(in_flight(), 1);
    tokio_test::assert_pending!(answer.poll());
    drop(answer);
    assert_eq!(in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn when_every_poll_ready_fails_the_call_says_so() {
    let servers = answering(3);
    servers
        .iter()
        .for_each(|server| server.fail_readiness(true));
    let (_targets, rx) = watch::channel(weights(3));
    let mut balance = over(&servers, BalanceLayer::new(p2c(14)), rx);
    settle().await;
    assert!(matches!(
        poll_ready_once::<_, ()>(&mut balance).await,
        Poll::Ready(Ok(()))
    ));
    let error = balance.call(()).await.unwrap_err();
    let not_ready = error.downcast_ref::<NotReady>().unwrap();
    assert_eq!(not_ready.tried(), 3);
    assert!(std::error::Error::source(not_ready).unwrap().is::<Failed>());
    servers[1].fail_readiness(false);
    assert_eq!(balance.oneshot(()).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_removes_nobody() {
    let servers = servers(&[Behaviour::Fail(ms(1))]);
    let (_targets, rx) = watch::channel(weights(1));
    let balance = over(&servers, BalanceLayer::new(p2c(15)), rx);
    for _ in 0..3 {
        let error = balance.clone().oneshot(()).await.unwrap_err();
        assert!(error.is::<Failed>());
    }
    servers[0].behave(Behaviour::Answer(ms(1)));
    assert_eq!(balance.oneshot(()).await.unwrap(), 0);
}

/// A policy that needs the request: the request is the position.
#[derive(Clone, Debug)]
struct ByRequest;

impl<A, S> Policy<A, S, usize> for ByRequest {
    type Table = ();

    fn table(&self, _: &[Member<A, S>], _: Option<&()>) {}

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
            .map_or(Choice::None, Choice::Member)
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
    // Not ready: the next one in the request's own order; failed: likewise.
    servers[0].allow(0);
    servers[1].fail_readiness(true);
    assert_eq!(balance.clone().oneshot(0).await.unwrap(), 2);
    // None is ready: the response future waits, and wakes.
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

/// A policy that names places that are not there, or that may not be picked.
#[derive(Clone, Debug)]
struct Wrong(usize);

impl<A, S, Req> Policy<A, S, Req> for Wrong {
    type Table = ();

    fn table(&self, _: &[Member<A, S>], _: Option<&()>) {}

    fn pick(&self, (): &(), _: Candidates<'_, A, S>, _: &mut PickContext<'_, Req>) -> Choice {
        Choice::Member(self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_of_a_policy_is_put_right() {
    for wrong in [0, 1, 7, usize::MAX] {
        let servers = answering(3);
        servers[1].allow(0);
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(Wrong(wrong)))
            .layer(fixed([(0, 0), (1, 1), (2, 1)]))
            .service(factory(&servers));
        let answer = timeout(ms(1000), ServiceExt::<()>::oneshot(balance, ())).await;
        assert_eq!(
            answer.unwrap().unwrap(),
            2,
            "neither the draining nor the unready one"
        );
    }
}

#[derive(Clone, Debug)]
struct Never;

impl<A, S, Req> Policy<A, S, Req> for Never {
    type Table = ();

    fn table(&self, _: &[Member<A, S>], _: Option<&()>) {}

    fn pick(&self, (): &(), _: Candidates<'_, A, S>, cx: &mut PickContext<'_, Req>) -> Choice {
        cx.request().map_or(Choice::None, |_| Choice::NeedsRequest)
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

#[tokio::test(start_paused = true)]
async fn the_driver_can_be_kept_by_the_caller() {
    let servers = answering(1);
    let discover = fixed([0]).layer(factory(&servers));
    let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let driver = tokio::spawn(driver);
    assert_eq!(balance.clone().oneshot(()).await.unwrap(), 0);
    assert!(!driver.is_finished());
    drop(balance);
    driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_driver_dropped_before_the_first_report_leaves_nobody_waiting() {
    let servers = answering(1);
    let discover = fixed([0]).layer(factory(&servers));
    let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let request = tokio::spawn(balance.oneshot(()));
    settle().await;
    drop(driver);
    assert!(request.await.unwrap().unwrap_err().is::<NoEndpoints>());
}

#[tokio::test(start_paused = true)]
async fn layers_above_and_below_find_what_they_expect() {
    // Two endpoints, one request at a time each; a third is shed.
    let servers = answering(2);
    let shedding = ServiceBuilder::new()
        .load_shed()
        .layer(BalanceLayer::new(p2c(17)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(each(ConcurrencyLimitLayer::new(1)))
        .layer(fixed(0..2))
        .service(factory(&servers));
    settle().await;
    let requests: Vec<_> = (0..3)
        .map(|_| tokio::spawn(shedding.clone().oneshot(())))
        .collect();
    let mut shed = 0;
    for request in requests {
        shed += usize::from(request.await.unwrap().is_err());
    }
    assert_eq!(shed, 1);
    // Above: at most two under way in all, the third waits for its turn.
    let (_targets, rx) = watch::channel(weights(2));
    let limited = ConcurrencyLimit::new(over(&servers, BalanceLayer::new(p2c(18)), rx), 2);
    let start = Instant::now();
    let requests: Vec<_> = (0..3)
        .map(|_| tokio::spawn(limited.clone().oneshot(())))
        .collect();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed(), ms(2));
}

#[tokio::test(start_paused = true)]
async fn the_dashboard_sees_what_there_is() {
    let servers = servers(&[Behaviour::Hang; 2]);
    let (_targets, rx) = watch::channel(vec![(0, 1), (1, 3)]);
    let balance = over(&servers, BalanceLayer::new(p2c(19)), rx);
    settle().await;
    let born = Instant::now();
    advance(ms(5)).await;
    endpoint(&balance, 0).mark_unhealthy();
    settle().await;
    let mut handle = balance.clone();
    let _answer = handle.ready().await.unwrap().call(());
    let rows: Vec<_> = balance
        .endpoints()
        .iter()
        .map(|member| {
            let endpoint = member.endpoint();
            let since = endpoint.status_since() - born;
            (
                *endpoint.address(),
                member.weight(),
                endpoint.status(),
                member.service().in_flight(),
                member.load(),
                since,
            )
        })
        .collect();
    let expected = [
        (0, 1, Status::Unhealthy, 0, 0, ms(5)),
        (1, 3, Status::Available, 1, 1, ms(0)),
    ];
    assert_eq!(rows, expected);
}

#[tokio::test(start_paused = true)]
async fn handles_draw_from_streams_of_their_own() {
    let picks = async |seed: Option<u64>| {
        let servers = answering(16);
        let policy = seed.map_or_else(Random::default, Random::seeded);
        let balance: Balance<_, _, (), _> = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(fixed(0..16))
            .service(factory(&servers));
        settle().await;
        let mut picks = Vec::new();
        for mut handle in [balance.clone(), balance.clone(), balance] {
            let mut row = Vec::new();
            for _ in 0..20 {
                row.push(handle.ready().await.unwrap().call(()).await.unwrap());
            }
            picks.push(row);
        }
        picks
    };
    let seeded = picks(Some(7)).await;
    assert_eq!(seeded, picks(Some(7)).await, "a seed repeats the run");
    assert!(
        seeded[0] != seeded[1] && seeded[1] != seeded[2],
        "clones share no stream"
    );
    assert_ne!(
        picks(None).await,
        picks(None).await,
        "no seed, no repetition"
    );
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_has_ended_holds_nothing() {
    let servers = answering(1);
    let client = servers[0].client();
    let alive = client.alive();
    let (targets, rx) = watch::channel(vec![0]);
    let client = std::sync::Mutex::new(Some(client));
    let discover = WatchLayer::new(rx)
        .layer(move |_: &Endpoint<usize>| client.lock().unwrap().take().unwrap());
    let (balance, mut driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let mut polled = tokio_test::task::spawn(&mut driver);
    tokio_test::assert_pending!(polled.poll());
    drop(polled);
    assert_eq!(balance.endpoints().len(), 1);
    drop(balance);
    (&mut driver).await;
    assert_eq!(alive.strong_count(), 0);
    assert!(targets.is_closed());
    (&mut driver).await;
}

/// Handles go on two threads while the driver runs on a third: it ends, every time.
#[test]
fn the_driver_ends_whenever_the_last_handle_goes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    for _ in 0..500 {
        let servers = answering(2);
        let discover = fixed(0..2).layer(factory(&servers));
        let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
        let driver = runtime.spawn(driver);
        let clone = balance.clone();
        let thread = std::thread::spawn(move || drop(clone));
        drop(balance);
        thread.join().unwrap();
        let ended = async { timeout(Duration::from_secs(10), driver).await };
        runtime.block_on(ended).expect("the driver ends").unwrap();
    }
}
