//! What `poll_ready` waits for, and what it gives back.

use super::*;

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
    // A failed `poll_ready` does not remove the member.
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
    // Dropping a handle gives back its reservation.
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
    // Dropping a response future gives back its request.
    let mut handle = balance.clone();
    let mut answer =
        tokio_test::task::spawn(ServiceExt::<()>::ready(&mut handle).await.unwrap().call(()));
    let in_flight = || {
        balance
            .members()
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
