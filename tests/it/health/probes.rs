//! How an ejected endpoint comes back.

use tokio_test::{assert_pending, assert_ready_ok, task};

use super::*;

/// Returns a service whose first ejection has just ended, and its server.
async fn on_trial(layer: OutlierLayer) -> (Watched, Server, impl Sized) {
    let servers = servers(&[FAIL, ANSWER]);
    let discover = layer.layer(fixed(0..2).layer(factory(&servers)));
    let mut discover = Box::pin(discover);
    let mut services: Vec<Watched> = Vec::new();
    while services.len() < 2 {
        match std::future::poll_fn(|cx| Discover::poll_discover(discover.as_mut(), cx)).await {
            Some(Ok(Change::Insert(_, service))) => services.push(service),
            _ => panic!("two are inserted"),
        }
    }
    let mut service = services.swap_remove(0);
    for _ in 0..5 {
        let failed = ServiceExt::<()>::ready(&mut service)
            .await
            .unwrap()
            .call(())
            .await;
        assert!(failed.is_err());
    }
    advance(Duration::from_secs(30)).await;
    (service, servers[0].clone(), (discover, services))
}

fn ready<S: Service<()>>(service: &mut S) -> std::task::Poll<Result<(), S::Error>> {
    task::spawn(std::future::poll_fn(|cx| service.poll_ready(cx))).poll()
}

/// A caller that waits for a service which is not ready.
fn waiting<S: Service<()>>(
    service: &mut S,
) -> task::Spawn<impl Future<Output = Result<(), S::Error>>> {
    let mut waits = task::spawn(std::future::poll_fn(|cx| service.poll_ready(cx)));
    assert!(waits.poll().is_pending());
    waits
}

#[tokio::test(start_paused = true)]
async fn one_request_goes_through_and_its_success_readmits() {
    let (mut first, server, _fleet) = on_trial(OutlierLayer::default()).await;
    server.behave(Behaviour::Answer(ms(10)));
    let mut second = first.clone();
    assert_ready_ok!(ready(&mut first));
    let mut waits = waiting(&mut second);
    let probe = first.call(());
    assert_pending!(waits.poll());
    probe.await.unwrap();
    assert!(waits.is_woken());
    assert_ready_ok!(waits.poll());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_gives_its_slot_back() {
    let (first, server, _fleet) = on_trial(OutlierLayer::default()).await;
    server.behave(Behaviour::Hang);
    let mut second = first.clone();
    // 1. Reserved, but never called.
    let mut reserved = first.clone();
    assert_ready_ok!(ready(&mut reserved));
    assert_pending!(ready(&mut second));
    drop(reserved);
    // 2. Called and dropped: before its first poll, and after it.
    let mut called = first.clone();
    assert_ready_ok!(ready(&mut called));
    drop(called.call(()));
    assert_ready_ok!(ready(&mut called));
    let mut answer = task::spawn(called.call(()));
    assert_pending!(answer.poll());
    assert_pending!(ready(&mut second));
    drop(answer);
    assert_ready_ok!(ready(&mut second));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_probe_goes_on_when_the_endpoint_is_no_longer_watched() {
    for is_sent in [false, true] {
        let (mut first, server, fleet) = on_trial(OutlierLayer::default()).await;
        server.behave(Behaviour::Answer(ms(10)));
        let mut second = first.clone();
        assert_ready_ok!(ready(&mut first));
        let mut waits = waiting(&mut second);
        let probe = if is_sent {
            let probe = first.call(());
            drop(fleet);
            probe
        } else {
            drop(fleet);
            first.call(())
        };
        assert!(waits.is_woken());
        assert_ready_ok!(waits.poll());
        probe.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn answers_to_requests_from_before_decide_nothing() {
    let servers = servers(&[Behaviour::Fail(ms(100)), ANSWER]);
    let mut balance = round_robin(&servers, OutlierLayer::default());
    settle().await;
    // Server 0 has ten requests in flight. Five fail after 100 ms, the others after 40 s.
    let mut late = Vec::new();
    for i in 0..20 {
        servers[0].behave(match i / 10 {
            0 => Behaviour::Fail(ms(100)),
            _ => Behaviour::Fail(Duration::from_secs(40)),
        });
        late.push(tokio::spawn(start(&mut balance).await));
    }
    tokio::time::sleep(ms(100)).await;
    settle().await;
    assert!(is_ejected(&statuses(&balance)[0]));
    // Half-open at 30.1 s. The old requests fail at 40 s, while no probe is in flight.
    tokio::time::sleep(Duration::from_secs(41)).await;
    settle().await;
    assert_eq!(statuses(&balance)[0], Status::Available);
    servers[0].behave(ANSWER);
    calls(&mut balance, 10).await;
    assert_eq!(statuses(&balance)[0], Status::Available);
}

#[tokio::test(start_paused = true)]
async fn several_probes_must_all_succeed() {
    let (mut service, server, _fleet) = on_trial(OutlierLayer::default().probes(3)).await;
    server.behave(ANSWER);
    let mut others: Vec<_> = (0..3).map(|_| service.clone()).collect();
    assert_ready_ok!(ready(&mut others[0]));
    assert_ready_ok!(ready(&mut others[1]));
    assert_ready_ok!(ready(&mut others[2]));
    assert_pending!(ready(&mut service));
    for other in &mut others {
        assert_pending!(ready(&mut service));
        other.call(()).await.unwrap();
    }
    assert_ready_ok!(ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_never_ends_fails_in_the_end() {
    let servers = servers(&[FAIL, ANSWER]);
    let mut balance = round_robin(&servers, envoy().max_ejection(Duration::from_secs(60)));
    calls(&mut balance, 10).await;
    servers[0].behave(Behaviour::Hang);
    advance(Duration::from_secs(30)).await;
    settle().await;
    // By round robin one of two requests is the probe, which hangs. Later requests pass over it.
    let (first, second) = (start(&mut balance).await, start(&mut balance).await);
    let mut hung = task::spawn(async { tokio::join!(first, second) });
    assert_pending!(hung.poll());
    calls(&mut balance, 10).await;
    assert_eq!(statuses(&balance)[0], Status::Available, "half-open");
    for _ in 0..7 {
        advance(Duration::from_secs(10)).await;
        settle().await;
    }
    assert!(is_ejected(&statuses(&balance)[0]));
    servers[0].behave(ANSWER);
    advance(Duration::from_secs(60)).await;
    settle().await;
    let before = servers[0].calls();
    calls(&mut balance, 10).await;
    assert!(servers[0].calls() >= before + 4, "it is back");
}
