//! What ejects an endpoint, and for how long.

use super::*;

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_eject_at_once_and_for_as_long_as_set() {
    let servers = servers(&[FAIL, ANSWER]);
    let mut balance = round_robin(&servers, envoy());
    calls(&mut balance, 8).await;
    assert_eq!(servers[0].calls(), 4);
    assert_eq!(statuses(&balance)[0], Status::Available);
    let start = Instant::now();
    calls(&mut balance, 2).await;
    let until = start + Duration::from_secs(30);
    assert_eq!(statuses(&balance)[0], Status::Ejected { until });
    let ejection = balance.members()[0].endpoint().ejection().unwrap();
    assert_eq!(
        (ejection.until, &*ejection.reason),
        (until, "5 failures in a row")
    );
    calls(&mut balance, 10).await;
    advance(Duration::from_millis(29_999)).await;
    calls(&mut balance, 10).await;
    assert_eq!(servers[0].calls(), 5, "still out");
    // Half-open: one probe fails, and the endpoint is ejected for twice as long.
    advance(ms(1)).await;
    settle().await;
    assert_eq!(statuses(&balance)[0], Status::Available);
    calls(&mut balance, 10).await;
    assert_eq!(servers[0].calls(), 6, "one probe");
    let until = Instant::now() + Duration::from_secs(60);
    assert_eq!(statuses(&balance)[0], Status::Ejected { until });
    // The next probe succeeds, and the endpoint is used again.
    servers[0].behave(ANSWER);
    advance(Duration::from_secs(60)).await;
    settle().await;
    calls(&mut balance, 20).await;
    assert!(servers[0].calls() >= 6 + 9, "{}", servers[0].calls());
}

/// Before, the first ejection lasted 30 s, and the server had a hundredth of its share.
#[tokio::test(start_paused = true)]
async fn a_short_restart_costs_a_second_or_two() {
    let servers = servers(&[ANSWER; 3]);
    let mut balance = round_robin(&servers, OutlierLayer::default().seeded(1));
    servers[0].behave(FAIL);
    calls(&mut balance, 15).await;
    assert!(is_ejected(&statuses(&balance)[0]));
    tokio::time::sleep(ms(300)).await;
    servers[0].behave(ANSWER);
    tokio::time::sleep(ms(950)).await;
    let before = servers[0].calls();
    calls(&mut balance, 30).await;
    assert!(servers[0].calls() - before >= 9);
}

/// A server that stays away costs a probe for each doubling.
#[tokio::test(start_paused = true)]
async fn a_server_that_stays_away_is_probed_ever_less() {
    let servers = servers(&[FAIL, ANSWER]);
    let client = round_robin(&servers, OutlierLayer::default().seeded(1));
    let (all, late) = send(client, &servers, 20, 300, None).await;
    assert!((5 + 7..=5 + 9).contains(&all[0]), "{all:?}");
    assert!(late[0] <= 1, "{late:?}");
}

/// It works for a single request after each ejection. Before, it was ejected once in an interval at
/// most, and failed half of all requests until then.
#[tokio::test(start_paused = true)]
async fn a_server_that_fails_again_at_once_is_ejected_again_at_once() {
    let servers = servers(&[FAIL, ANSWER]);
    let mut balance = round_robin(&servers, OutlierLayer::default().seeded(1));
    settle().await;
    let mut failures = 0;
    for _ in 0..600 {
        let before = servers[0].calls();
        failures += usize::from(call(&mut balance).await.is_err());
        if is_ejected(&statuses(&balance)[0]) {
            servers[0].behave(ANSWER);
        } else if servers[0].calls() > before {
            servers[0].behave(FAIL);
        }
        tokio::time::sleep(ms(100)).await;
    }
    // At 0, 1, 3, 7, 15, 31 s and a little later.
    assert!(failures <= 7 * 5, "{failures}");
}

/// The endpoint leaves and joins each second. Before, 150 of 600 failed.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_leaves_and_joins_stays_ejected() {
    for memory in [None, Some(Duration::ZERO)] {
        let servers = servers(&[FAIL, ANSWER, ANSWER, ANSWER]);
        let (targets, rx) = watch::channel((0..4).collect::<Vec<_>>());
        let mut layer = OutlierLayer::default().seeded(1);
        if let Some(memory) = memory {
            layer = layer.memory(memory);
        }
        let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(layer)
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        settle().await;
        let mut failures = 0;
        for second in 0..30 {
            for _ in 0..20 {
                failures += usize::from(call(&mut balance).await.is_err());
                tokio::time::sleep(ms(45)).await;
            }
            // It leaves while it is ejected, and while it is on its way there.
            targets.send_replace((1..4).collect());
            tokio::time::sleep(ms(100)).await;
            targets.send_replace(if second % 2 == 0 {
                vec![0, 1, 2, 3]
            } else {
                vec![3, 2, 1, 0]
            });
            settle().await;
        }
        match memory {
            None => assert!(failures <= 5 + 6, "{failures}"),
            Some(_) => assert!(failures > 100, "{failures}"),
        }
    }
}

/// Failures that are too few to eject are remembered, too. After five minutes all is forgotten.
#[tokio::test(start_paused = true)]
async fn failures_are_remembered_for_five_minutes() {
    for (away, is_remembered) in [(299, true), (301, false)] {
        let servers = servers(&[FAIL, ANSWER]);
        let (targets, rx) = watch::channel(vec![0, 1]);
        let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(OutlierLayer::default().seeded(1))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        settle().await;
        calls(&mut balance, 8).await;
        targets.send_replace(vec![1]);
        settle().await;
        tokio::time::sleep(Duration::from_secs(away)).await;
        targets.send_replace(vec![0, 1]);
        settle().await;
        calls(&mut balance, 2).await;
        let now = statuses(&balance);
        assert_eq!(now.iter().any(is_ejected), is_remembered, "{now:?}");
    }
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
    assert_eq!(
        statuses(&balance)
            .iter()
            .filter(|status| is_ejected(status))
            .count(),
        1
    );
    // The other detectors, at the end of the interval, do not eject a second one either.
    calls(&mut balance, 11 * 100).await;
    advance(Duration::from_secs(10)).await;
    settle().await;
    assert_eq!(
        statuses(&balance)
            .iter()
            .filter(|status| is_ejected(status))
            .count(),
        1
    );
}

/// An ejected endpoint that is then found unhealthy gets no probes. Once its ejection has ended, it
/// must not count towards the cap.
#[tokio::test(start_paused = true)]
async fn one_that_is_out_for_other_reasons_takes_nobodys_place() {
    let servers = servers(&[FAIL, ANSWER, ANSWER]);
    let mut balance = round_robin(&servers, OutlierLayer::default());
    calls(&mut balance, 15).await;
    assert!(is_ejected(&statuses(&balance)[0]));
    balance.members()[0].endpoint().mark_unhealthy();
    advance(Duration::from_secs(31)).await;
    settle().await;
    servers[1].behave(FAIL);
    calls(&mut balance, 20).await;
    assert!(is_ejected(&statuses(&balance)[1]));
}

#[tokio::test(start_paused = true)]
async fn a_replaced_service_starts_anew() {
    let servers = servers(&[FAIL, ANSWER]);
    let (changes, rx) = tokio::sync::mpsc::unbounded_channel();
    let insert = |server: usize| {
        let change = Change::Insert(server, servers[server].client());
        changes.send(Ok::<_, BoxError>(change)).unwrap();
    };
    let heartbeats = Heartbeats::new(Duration::from_secs(1_000));
    let checks = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
        if *endpoint.address() == 0 {
            Err("sick")
        } else {
            Ok(())
        }
    });
    let discover = from_discover(tokio_stream::wrappers::UnboundedReceiverStream::new(rx));
    let checks = checks.unhealthy_after(1).initial_jitter(Duration::ZERO);
    let discover = checks.layer(heartbeats.layer(discover));
    let discover = OutlierLayer::default().layer(discover);
    let mut balance: Balance<_, Watched, (), usize> = Balance::new(discover, RoundRobin::seeded(1));
    insert(0);
    insert(1);
    settle().await;
    assert_eq!(statuses(&balance)[0], Status::Unhealthy);
    balance.members()[0].endpoint().mark_healthy();
    settle().await;
    calls(&mut balance, 10).await;
    assert!(is_ejected(&statuses(&balance)[0]));
    // The same address is inserted again, with another service.
    insert(0);
    tokio::task::yield_now().await;
    let members = balance.members();
    let all: Vec<_> = members
        .iter()
        .map(|member| member.endpoint().ejection())
        .collect();
    assert_eq!(all, [None, None]);
}

#[tokio::test(start_paused = true)]
async fn the_last_available_one_is_never_ejected() {
    for n in [1, 2, 5] {
        let servers = servers(&vec![FAIL; n]);
        let mut balance = round_robin(&servers, OutlierLayer::default().max_ejected(1.0));
        calls(&mut balance, n * 50).await;
        let ejected = statuses(&balance)
            .iter()
            .filter(|status| is_ejected(status))
            .count();
        assert_eq!(ejected, n - 1, "of {n}");
    }
    // Unhealthy and draining endpoints do not count as available.
    let servers = servers(&[FAIL, ANSWER, ANSWER]);
    let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(OutlierLayer::default())
        .layer(fixed([(0, 1), (1, 1), (2, 0)]))
        .service(factory(&servers));
    settle().await;
    balance.members()[1].endpoint().mark_unhealthy();
    settle().await;
    calls(&mut balance, 20).await;
    assert_eq!(servers[0].calls(), 20);
    assert_eq!(statuses(&balance)[0], Status::Available);
}

/// The requests of an interval get the same verdict in one burst as spread evenly.
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
        assert_eq!(
            run(failing, false).await,
            verdict,
            "{failing} of 10, in a burst"
        );
        assert_eq!(run(failing, true).await, verdict, "{failing} of 10, spread");
    }
}

#[tokio::test(start_paused = true)]
async fn each_detector_can_be_off() {
    let servers = servers(&[FAIL, ANSWER, ANSWER, ANSWER, ANSWER]);
    let layer = OutlierLayer::default()
        .consecutive_failures(None)
        .success_rate(None)
        .failure_rate(None);
    let mut balance = round_robin(&servers, layer.clone());
    calls(&mut balance, 1_000).await;
    advance(Duration::from_secs(10)).await;
    settle().await;
    assert_eq!(statuses(&balance), [Status::Available; 5]);
    let mut balance = round_robin(&servers, layer.failure_rate(FailureRate::default()));
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
        assert_eq!(
            statuses(&balance)
                .iter()
                .filter(|status| is_ejected(status))
                .count(),
            usize::from(asked_for)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn it_works_with_hashing_and_comes_home() {
    let servers = servers(&[ANSWER; 4]);
    let mut balance: Balance<_, Outlier<Client, usize>, u64, usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RingHash::by_key(hash::hashed(
            |key: &u64| Some(*key),
        ))))
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
    assert_eq!(
        balance.ready().await.unwrap().call(key).await.unwrap(),
        owner
    );
}

#[tokio::test(start_paused = true)]
async fn in_towers_own_balance_too() {
    let servers = servers(&[FAIL, ANSWER]);
    let discover = OutlierLayer::default()
        .layer(each(PendingRequestsLayer::default()).layer(fixed(0..2).layer(factory(&servers))));
    let mut balance = tower::balance::p2c::Balance::new(Box::pin(discover));
    for _ in 0..40 {
        let _ = call(&mut balance).await;
    }
    assert_eq!(servers[0].calls(), 5, "it is not ready while it is ejected");
}

/// The cap holds for those that come back, too.
#[tokio::test(start_paused = true)]
async fn who_comes_back_is_not_ejected_beyond_the_cap() {
    let servers = servers(&[FAIL, FAIL, ANSWER]);
    let (targets, rx) = watch::channel(vec![0, 1, 2]);
    let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(envoy())
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    let out = |balance: &Balance<_, _, _, _>| {
        let statuses = statuses(balance);
        statuses.iter().filter(|status| is_ejected(status)).count()
    };
    calls(&mut balance, 15).await;
    assert_eq!(out(&balance), 1, "one of three at most");
    let ejected = balance
        .members()
        .iter()
        .find(|member| is_ejected(&member.endpoint().status()))
        .map(|member| *member.endpoint().address())
        .unwrap();
    targets.send_modify(|list| list.retain(|&address| address != ejected));
    settle().await;
    calls(&mut balance, 15).await;
    // The end of the interval asks again.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(out(&balance), 1, "the other one");
    targets.send_replace(vec![0, 1, 2]);
    settle().await;
    assert_eq!(out(&balance), 1);
}
