//! Slow start.

use super::*;

async fn shares<P>(
    policy: P,
    balance_of: impl AsyncFnOnce(
        &Balance<P, PendingRequests<Client>, (), usize>,
        &watch::Sender<Vec<usize>>,
    ),
) -> Vec<f64>
where
    P: Policy<usize, PendingRequests<Client>, ()> + Clone,
{
    let servers = servers(&[ANSWER; 4]);
    let (targets, rx) = watch::channel(vec![0, 1, 2]);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(policy).slow_start(SlowStart::new(Duration::from_secs(60))))
        .layer(each(PendingRequestsLayer::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    advance(Duration::from_secs(2)).await;
    balance_of(&balance, &targets).await;
    let before: Vec<_> = servers.iter().map(Server::calls).collect();
    calls(&mut balance, 35_000).await;
    let calls = servers
        .iter()
        .zip(before)
        .map(|(server, before)| server.calls() - before);
    calls.map(|calls| calls as f64 / 35_000.0).collect()
}

#[track_caller]
fn near(shares: &[f64], weights: [f64; 4]) {
    let sum: f64 = weights.iter().sum();
    for (share, weight) in shares.iter().zip(weights) {
        assert!(
            (share - weight / sum).abs() < 0.01,
            "{shares:?}, not {weights:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_endpoint_gets_a_growing_share() {
    macro_rules! check {
        ($policy:expr) => {
            for (secs, factor) in [(0, 0.1), (12, 0.2), (30, 0.5), (60, 1.0)] {
                let joins = async |_: &_, targets: &watch::Sender<_>| {
                    targets.send_replace(vec![0, 1, 2, 3]);
                    settle().await;
                    for _ in 0..secs {
                        advance(Duration::from_secs(1)).await;
                        settle().await;
                    }
                };
                near(&shares($policy, joins).await, [1.0, 1.0, 1.0, factor]);
            }
        };
    }
    check!(WeightedRoundRobin::seeded(1));
    check!(Random::seeded(1));
    check!(P2c::seeded(1));
    check!(LeastLoaded::seeded(1));
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_warms_up_and_a_set_that_is_all_new_does_not() {
    let returns = async |balance: &Balance<_, _, _, _>, _: &_| {
        let endpoint = balance.members()[1].endpoint().clone();
        endpoint.mark_unhealthy();
        settle().await;
        advance(Duration::from_secs(5)).await;
        endpoint.mark_healthy();
        settle().await;
    };
    near(
        &shares(WeightedRoundRobin::seeded(1), returns).await,
        [1.0, 0.1, 1.0, 0.0],
    );
    let nothing = async |_: &_, _: &_| {};
    near(
        &shares(WeightedRoundRobin::seeded(1), nothing).await,
        [1.0, 1.0, 1.0, 0.0],
    );
}

/// Before, the first one got half of all requests.
#[tokio::test(start_paused = true)]
async fn a_set_that_is_found_one_by_one_starts_warm() {
    let servers = servers(&[ANSWER; 12]);
    let (targets, rx) = watch::channel(Vec::new());
    let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(Random::seeded(1)).slow_start(SlowStart::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    tokio::time::sleep(Duration::from_secs(60)).await;
    for n in 0..11 {
        targets.send_modify(|targets| targets.push(n));
        tokio::time::sleep(ms(20)).await;
    }
    let warm = || {
        let members = balance.members();
        let heaviest = members.iter().map(Member::share).max();
        members
            .iter()
            .filter(|m| Some(m.share()) == heaviest)
            .count()
    };
    assert_eq!(warm(), 11);
    // After that second, one that joins warms up.
    tokio::time::sleep(Duration::from_secs(1)).await;
    targets.send_modify(|targets| targets.push(11));
    tokio::time::sleep(ms(20)).await;
    assert_eq!((warm(), balance.members().len()), (11, 12));
}

/// The endpoints of a new set do not warm up, in whatever order their first checks succeed.
#[tokio::test(start_paused = true)]
async fn a_set_that_is_checked_first_starts_warm() {
    let servers = servers(&[ANSWER; 4]);
    let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(Random::seeded(1)).slow_start(SlowStart::default()))
        .layer(
            HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
                tokio::time::sleep(ms(10 * *endpoint.address() as u64)).await;
                Ok::<_, String>(())
            })
            .until_first_check(UntilFirstCheck::Unhealthy),
        )
        .layer(fixed(0..4))
        .service(factory(&servers));
    tokio::time::sleep(ms(100)).await;
    settle().await;
    assert!(
        balance
            .members()
            .iter()
            .all(|member| member.share() == member.weight())
    );
}

#[tokio::test(start_paused = true)]
async fn in_a_panic_everybody_has_a_full_share() {
    let servers = servers(&[ANSWER; 4]);
    let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(
            BalanceLayer::new(Random::seeded(1))
                .slow_start(SlowStart::default())
                .panic_threshold(0.5),
        )
        .layer(fixed(0..4))
        .service(factory(&servers));
    settle().await;
    let members = balance.members();
    members
        .iter()
        .for_each(|member| member.endpoint().mark_unhealthy());
    settle().await;
    members[0].endpoint().mark_healthy();
    settle().await;
    assert!(
        balance
            .members()
            .iter()
            .all(|member| member.share() == member.weight())
    );
}

#[tokio::test(start_paused = true)]
async fn hashing_is_not_affected() {
    let servers = servers(&[ANSWER; 4]);
    let (targets, rx) = watch::channel(vec![0, 1, 2]);
    let policy = RingHash::by_key(hash::hashed(|key: &u64| Some(*key)));
    let balance: Balance<_, Client, u64, usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(policy).slow_start(SlowStart::default()))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    advance(Duration::from_secs(2)).await;
    targets.send_replace(vec![0, 1, 2, 3]);
    settle().await;
    assert!(
        balance
            .members()
            .iter()
            .any(|member| member.share() != member.weight())
    );
    let points = balance.with_table(|_, ring| {
        let mut points = [0; 4];
        ring.get_ref()
            .points()
            .for_each(|(_, host)| points[host] += 1);
        points
    });
    assert_eq!(points, [256; 4]);
}
