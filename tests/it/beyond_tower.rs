//! Faults of `tower::balance` 0.5.3 that this crate must not have. Each comment gives tower's
//! result; `tower_itself` shows it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, advance, sleep},
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, buffer::Buffer, limit::GlobalConcurrencyLimitLayer,
};
use tower_lb::*;

use crate::support::*;

fn ewma(
    servers: &[Server],
    layer: PeakEwmaLayer,
    seed: u64,
) -> impl Service<(), Response = usize, Error = tower::BoxError, Future: Send> + Clone + Send + use<>
{
    ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(seed)))
        .layer(each(layer))
        .layer(fixed(0..servers.len()))
        .service(factory(servers))
}

/// tower: the request goes to c, the most loaded of the three.
#[tokio::test(start_paused = true)]
async fn a_choice_outlives_no_removal() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 3]);
    let (targets, rx) = watch::channel(vec![1, 2]);
    let make = factory(&servers);
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(1)))
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint<usize>| {
            Constant::new(make(endpoint), [0, 1, 10][*endpoint.address()])
        });
    // Of b and c, b is chosen; then a joins and b leaves.
    client.ready().await.unwrap();
    targets.send_replace(vec![0, 2]);
    settle().await;
    assert_eq!(
        client.call(()).await.unwrap(),
        0,
        "a is the least loaded of those left"
    );
    assert_eq!(servers[1].calls() + servers[2].calls(), 0);
}

/// tower: 3 permits are taken.
#[tokio::test(start_paused = true)]
async fn one_poll_ready_reserves_on_one_endpoint() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 3]);
    let semaphore = Arc::new(Semaphore::new(3));
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(2)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(each(GlobalConcurrencyLimitLayer::with_semaphore(
            semaphore.clone(),
        )))
        .layer(fixed(0..3))
        .service(factory(&servers));
    ServiceExt::<()>::ready(&mut client).await.unwrap();
    assert_eq!(semaphore.available_permits(), 2);
    ServiceExt::<()>::ready(&mut client).await.unwrap();
    assert_eq!(semaphore.available_permits(), 2, "ready stays ready");
    drop(client);
    settle().await;
    assert_eq!(
        semaphore.available_permits(),
        3,
        "a dropped handle gives its permit back"
    );
}

/// tower: the removed service is alive until the next request.
#[tokio::test(start_paused = true)]
async fn a_removed_service_is_dropped_without_traffic() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 2]);
    let clients: Vec<Client> = servers.iter().map(Server::client).collect();
    let alive: Vec<_> = clients.iter().map(Client::alive).collect();
    let (targets, rx) = watch::channel(vec![0, 1]);
    let clients = std::sync::Mutex::new(clients.into_iter().map(Some).collect::<Vec<_>>());
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(3)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint<usize>| {
            clients.lock().unwrap()[*endpoint.address()].take().unwrap()
        });
    let mut used = client.clone();
    for _ in 0..10 {
        used.ready().await.unwrap().call(()).await.unwrap();
    }
    let cloned = used.clone();
    targets.send_replace(vec![1]);
    sleep(ms(200)).await;
    assert_eq!(alive[0].strong_count(), 0, "the removed service is dropped");
    assert!(alive[1].strong_count() > 0);
    drop((client, used, cloned));
    settle().await;
    assert_eq!(
        alive[1].strong_count(),
        0,
        "the last handle takes all with it"
    );
    assert!(targets.is_closed(), "discovery, too");
}

/// tower: up to 97 % go to the endpoint that hangs.
#[tokio::test(start_paused = true)]
async fn a_hung_endpoint_draws_no_traffic() {
    for n in [2, 10] {
        for decay in [1, 10] {
            for patience in [None, Some(30), Some(5), Some(1)] {
                let case = format!("n = {n}, decay {decay} s, patience {patience:?} s");
                let patience = patience.map(Duration::from_secs);
                let mut behaviours = vec![Behaviour::Answer(ms(20)); n];
                behaviours[1] = Behaviour::Hang;
                let servers = servers(&behaviours);
                let layer = PeakEwmaLayer::default().decay(Duration::from_secs(decay));
                let client = ewma(&servers, layer, 4);
                let (all, late) = send(client.clone(), &servers, 100, 120, patience).await;
                let (all, late) = (share(&all, 1), share(&late, 1));
                println!(
                    "{case}: {:.2} % of all, {:.2} % of the last 10 s",
                    all * 100.0,
                    late * 100.0
                );
                assert!(all <= 0.01, "{case}: {all} went to the hung endpoint");
                assert!(
                    late <= 0.01,
                    "{case}: {late} of the last 10 s went to the hung endpoint"
                );
                // The endpoint answers again. The requests stuck in it end when their callers give
                // up. Within ten seconds after that, it must have been used.
                servers[1].behave(Behaviour::Answer(ms(20)));
                let Some(patience) = patience else { continue };
                let seconds = patience.as_secs() + 10;
                let (again, _) = send(client, &servers, 100, seconds, Some(patience)).await;
                assert!(again[1] > 0, "{case}: not used again");
            }
        }
    }
}

/// An endpoint that answers its stuck requests late is used again.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_answers_late_is_used_again() {
    for (n, decay) in [(2, 1), (2, 10), (10, 1), (10, 10)] {
        let case = format!("n = {n}, decay {decay} s");
        let mut behaviours = vec![Behaviour::Answer(ms(20)); n];
        behaviours[1] = Behaviour::Answer(Duration::from_secs(60));
        let servers = servers(&behaviours);
        let layer = PeakEwmaLayer::default().decay(Duration::from_secs(decay));
        let client = ewma(&servers, layer, 5);
        let late = servers[1].clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(30)).await;
            late.behave(Behaviour::Answer(ms(20)));
        });
        // The requests of the first moments are answered after a minute.
        let (first, _) = send(client.clone(), &servers, 100, 61, None).await;
        assert!((1..20).contains(&first[1]), "{case}: {first:?}");
        let (again, _) = send(client.clone(), &servers, 100, 9, None).await;
        assert!(
            again[1] > 0,
            "{case}: not used within 10 s of its last late answer"
        );
        let (_, late) = send(client, &servers, 100, 20, None).await;
        let share_of_late = if n == 2 { 0.2 } else { 0.01 };
        assert!(
            share(&late, 1) > share_of_late,
            "{case}: not on its way back after that: {late:?}"
        );
    }
}

/// tower: 67 % go to the endpoint that fails.
#[tokio::test(start_paused = true)]
async fn failing_fast_is_not_fast() {
    let servers = servers(&[
        Behaviour::Answer(ms(20)),
        Behaviour::Fail(Duration::from_micros(200)),
    ]);
    let client = ewma(&servers, PeakEwmaLayer::default(), 6);
    let (all, _) = send(client, &servers, 100, 120, None).await;
    let share = share(&all, 1);
    println!("{:.2} %", share * 100.0);
    assert!(share <= 0.05, "{share} went to the endpoint that fails");
}

/// tower: 33 % go to the endpoint that hangs.
#[tokio::test(start_paused = true)]
async fn giving_up_early_does_not_make_a_hung_endpoint_look_fast() {
    for (rate, patience) in [
        (100, 15),
        (100, 50),
        (100, 200),
        (1000, 15),
        (1000, 50),
        (1000, 200),
    ] {
        let servers = servers(&[Behaviour::Answer(ms(10)), Behaviour::Hang]);
        let client = ewma(&servers, PeakEwmaLayer::default(), 7);
        let (all, _) = send(client, &servers, rate, 120, Some(ms(patience))).await;
        let share = share(&all, 1);
        let case = format!("{rate} a second, patience {patience} ms");
        println!("{case}: {:.2} %", share * 100.0);
        assert!(share <= 0.05, "{share} went to the hung endpoint at {case}");
    }
}

/// tower: 68.4 ms become 50.0 ms.
#[tokio::test(start_paused = true)]
async fn reading_changes_nothing() {
    let mut after = [Duration::ZERO; 3];
    for (after, reads) in after.iter_mut().zip([0, 1, 1000]) {
        let servers = servers(&[Behaviour::Answer(ms(100))]);
        let layer = PeakEwmaLayer::default().decay(Duration::from_secs(1));
        let mut service = layer.layer(servers[0].client());
        ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(())
            .await
            .unwrap();
        for _ in 0..reads {
            advance(ms(950) / reads).await;
            std::hint::black_box(service.load().cost());
        }
        advance(if reads == 0 { ms(950) } else { ms(0) }).await;
        servers[0].behave(Behaviour::Answer(ms(50)));
        ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(())
            .await
            .unwrap();
        *after = service.estimate();
    }
    // 100 ms a second ago, 50 ms now: 50 + 50 / e.
    let micros = after.map(|estimate: Duration| estimate.as_micros());
    assert_eq!(micros, [68_393; 3]);
}

/// tower: not a number at decay 0; after the pause all loads are 0, whatever is in flight.
#[tokio::test(start_paused = true)]
async fn odd_clocks_and_settings_stay_finite_and_even() {
    for decay in [
        Duration::from_nanos(1),
        Duration::from_secs(10),
        Duration::MAX,
    ] {
        let servers = servers(&[Behaviour::Answer(Duration::ZERO); 4]);
        let layer = PeakEwmaLayer::default().decay(decay);
        let client = ServiceBuilder::new()
            .layer(BalanceLayer::new(p2c(8)))
            .layer(each(layer))
            .layer(fixed(0..4))
            .service(factory(&servers));
        let check = |what: &str| {
            for member in client.members() {
                let cost = member.load().cost();
                assert!(
                    cost.is_finite() && cost >= 0.0,
                    "{what}: {cost} at decay {decay:?}"
                );
            }
        };
        // No time passes between these requests.
        for _ in 0..400 {
            client.clone().oneshot(()).await.unwrap();
        }
        check("standing still");
        advance(Duration::from_secs(763)).await;
        check("after a pause");
        servers
            .iter()
            .for_each(|server| server.behave(Behaviour::Hang));
        let before: Vec<usize> = servers.iter().map(Server::calls).collect();
        let mut held = Vec::new();
        for _ in 0..400 {
            let mut handle = client.clone();
            held.push(handle.ready().await.unwrap().call(()));
        }
        check("in flight");
        for (server, before) in servers.iter().zip(before) {
            let calls = server.calls() - before;
            assert!(
                (90..=110).contains(&calls),
                "{calls} of 400 on one of four at decay {decay:?}"
            );
        }
    }
}

/// tower: .665/.167/.168, with loads divided by weights.
#[tokio::test(start_paused = true)]
async fn weights_give_the_shares_that_they_ask_for() {
    let servers = servers(&[Behaviour::Answer(Duration::ZERO); 3]);
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(9)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed([(0, 990), (1, 5), (2, 5)]))
        .service(factory(&servers));
    let requests = 100_000;
    for _ in 0..requests {
        client.ready().await.unwrap().call(()).await.unwrap();
    }
    for (server, asked) in servers.iter().zip([0.99, 0.005, 0.005]) {
        let share = server.calls() as f64 / f64::from(requests);
        assert!(
            (share - asked).abs() < 0.01 * asked.max(0.1),
            "{share}, not {asked}"
        );
    }
}

/// tower: pending for ever.
#[tokio::test(start_paused = true)]
async fn an_empty_set_answers_at_once() {
    let (_targets, rx) = watch::channel(Vec::<usize>::new());
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(10)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&[]));
    sleep(Duration::from_secs(3600)).await;
    let buffered = Buffer::new(client, 8);
    let start = Instant::now();
    let error = ServiceExt::<()>::oneshot(buffered, ()).await.unwrap_err();
    assert!(error.is::<NoEndpoints>(), "{error}");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// tower: dead for ever.
#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_survived() {
    let servers = servers(&[Behaviour::Answer(ms(1)); 2]);
    let changes = [
        Ok(Change::Insert(0, servers[0].client())),
        Err("the registry is away"),
        Ok(Change::Insert(1, servers[1].client())),
        Ok(Change::Remove(0)),
    ];
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(p2c(11)))
        .layer(each(PendingRequestsLayer::default()))
        .service(from_discover(tokio_stream::iter(changes)));
    // The error is followed by a pause.
    sleep(ms(20)).await;
    assert_eq!(client.oneshot(()).await.unwrap(), 1);
}

/// tower: the count stays 1.
#[tokio::test(start_paused = true)]
async fn an_error_gives_the_count_back_while_the_future_is_held() {
    let servers = servers(&[Behaviour::Fail(ms(1))]);
    let mut service = PendingRequests::new(servers[0].client());
    let mut answer = tokio_test::task::spawn(
        ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(()),
    );
    assert_eq!(service.in_flight(), 1);
    tokio_test::assert_pending!(answer.poll());
    advance(ms(1)).await;
    assert_eq!(tokio_test::assert_ready!(answer.poll()), Err(Failed));
    assert_eq!(service.in_flight(), 0, "while the future is still there");
    drop(answer);
    assert_eq!(service.in_flight(), 0);
}

use tower::discover::Change;
