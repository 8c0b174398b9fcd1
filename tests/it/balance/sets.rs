//! What callers get while the set is unknown, empty or partly available.

use super::*;

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
    // Below the panic threshold, too, draining endpoints get nothing.
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
    // The ejection ends by itself, without any traffic.
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
