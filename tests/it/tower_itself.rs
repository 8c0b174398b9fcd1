//! Shows the faults of `tower::balance` 0.5.3 for which `beyond_tower` has a test of a similar
//! name. A failure here means that tower has fixed the fault.

use std::{sync::Arc, task::Poll, time::Duration};

use tokio::{
    sync::{Semaphore, mpsc},
    time::{advance, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{
    Layer, Service, ServiceExt,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::{Change, ServiceList},
    limit::GlobalConcurrencyLimitLayer,
    load::{self, CompleteOnResponse, Constant, Load},
};

use crate::support::*;

async fn share_of_the_second(
    behaviours: &[Behaviour],
    per_second: u32,
    decay: u64,
    patience: Option<Duration>,
) -> f64 {
    let servers = servers(behaviours);
    let services: Vec<_> = servers
        .iter()
        .map(|server| ewma(server.client(), ms(30), Duration::from_secs(decay)))
        .collect();
    let client = Buffer::new(
        Balance::<_, ()>::new(ServiceList::new::<()>(services)),
        1024,
    );
    let (all, _) = send(client, &servers, per_second, 60, patience).await;
    let share = share(&all, 1);
    println!("{:.1} %", share * 100.0);
    share
}

fn ewma(client: Client, rtt: Duration, decay: Duration) -> load::PeakEwma<Client> {
    load::PeakEwma::new(
        client,
        rtt,
        decay.as_nanos() as f64,
        CompleteOnResponse::default(),
    )
}

#[tokio::test(start_paused = true)]
async fn a_choice_outlives_a_removal() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 3]);
    servers[0].allow(0);
    let (tx, rx) = mpsc::unbounded_channel::<Result<_, &str>>();
    for (i, load) in [0, 1, 10].into_iter().enumerate() {
        tx.send(Ok(Change::Insert(
            i,
            Constant::new(servers[i].client(), load),
        )))
        .unwrap();
    }
    let mut balance = Balance::<_, ()>::new(UnboundedReceiverStream::new(rx));
    // Of b and c, b is chosen; then a is ready and b leaves.
    balance.ready().await.unwrap();
    servers[0].allow(1);
    tx.send(Ok(Change::Remove(1))).unwrap();
    balance.ready().await.unwrap();
    assert_eq!(
        balance.call(()).await.unwrap(),
        2,
        "c, the most loaded, has taken b's position"
    );
}

#[tokio::test(start_paused = true)]
async fn one_poll_ready_reserves_on_every_endpoint() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 3]);
    let semaphore = Arc::new(Semaphore::new(3));
    let limit = GlobalConcurrencyLimitLayer::with_semaphore(semaphore.clone());
    let services: Vec<_> = servers
        .iter()
        .map(|s| Constant::new(limit.layer(s.client()), 0))
        .collect();
    let mut balance = Balance::<_, ()>::new(ServiceList::new::<()>(services));
    balance.ready().await.unwrap();
    assert_eq!(semaphore.available_permits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_removed_service_lives_on_without_traffic() {
    let client = Server::new(0, Behaviour::Answer(ms(1))).client();
    let alive = client.alive();
    let (tx, rx) = mpsc::unbounded_channel::<Result<_, &str>>();
    tx.send(Ok(Change::Insert(0, Constant::new(client, 0))))
        .unwrap();
    let mut balance = Balance::<_, ()>::new(UnboundedReceiverStream::new(rx));
    balance.ready().await.unwrap();
    tx.send(Ok(Change::Remove(0))).unwrap();
    sleep(ms(200)).await;
    assert_eq!(alive.strong_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hung_endpoint_draws_traffic() {
    let behaviours = [Behaviour::Answer(ms(20)), Behaviour::Hang];
    let share = share_of_the_second(&behaviours, 100, 1, None).await;
    assert!(share > 0.9);
}

#[tokio::test(start_paused = true)]
async fn failing_fast_looks_fast() {
    let fast = Behaviour::Fail(Duration::from_micros(200));
    assert!(share_of_the_second(&[Behaviour::Answer(ms(20)), fast], 100, 10, None).await > 0.5);
}

#[tokio::test(start_paused = true)]
async fn giving_up_early_makes_a_hung_endpoint_look_fast() {
    let behaviours = [Behaviour::Answer(ms(10)), Behaviour::Hang];
    assert!(share_of_the_second(&behaviours, 1000, 10, Some(ms(15))).await > 0.2);
}

#[tokio::test(start_paused = true)]
async fn reading_changes_the_estimate() {
    let mut after = [0.0; 3];
    for (after, reads) in after.iter_mut().zip([0, 1, 1000]) {
        let server = Server::new(0, Behaviour::Answer(ms(100)));
        let mut service = ewma(server.client(), ms(30), Duration::from_secs(1));
        ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(())
            .await
            .unwrap();
        for _ in 0..reads {
            advance(ms(950) / reads).await;
            std::hint::black_box(service.load());
        }
        advance(if reads == 0 { ms(950) } else { ms(0) }).await;
        server.behave(Behaviour::Answer(ms(50)));
        ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(())
            .await
            .unwrap();
        *after = millis(service.load());
    }
    println!("{after:?} ms");
    assert!((after[0] - 68.4).abs() < 0.1, "{after:?}");
    assert!((after[1] - 50.0).abs() < 0.1, "{after:?}");
    assert!((after[2] - 50.0).abs() < 0.1, "{after:?}");
}

/// Returns a cost in milliseconds. A cost shows its value only in its `Debug` output.
fn millis(cost: load::peak_ewma::Cost) -> f64 {
    let nanos = format!("{cost:?}");
    let nanos = nanos
        .strip_prefix("Cost(")
        .and_then(|rest| rest.strip_suffix(')'));
    nanos.unwrap().parse::<f64>().unwrap() / 1e6
}

/// After 763 s an estimate of decay 1 s is 0, and a hundred requests in flight do not raise it.
#[tokio::test(start_paused = true)]
async fn a_long_pause_leaves_nothing_to_compare() {
    let server = Server::new(0, Behaviour::Hang);
    let mut busy = ewma(server.client(), ms(30), Duration::from_secs(1));
    let idle = ewma(server.client(), ms(30), Duration::from_secs(1));
    advance(Duration::from_secs(763)).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(ServiceExt::<()>::ready(&mut busy).await.unwrap().call(()));
    }
    assert_eq!(busy.load(), idle.load());
}

/// A decay of 0 is refused in debug builds alone. In release builds the loads are not numbers and
/// can't be compared.
#[tokio::test(start_paused = true)]
async fn no_decay_is_no_number() {
    let client = Server::new(0, Behaviour::Answer(ms(1))).client();
    let load = move || ewma(client, ms(30), Duration::ZERO).load();
    let load = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
    assert!(load.is_err() || load.is_ok_and(|load| load.partial_cmp(&load).is_none()));
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_is_pending_for_ever() {
    let list = ServiceList::new::<()>(Vec::<Constant<Client, u8>>::new());
    let buffered = Buffer::new(Balance::<_, ()>::new(list), 8);
    assert!(
        timeout(Duration::from_secs(3600), buffered.oneshot(()))
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_the_end() {
    let server = Server::new(0, Behaviour::Answer(ms(1)));
    let changes = [
        Err("the registry is away"),
        Ok(Change::Insert(0, Constant::new(server.client(), 0))),
    ];
    let buffered = Buffer::new(Balance::<_, ()>::new(tokio_stream::iter(changes)), 8);
    assert!(buffered.clone().oneshot(()).await.is_err());
    assert!(buffered.oneshot(()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_error_keeps_the_count_while_the_future_is_held() {
    let server = Server::new(0, Behaviour::Fail(ms(1)));
    let mut service = load::PendingRequests::new(server.client(), CompleteOnResponse::default());
    let idle = service.load();
    let mut answer = tokio_test::task::spawn(
        ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(()),
    );
    tokio_test::assert_pending!(answer.poll());
    advance(ms(1)).await;
    assert_eq!(answer.poll(), Poll::Ready(Err(Failed)));
    assert!(service.load() > idle);
}

/// Loads of 1 / weight do not give shares of .99, .005 and .005. Two of three are drawn whatever
/// their weights, and the heaviest wins whenever it is drawn.
#[tokio::test(start_paused = true)]
async fn weights_as_loads_are_not_shares() {
    let servers = servers(&[Behaviour::Answer(Duration::ZERO); 3]);
    let services: Vec<_> = servers
        .iter()
        .zip([0.99, 0.005, 0.005])
        .map(|(server, weight)| Constant::new(server.client(), 1.0 / weight))
        .collect();
    let mut balance = Balance::<_, ()>::new(ServiceList::new::<()>(services));
    for _ in 0..40_000 {
        balance.ready().await.unwrap().call(()).await.unwrap();
    }
    for (server, share) in servers.iter().zip([0.665, 0.167, 0.168]) {
        let seen = server.calls() as f64 / 40_000.0;
        assert!((seen - share).abs() < 0.02, "{seen}, not {share}");
    }
}
