//! Heartbeats.

use super::*;

#[tokio::test(start_paused = true)]
async fn who_falls_silent_is_unhealthy_until_the_next_beat() {
    let servers = servers(&[ANSWER; 2]);
    let heartbeats = Heartbeats::new(Duration::from_secs(10));
    let (targets, rx) = watch::channel(vec![0, 1]);
    let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(heartbeats.clone())
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    let pass = async |duration: Duration| {
        advance(duration).await;
        settle().await;
    };
    pass(ms(6_000)).await;
    assert!(heartbeats.beat(&1));
    assert!(!heartbeats.beat(&7), "nobody known");
    pass(ms(3_999)).await;
    assert_eq!(statuses(&balance), [Status::Available; 2]);
    pass(ms(1)).await;
    assert_eq!(statuses(&balance), [Status::Unhealthy, Status::Available]);
    pass(ms(6_000)).await;
    assert_eq!(statuses(&balance), [Status::Unhealthy; 2]);
    assert!(heartbeats.beat(&0));
    settle().await;
    assert_eq!(statuses(&balance), [Status::Available, Status::Unhealthy]);
    // One beat is not enough: without another one it is unhealthy again.
    pass(ms(10_000)).await;
    assert_eq!(statuses(&balance), [Status::Unhealthy; 2]);
    // A beat does not make up for a failed check.
    balance.members()[0].endpoint().mark_unhealthy();
    heartbeats.beat(&0);
    settle().await;
    assert_eq!(statuses(&balance)[0], Status::Unhealthy);
    balance.members()[0].endpoint().mark_healthy();
    assert_eq!(statuses(&balance)[0], Status::Available);
    // An endpoint that leaves and returns starts afresh.
    targets.send_replace(vec![0]);
    settle().await;
    assert!(!heartbeats.beat(&1));
    targets.send_replace(vec![0, 1]);
    settle().await;
    assert_eq!(statuses(&balance)[1], Status::Available);
}
