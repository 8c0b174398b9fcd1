//! Deadlines: they cover the wait for readiness, which tower's timeout does not.

use tower_lb::error::{DeadlineExceeded, WaitedFor};

use super::*;

fn waited_for(error: &BoxError) -> Option<WaitedFor> {
    error
        .downcast_ref()
        .map(|exceeded: &DeadlineExceeded| exceeded.waited_for())
}

/// Under tower's timeout each of these hangs for ever.
#[tokio::test(start_paused = true)]
async fn the_wait_for_an_endpoint_has_an_end() {
    // 1. The set is empty.
    let (_targets, rx) = watch::channel(Vec::<usize>::new());
    let empty = ServiceBuilder::new()
        .layer(DeadlineLayer::new(secs(1)))
        .layer(BalanceLayer::new(InOrder).wait_for_endpoints())
        .layer(WatchLayer::new(rx))
        .service(factory(&[]));
    // 2. All members are full.
    let servers = servers(&[Behaviour::Answer(ms(1)); 2]);
    servers.iter().for_each(|server| server.allow(0));
    let full = ServiceBuilder::new()
        .layer(DeadlineLayer::new(secs(1)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(factory(&servers));
    for client in [
        tower::util::BoxCloneSyncService::new(empty),
        tower::util::BoxCloneSyncService::new(full),
    ] {
        let start = Instant::now();
        let error = client.oneshot(()).await.unwrap_err();
        assert_eq!(waited_for(&error), Some(WaitedFor::Readiness));
        assert_eq!(
            error.to_string(),
            "no endpoint became ready within the deadline of 1s"
        );
        assert!((secs(1)..secs(1) + ms(5)).contains(&start.elapsed()));
    }
    assert_eq!(servers[0].calls() + servers[1].calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_wait_and_the_answer_share_one_deadline() {
    for (wait, takes, answers) in [(600, 300, true), (600, 500, false), (0, 999, true)] {
        let servers = servers(&[Behaviour::Answer(ms(takes))]);
        servers[0].allow(0);
        let client = ServiceBuilder::new()
            .layer(DeadlineLayer::new(secs(1)))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed([0]))
            .service(factory(&servers));
        let start = Instant::now();
        let answer = tokio::spawn(client.oneshot(()));
        sleep(ms(wait)).await;
        servers[0].allow(1);
        let answer = answer.await.unwrap();
        assert_eq!(answer.is_ok(), answers, "{wait} + {takes}");
        if let Err(error) = answer {
            assert_eq!(waited_for(&error), Some(WaitedFor::Answer));
            assert!((secs(1)..secs(1) + ms(5)).contains(&start.elapsed()));
        }
    }
}

/// A handle may be kept ready for hours, and a wait that somebody gave up is not the next one's.
#[tokio::test(start_paused = true)]
async fn only_the_time_of_this_request_counts() {
    let servers = servers(&[Behaviour::Answer(ms(900))]);
    servers[0].allow(1);
    let mut client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(secs(1)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(factory(&servers));
    ServiceExt::<()>::ready(&mut client).await.unwrap();
    sleep(secs(3600)).await;
    client.call(()).await.unwrap();
    // Somebody waits for half a second and gives up.
    let wait = timeout(ms(500), ServiceExt::<()>::ready(&mut client)).await;
    assert!(wait.is_err());
    for is_full in [true, false] {
        sleep(secs(60)).await;
        if !is_full {
            servers[0].allow(1);
            client.ready().await.unwrap().call(()).await.unwrap();
            continue;
        }
        let start = Instant::now();
        let error = client.ready().await.unwrap().call(()).await.unwrap_err();
        assert_eq!(waited_for(&error), Some(WaitedFor::Readiness));
        assert!(start.elapsed() >= secs(1), "{:?}", start.elapsed());
    }
    assert!(std::panic::catch_unwind(|| DeadlineLayer::new(Duration::ZERO)).is_err());
    DeadlineLayer::new(Duration::MAX)
        .layer(service_fn(|()| async { Ok::<_, BoxError>(()) }))
        .oneshot(())
        .await
        .unwrap();
}

/// It may stand between failover and the balancer: then it is the deadline of a try.
#[tokio::test(start_paused = true)]
async fn below_failover_it_ends_a_try_which_goes_elsewhere() {
    let (calls, make) = backends(|endpoint| match endpoint {
        0 => (ms(0), Act::Hang),
        _ => (ms(0), Act::Answer(201)),
    });
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::all()))
        .layer(DeadlineLayer::new(ms(50)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..2))
        .service(make);
    assert_eq!(client.oneshot(Get).await.unwrap(), 201);
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
}

/// Timers are late by up to a millisecond. The request has waited for its whole time.
#[tokio::test(start_paused = true)]
async fn what_becomes_ready_when_the_time_is_over_is_not_begun() {
    let servers = servers(&[Behaviour::Answer(ms(900))]);
    servers[0].allow(0);
    let client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Duration::from_micros(999_500)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(factory(&servers));
    let start = Instant::now();
    let answer = tokio::spawn(client.oneshot(()));
    settle().await;
    advance(secs(1)).await;
    servers[0].allow(1);
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(waited_for(&error), Some(WaitedFor::Readiness));
    assert!(start.elapsed() <= ms(1005));
}

/// As tower asks: a handle that was ready stays ready until it is called.
#[tokio::test(start_paused = true)]
async fn an_expired_handle_stays_ready() {
    let servers = servers(&[Behaviour::Answer(ms(1))]);
    servers[0].allow(0);
    let mut client = ServiceBuilder::new()
        .layer(DeadlineLayer::new(secs(1)))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(factory(&servers));
    ServiceExt::<()>::ready(&mut client).await.unwrap();
    assert!(poll_ready_once::<_, ()>(&mut client).await.is_ready());
    assert!(client.call(()).await.is_err());
}
