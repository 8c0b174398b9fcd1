//! Sources of discovery, and what the driver makes of them.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{
    BoxError, Layer, ServiceBuilder, ServiceExt,
    buffer::BufferLayer,
    discover::{Change, ServiceList},
    timeout::TimeoutLayer,
};
use tower_lb::*;

use crate::support::*;

/// Takes all changes that are ready: `+` or `-` with the address, or the error.
fn changes<D, S, E>(discover: &mut tokio_test::task::Spawn<D>) -> Vec<String>
where
    D: Stream<Item = Result<Change<Endpoint<usize>, S>, E>> + Unpin,
    E: std::fmt::Display,
{
    let mut changes = Vec::new();
    while let Poll::Ready(Some(item)) = discover.poll_next() {
        changes.push(match item {
            Ok(Change::Insert(endpoint, _)) => format!("+{endpoint}"),
            Ok(Change::Remove(endpoint)) => format!("-{endpoint}"),
            Err(error) => error.to_string(),
        });
        assert!(changes.len() < 10_000, "the stream never ends");
    }
    changes.sort();
    changes
}

#[tokio::test(start_paused = true)]
async fn a_list_is_diffed_by_address() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let (targets, rx) = watch::channel(vec![(1, 1), (2, 1), (1, 9)]);
    let factory = move |_: &Endpoint<usize>| count.fetch_add(1, Relaxed);
    let mut discover = tokio_test::task::spawn(WatchLayer::new(rx).layer(factory));
    assert_eq!(changes(&mut discover), ["+1", "+2"], "duplicates collapse");
    // Order is irrelevant.
    targets.send_replace(vec![(2, 1), (1, 1)]);
    assert!(discover.is_woken());
    assert_eq!(changes(&mut discover), [""; 0]);
    // A thousand lists sent between two polls are one difference, and one service is made.
    for i in 3..1003 {
        targets.send_replace(vec![(1, 1), (i, 1)]);
    }
    assert_eq!(changes(&mut discover), ["+1002", "-2"]);
    assert_eq!(made.load(Relaxed), 3);
    // A list that changes and changes back between two polls is no difference.
    targets.send_replace(vec![]);
    targets.send_replace(vec![(1, 1), (1002, 1)]);
    assert_eq!(changes(&mut discover), [""; 0]);
    // The sender is dropped: the last list is still read. Then the stream ends, once nobody has the
    // endpoints any more, whose services it may have to make again.
    targets.send_replace(vec![(1, 1)]);
    drop(targets);
    assert_eq!(changes(&mut discover), ["-1002"]);
    assert!(matches!(discover.poll_next(), Poll::Ready(None)));
    let (targets, rx) = watch::channel(vec![1]);
    let mut discover = tokio_test::task::spawn(WatchLayer::new(rx).layer(|_: &Endpoint<usize>| ()));
    targets.send_replace(vec![]);
    drop(targets);
    assert_eq!(changes(&mut discover), ["+1", "-1"]);
    assert!(matches!(discover.poll_next(), Poll::Ready(None)));
}

#[tokio::test(start_paused = true)]
async fn attributes_are_set_in_place() {
    let first = Target::new(1).weight(5).zone("a").priority(1);
    let (targets, rx) = watch::channel(vec![first.clone(), Target::new(1).weight(9)]);
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let factory = move |endpoint: &Endpoint<usize>| *keep.lock().unwrap() = Some(endpoint.clone());
    let mut discover = tokio_test::task::spawn(WatchLayer::new(rx).layer(factory));
    changes(&mut discover);
    let endpoint = kept.lock().unwrap().take().unwrap();
    assert_eq!(endpoint.weight(), 5, "the first of two counts");
    assert_eq!(
        (endpoint.zone().as_deref(), endpoint.priority()),
        (Some("a"), 1)
    );
    targets.send_replace(vec![first.weight(7).zone("b").priority(0)]);
    assert_eq!(changes(&mut discover), [""; 0]);
    assert_eq!(endpoint.weight(), 7);
    assert_eq!(
        (endpoint.zone().as_deref(), endpoint.priority()),
        (Some("b"), 0)
    );
}

#[tokio::test(start_paused = true)]
async fn an_empty_first_list_is_a_report() {
    let (_targets, rx) = watch::channel(Vec::<usize>::new());
    let mut discover = tokio_test::task::spawn(WatchLayer::new(rx).layer(|_: &Endpoint<usize>| ()));
    assert_eq!(changes(&mut discover), ["no endpoints"]);
    assert_eq!(changes(&mut discover), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn addresses_that_stay_keep_service_load_and_status() {
    let servers = servers(&[Behaviour::Hang; 3]);
    let (targets, rx) = watch::channel(vec![(0, 1), (1, 1)]);
    let balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    let mut answers = Vec::new();
    for _ in 0..10 {
        let mut handle = balance.clone();
        answers.push(start(&mut handle).await);
    }
    let member = |address: usize| {
        let members = balance.members();
        members
            .into_iter()
            .find(|member| *member.endpoint().address() == address)
    };
    member(1).unwrap().endpoint().mark_unhealthy();
    settle().await;
    targets.send_replace(vec![(2, 1), (1, 4), (0, 2)]);
    settle().await;
    assert_eq!(balance.members().len(), 3);
    for (address, weight, status) in [(0, 2, Status::Available), (1, 4, Status::Unhealthy)] {
        let member = member(address).unwrap();
        assert_eq!(member.load(), 5);
        assert_eq!(
            (member.weight(), member.endpoint().status()),
            (weight, status)
        );
    }
    assert_eq!(member(2).unwrap().load(), 0);
    // An endpoint that leaves and returns is a new one, without the requests in flight of the old
    // one.
    targets.send_replace(vec![(2, 1), (1, 4)]);
    settle().await;
    assert!(member(0).is_none());
    targets.send_replace(vec![(2, 1), (1, 4), (0, 2)]);
    settle().await;
    assert_eq!(member(0).unwrap().load(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_outlive_the_removal() {
    let servers = servers(&[Behaviour::Answer(ms(100)); 2]);
    let (targets, rx) = watch::channel(vec![0]);
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(2)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    let answer = tokio::spawn(balance.clone().oneshot(()));
    settle().await;
    targets.send_replace(vec![1]);
    settle().await;
    assert_eq!(balance.oneshot(()).await.unwrap(), 1);
    assert_eq!(answer.await.unwrap().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_insertion_under_a_known_address_replaces_its_service() {
    let old = Server::new(10, Behaviour::Answer(ms(1)));
    let new = Server::new(20, Behaviour::Answer(ms(1)));
    let (tx, rx) = mpsc::unbounded_channel::<Result<_, BoxError>>();
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(UnboundedReceiverStream::new(rx)));
    tx.send(Ok(Change::Insert("a", old.client()))).unwrap();
    ServiceExt::<()>::ready(&mut balance).await.unwrap();
    tx.send(Ok(Change::Remove("never seen"))).unwrap();
    tx.send(Ok(Change::Insert("a", new.client()))).unwrap();
    settle().await;
    assert_eq!(
        tower::Service::<()>::call(&mut balance, ()).await.unwrap(),
        20,
        "not even a reservation of the old one"
    );
    assert_eq!(balance.members().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn towers_service_list_is_discovery() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 3]);
    let list = ServiceList::new::<()>(servers.iter().map(Server::client).collect::<Vec<_>>());
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(list));
    for _ in 0..3 {
        ServiceExt::<()>::oneshot(balance.clone(), ())
            .await
            .unwrap();
    }
    assert!(servers.iter().all(|server| server.calls() == 1));
    let empty = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(ServiceList::new::<()>(Vec::<Client>::new())));
    assert!(
        ServiceExt::<()>::oneshot(empty, ())
            .await
            .unwrap_err()
            .is::<NoEndpoints>()
    );
}

/// Yields the given items, last first, and panics if it is polled after its end.
struct Once<T>(Option<Vec<T>>);

impl<T: Unpin> Stream for Once<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        let items = &mut self.get_mut().0;
        let next = items.as_mut().expect("polled after its end").pop();
        if next.is_none() {
            *items = None;
        }
        Poll::Ready(next)
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_ended_is_not_polled_again() {
    let server = Server::new(0, Behaviour::Answer(ms(1)));
    let changes = vec![
        Err(BoxError::from("away")),
        Ok(Change::Insert(0, server.client())),
    ];
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(Once(Some(changes))));
    for _ in 0..3 {
        assert_eq!(
            ServiceExt::<()>::oneshot(balance.clone(), ())
                .await
                .unwrap(),
            0
        );
        balance.members()[0]
            .endpoint()
            .eject(tokio::time::Instant::now() + ms(5));
        tokio::time::sleep(ms(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_what_callers_of_an_empty_set_see() {
    let (tx, rx) = mpsc::unbounded_channel::<Result<Change<usize, Client>, BoxError>>();
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(UnboundedReceiverStream::new(rx)));
    tx.send(Err("no such name".into())).unwrap();
    let error = ServiceExt::<()>::oneshot(balance, ()).await.unwrap_err();
    let source = std::error::Error::source(error.downcast_ref::<NoEndpoints>().unwrap());
    assert_eq!(source.unwrap().to_string(), "no such name");
}

/// Ends the stream if the driver never yields, so that the test fails rather than hangs.
const MOST_POLLS: usize = 50_000_000;

/// Always has another change: endpoint 0 joins once, then endpoint 1 joins and leaves without end.
struct Restless {
    server: Server,
    polls: Arc<AtomicUsize>,
}

impl Stream for Restless {
    type Item = Result<Change<usize, Client>, BoxError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = match self.polls.fetch_add(1, Relaxed) {
            MOST_POLLS.. => return Poll::Ready(None),
            0 => Change::Insert(0, self.server.client()),
            odd if odd % 2 == 1 => Change::Insert(1, self.server.client()),
            _ => Change::Remove(1),
        };
        Poll::Ready(Some(Ok(change)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_more_starves_nobody() {
    let server = Server::new(7, Behaviour::Answer(ms(1)));
    let polls = Arc::new(AtomicUsize::new(0));
    let restless = Restless {
        server,
        polls: polls.clone(),
    };
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(restless));
    let answer = ServiceExt::<()>::oneshot(balance.clone(), ());
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    assert!(
        polls.load(Relaxed) < MOST_POLLS,
        "other tasks have their turn"
    );
    assert!(
        !balance.members().is_empty(),
        "and what it said is published"
    );
    drop((balance, answer));
    settle().await;
    let last = polls.load(Relaxed);
    settle().await;
    assert_eq!(
        polls.load(Relaxed),
        last,
        "the driver ends with the last handle, busy or not"
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_clone_goes_through_a_buffer() {
    /// Not `Clone`.
    struct Alone(Client);

    impl tower::Service<()> for Alone {
        type Response = usize;
        type Error = Failed;
        type Future = <Client as tower::Service<()>>::Future;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
            tower::Service::<()>::poll_ready(&mut self.0, cx)
        }

        fn call(&mut self, (): ()) -> Self::Future {
            self.0.call(())
        }
    }

    let servers = servers(&[Behaviour::Answer(ms(1)); 2]);
    let make = factory(&servers);
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(3)))
        .layer(each(
            ServiceBuilder::new()
                .layer(PendingRequestsLayer::default())
                .layer(TimeoutLayer::new(ms(10)))
                .layer(BufferLayer::new(4))
                .into_inner(),
        ))
        .layer(fixed(0..2))
        .service(move |endpoint: &Endpoint<usize>| Alone(make(endpoint)));
    balance.clone().oneshot(()).await.unwrap();
    servers
        .iter()
        .for_each(|server| server.behave(Behaviour::Hang));
    let error = balance.oneshot(()).await.unwrap_err();
    assert!(error.is::<tower::timeout::error::Elapsed>(), "{error}");
}

/// Yields the given changes, last first, and then errors without end.
struct Failing(Vec<Change<usize, Client>>);

impl Stream for Failing {
    type Item = Result<Change<usize, Client>, BoxError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = self.get_mut().0.pop();
        Poll::Ready(Some(change.ok_or_else(|| "away".into())))
    }
}

#[tokio::test(start_paused = true)]
async fn endless_errors_hide_neither_changes_nor_statuses() {
    let servers = servers(&[Behaviour::Answer(ms(0)); 2]);
    let inserts = servers.iter().enumerate();
    let inserts = inserts.map(|(i, server)| Change::Insert(i, server.client()));
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(Failing(inserts.collect())));
    ServiceExt::<()>::oneshot(balance.clone(), ())
        .await
        .unwrap();
    balance.members()[0].endpoint().mark_unhealthy();
    let picked = balance.members()[1].endpoint().clone();
    settle().await;
    for _ in 0..4 {
        let answer = ServiceExt::<()>::oneshot(balance.clone(), ())
            .await
            .unwrap();
        assert_eq!(answer, *picked.address());
    }
    let nothing = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(Failing(vec![])));
    let error = ServiceExt::<()>::oneshot(nothing, ()).await.unwrap_err();
    assert!(error.is::<NoEndpoints>());
}

/// Removes an endpoint that never joined, without end.
struct Removing;

impl Stream for Removing {
    type Item = Result<Change<usize, Client>, BoxError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(Ok(Change::Remove(7))))
    }
}

#[tokio::test(start_paused = true)]
async fn endless_removals_of_nobody_starve_nobody() {
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(Removing));
    let error = ServiceExt::<()>::oneshot(balance, ()).await.unwrap_err();
    assert!(error.is::<NoEndpoints>());
}
