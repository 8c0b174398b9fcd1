//! Outlier detection, health checks, heartbeats and slow start, through the balancer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, advance, sleep_until, timeout},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    health::{
        FailurePercentage, HealthCheckLayer, Heartbeats, Outlier, OutlierLayer, SlowLatency,
        SlowStart, UntilFirstCheck,
    },
    *,
};

use crate::support::*;

type Watched = Outlier<Client, usize>;

/// Round robin over servers that are watched, so that each gets every n-th request.
fn round_robin(
    servers: &[Server],
    layer: OutlierLayer,
) -> Balance<RoundRobin, Watched, (), usize> {
    ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(layer)
        .layer(fixed(0..servers.len()))
        .service(factory(servers))
}

async fn call<S: Service<(), Error = BoxError>>(service: &mut S) -> Result<S::Response, BoxError> {
    service.ready().await?.call(()).await
}

/// Sends so many requests, one after the other; their outcomes are of no account.
async fn calls<S: Service<(), Error = BoxError>>(service: &mut S, n: usize) {
    for _ in 0..n {
        let _ = call(service).await;
    }
    settle().await;
}

fn statuses<P, S>(balance: &Balance<P, S, (), usize>) -> Vec<Status>
where
    P: Policy<usize, S, ()>,
    S: Clone + Send + Sync + 'static,
{
    let members = balance.endpoints();
    members.iter().map(|member| member.endpoint().status()).collect()
}

fn is_ejected(status: &Status) -> bool {
    matches!(status, Status::Ejected { .. })
}

const FAIL: Behaviour = Behaviour::Fail(Duration::ZERO);
const ANSWER: Behaviour = Behaviour::Answer(Duration::ZERO);

mod ejection {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_eject_at_once_for_thirty_seconds() {
        let servers = servers(&[FAIL, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        calls(&mut balance, 8).await;
        assert_eq!(servers[0].calls(), 4);
        assert_eq!(statuses(&balance)[0], Status::Available);
        let start = Instant::now();
        calls(&mut balance, 2).await;
        let until = start + Duration::from_secs(30);
        assert_eq!(statuses(&balance)[0], Status::Ejected { until });
        calls(&mut balance, 10).await;
        advance(Duration::from_millis(29_999)).await;
        calls(&mut balance, 10).await;
        assert_eq!(servers[0].calls(), 5, "still out");
        // Half-open: one probe fails, and it is out for twice as long.
        advance(ms(1)).await;
        settle().await;
        assert_eq!(statuses(&balance)[0], Status::Available);
        calls(&mut balance, 10).await;
        assert_eq!(servers[0].calls(), 6, "one probe");
        let until = Instant::now() + Duration::from_secs(60);
        assert_eq!(statuses(&balance)[0], Status::Ejected { until });
        // The next one succeeds, and it is back.
        servers[0].behave(ANSWER);
        advance(Duration::from_secs(60)).await;
        settle().await;
        calls(&mut balance, 20).await;
        assert!(servers[0].calls() >= 6 + 9, "{}", servers[0].calls());
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_in_between_starts_the_count_anew() {
        let servers = servers(&[FAIL, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        for _ in 0..10 {
            servers[0].behave(FAIL);
            calls(&mut balance, 8).await;
            servers[0].behave(ANSWER);
            calls(&mut balance, 2).await;
        }
        assert_eq!(statuses(&balance), [Status::Available; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_poll_ready_is_a_failure() {
        let servers = servers(&[ANSWER, ANSWER]);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        servers[0].fail_readiness(true);
        calls(&mut balance, 20).await;
        assert!(is_ejected(&statuses(&balance)[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_call_says_nothing_unless_it_took_too_long() {
        let run = async |layer: OutlierLayer, patience| {
            let servers = servers(&[Behaviour::Hang, ANSWER]);
            let mut balance = round_robin(&servers, layer);
            for _ in 0..20 {
                let _ = timeout(patience, call(&mut balance)).await;
            }
            settle().await;
            is_ejected(&statuses(&balance)[0])
        };
        assert!(!run(OutlierLayer::default(), ms(1_000)).await);
        let layer = || OutlierLayer::default().cancelled_after(ms(100));
        assert!(!run(layer(), ms(99)).await);
        assert!(run(layer(), ms(100)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn of_eleven_with_two_failing_one_is_ejected() {
        let mut behaviours = [ANSWER; 11];
        behaviours[3..5].fill(FAIL);
        let servers = servers(&behaviours);
        let mut balance = round_robin(&servers, OutlierLayer::default());
        calls(&mut balance, 11 * 20).await;
        assert_eq!(statuses(&balance).iter().filter(|status| is_ejected(status)).count(), 1);
        // Nor by the other detectors, at the end of the interval.
        calls(&mut balance, 11 * 100).await;
        advance(Duration::from_secs(10)).await;
        settle().await;
        assert_eq!(statuses(&balance).iter().filter(|status| is_ejected(status)).count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_available_one_is_never_ejected() {
        for n in [1, 2, 5] {
            let servers = servers(&vec![FAIL; n]);
            let mut balance = round_robin(&servers, OutlierLayer::default().max_ejected(1.0));
            calls(&mut balance, n * 50).await;
            let ejected = statuses(&balance).iter().filter(|status| is_ejected(status)).count();
            assert_eq!(ejected, n - 1, "of {n}");
        }
        // Those who are unhealthy or draining are not available.
        let servers = servers(&[FAIL, ANSWER, ANSWER]);
        let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(OutlierLayer::default())
            .layer(fixed([(0, 1), (1, 1), (2, 0)]))
            .service(factory(&servers));
        settle().await;
        balance.endpoints()[1].endpoint().mark_unhealthy();
        calls(&mut balance, 20).await;
        assert_eq!(servers[0].calls(), 20);
        assert_eq!(statuses(&balance)[0], Status::Available);
    }

    /// Requests of an interval, in one burst or evenly: what counts is what they showed.
    #[tokio::test(start_paused = true)]
    async fn bursts_and_spread_traffic_get_the_same_verdict() {
        let run = async |failing_of_ten: usize, spread: bool| {
            let servers = servers(&[ANSWER; 6]);
            let layer = OutlierLayer::default().consecutive_failures(None);
            let mut balance = round_robin(&servers, layer);
            settle().await;
            for i in 0..100 {
                let fails = i % 10 < failing_of_ten;
                servers[0].behave(if fails { FAIL } else { ANSWER });
                calls(&mut balance, 6).await;
                if spread {
                    advance(ms(99)).await;
                }
            }
            advance(Duration::from_secs(if spread { 1 } else { 10 })).await;
            settle().await;
            is_ejected(&statuses(&balance)[0])
        };
        for (failing, verdict) in [(0, false), (3, true), (9, true)] {
            assert_eq!(run(failing, false).await, verdict, "{failing} of 10, in a burst");
            assert_eq!(run(failing, true).await, verdict, "{failing} of 10, spread");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_detector_can_be_off() {
        let servers = servers(&[FAIL, ANSWER, ANSWER, ANSWER, ANSWER]);
        let layer = OutlierLayer::default()
            .consecutive_failures(None)
            .success_rate(None)
            .failure_percentage(None);
        let mut balance = round_robin(&servers, layer.clone());
        calls(&mut balance, 1_000).await;
        advance(Duration::from_secs(10)).await;
        settle().await;
        assert_eq!(statuses(&balance), [Status::Available; 5]);
        let mut balance = round_robin(&servers, layer.failure_percentage(FailurePercentage::default()));
        calls(&mut balance, 1_000).await;
        advance(Duration::from_secs(10)).await;
        settle().await;
        assert!(is_ejected(&statuses(&balance)[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_one_is_ejected_where_that_is_asked_for() {
        for asked_for in [false, true] {
            let mut behaviours = [Behaviour::Answer(ms(1)); 5];
            behaviours[2] = Behaviour::Answer(ms(4));
            let servers = servers(&behaviours);
            let slow = asked_for.then(SlowLatency::default);
            let mut balance = round_robin(&servers, OutlierLayer::default().slow_latency(slow));
            calls(&mut balance, 5 * 200).await;
            advance(Duration::from_secs(10)).await;
            settle().await;
            assert_eq!(is_ejected(&statuses(&balance)[2]), asked_for);
            assert_eq!(statuses(&balance).iter().filter(|status| is_ejected(status)).count(), asked_for.into());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_works_with_hashing_and_comes_home() {
        let servers = servers(&[ANSWER; 4]);
        let mut balance: Balance<_, Outlier<Client, usize>, u64, usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RingHash::by_key(hash::hashed(|key: &u64| Some(*key)))))
            .layer(OutlierLayer::default())
            .layer(fixed(0..4))
            .service(factory(&servers));
        let key = 7;
        let owner = balance.ready().await.unwrap().call(key).await.unwrap();
        servers[owner].behave(FAIL);
        for _ in 0..5 {
            assert!(balance.ready().await.unwrap().call(key).await.is_err());
        }
        settle().await;
        let next = balance.ready().await.unwrap().call(key).await.unwrap();
        assert_ne!(next, owner);
        servers[owner].behave(ANSWER);
        advance(Duration::from_secs(30)).await;
        settle().await;
        assert_eq!(balance.ready().await.unwrap().call(key).await.unwrap(), owner);
    }

    #[tokio::test(start_paused = true)]
    async fn in_towers_own_balance_too() {
        let servers = servers(&[FAIL, ANSWER]);
        let discover = OutlierLayer::default().layer(
            each(PendingRequestsLayer::default()).layer(fixed(0..2).layer(factory(&servers))),
        );
        let mut balance = tower::balance::p2c::Balance::new(Box::pin(discover));
        for _ in 0..40 {
            let _ = call(&mut balance).await;
        }
        assert_eq!(servers[0].calls(), 5, "it is not ready while it is ejected");
    }
}
