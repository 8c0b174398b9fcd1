//! What each policy promises, through the balancer.

use tokio::sync::watch;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_lb::*;

use crate::support::*;

/// Returns the addresses picked, with constant loads and the given weights.
async fn picks<P>(
    policy: P,
    weights: &[u32],
    load: impl Fn(usize) -> f64 + Send + 'static,
    n: usize,
) -> Vec<usize>
where
    P: Policy<usize, Constant<Client, f64>, ()> + Clone,
{
    let servers = servers(&vec![Behaviour::Answer(ms(0)); weights.len()]);
    let make = factory(&servers);
    let mut balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(policy))
        .layer(fixed(weights.iter().copied().enumerate()))
        .service(move |endpoint: &Endpoint<usize>| {
            Constant::new(make(endpoint), load(*endpoint.address()))
        });
    let mut picks = Vec::new();
    for _ in 0..n {
        picks.push(start(&mut balance).await.await.unwrap());
    }
    picks
}

pub(crate) fn shares(picks: &[usize], n: usize) -> Vec<f64> {
    let mut shares = vec![0.0; n];
    picks
        .iter()
        .for_each(|&pick| shares[pick] += 1.0 / picks.len() as f64);
    shares
}

#[track_caller]
fn near(shares: &[f64], expected: &[f64], tolerance: f64) {
    for (share, expected) in shares.iter().zip(expected) {
        assert!(
            (share - expected).abs() < tolerance,
            "{shares:?}, not {expected:?}"
        );
    }
}

#[tokio::test]
async fn p2c_takes_the_lighter_of_two() {
    let picks = picks(p2c(1), &[1; 4], |i| i as f64, 60_000).await;
    near(
        &shares(&picks, 4),
        &[3.0 / 6.0, 2.0 / 6.0, 1.0 / 6.0, 0.0],
        0.01,
    );
}

#[tokio::test]
async fn p2c_of_more_choices_takes_the_lightest_of_them() {
    let shares_of = async |choices| {
        shares(
            &picks(p2c(2).choices(choices), &[1; 4], |i| i as f64, 40_000).await,
            4,
        )
    };
    near(&shares_of(1).await, &[0.25; 4], 0.01);
    near(&shares_of(3).await, &[0.75, 0.25, 0.0, 0.0], 0.01);
    near(&shares_of(4).await, &[1.0, 0.0, 0.0, 0.0], 0.001);
    near(&shares_of(8).await, &[1.0, 0.0, 0.0, 0.0], 0.001);
}

#[test]
fn p2c_refuses_choices_that_are_none_or_too_many() {
    for choices in [0, 9, usize::MAX] {
        assert!(std::panic::catch_unwind(|| P2c::default().choices(choices)).is_err());
    }
}

#[tokio::test]
async fn loads_are_compared_by_weight() {
    // Load 2 at weight 4 is lighter than load 1 at weight 1.
    let load = |i| [1.0, 2.0][i];
    near(
        &shares(&picks(p2c(3), &[1, 4], load, 1000).await, 2),
        &[0.0, 1.0],
        1e-9,
    );
    near(
        &shares(&picks(LeastLoaded::default(), &[1, 4], load, 10).await, 2),
        &[0.0, 1.0],
        1e-9,
    );
}

#[tokio::test]
async fn what_is_not_a_number_loses() {
    for (bad, good) in [(0, 1), (1, 0)] {
        let load = move |i| if i == bad { f64::NAN } else { 1e300 };
        for weights in [[1, 1], [1, 2]] {
            let last = picks(p2c(4), &weights, load, 100).await;
            assert!(last.iter().all(|&pick| pick == good));
            let last = picks(LeastLoaded::default(), &weights, load, 100).await;
            assert!(last.iter().all(|&pick| pick == good));
        }
    }
    // If no load is a number, any member will do.
    near(
        &shares(&picks(p2c(5), &[1, 1], |_| f64::NAN, 10_000).await, 2),
        &[0.5; 2],
        0.03,
    );
    near(
        &shares(
            &picks(LeastLoaded::seeded(5), &[1, 1], |_| f64::NAN, 10_000).await,
            2,
        ),
        &[0.5; 2],
        0.03,
    );
}

#[tokio::test]
async fn least_loaded_breaks_ties_fairly() {
    // Ties of adjacent members and of members that are apart.
    let load = |i| [0.0, 5.0, 0.0, 0.0, 5.0][i];
    let shares = shares(
        &picks(LeastLoaded::seeded(6), &[1; 5], load, 60_000).await,
        5,
    );
    near(&shares, &[1.0 / 3.0, 0.0, 1.0 / 3.0, 1.0 / 3.0, 0.0], 0.01);
}

#[tokio::test]
async fn least_loaded_breaks_ties_by_weight() {
    let weights = [9, 1, 0, 10];
    let shares = shares(
        &picks(LeastLoaded::seeded(6), &weights, |_| 0.0, 60_000).await,
        4,
    );
    near(&shares, &[0.45, 0.05, 0.0, 0.5], 0.01);
}

#[tokio::test]
async fn random_follows_weights() {
    let weights = [1, 2, 3, 4, 0];
    let shares = shares(
        &picks(Random::seeded(7), &weights, |_| 0.0, 100_000).await,
        5,
    );
    near(&shares, &[0.1, 0.2, 0.3, 0.4, 0.0], 0.01);
}

#[tokio::test]
async fn round_robin_takes_turns_from_a_random_start() {
    let mut starts = [0; 4];
    for seed in 0..200 {
        let picks = picks(RoundRobin::seeded(seed), &[1; 4], |_| 0.0, 9).await;
        assert!(
            picks.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 4),
            "{picks:?}"
        );
        starts[picks[0]] += 1;
    }
    assert!(starts.iter().all(|&n| n > 25), "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn round_robin_keeps_its_phase_over_updates() {
    let servers = servers(&[Behaviour::Answer(ms(0)); 5]);
    let (targets, rx) = watch::channel(vec![0, 1, 2, 3]);
    let balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(8)))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    let next = async || start(&mut balance.clone()).await.await.unwrap();
    while next().await != 1 {}
    targets.send_replace(vec![0, 1, 2, 3, 4]);
    settle().await;
    assert_eq!([next().await, next().await, next().await], [2, 3, 4]);
    // The member whose turn it is leaves, so the one after it is next.
    targets.send_replace(vec![1, 2, 3, 4]);
    settle().await;
    assert_eq!(next().await, 1);
    targets.send_replace(vec![1, 3, 4]);
    settle().await;
    assert_eq!(next().await, 3);
}

/// Sends `picks` requests from each of 200 clients to each of `lists`; returns how many next
/// requests each server got. If there were picks, these go to the servers 20 to 29.
async fn next_of_200_clients(lists: &[std::ops::Range<usize>], picks: usize) -> [usize; 30] {
    let mut next = [0; 30];
    for seed in 0..200 {
        let servers = servers(&[Behaviour::Answer(ms(0)); 30]);
        let (targets, rx) = watch::channel(Vec::new());
        let mut balance: Balance<_, _, (), _> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(seed)))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        for list in lists {
            targets.send_replace(list.clone().collect());
            settle().await;
            for _ in 0..picks {
                start(&mut balance).await.await.unwrap();
            }
        }
        if picks > 0 {
            targets.send_replace((20..30).collect());
            settle().await;
        }
        next[start(&mut balance).await.await.unwrap()] += 1;
    }
    next
}

/// Source: grpc-java issue 4462.
#[tokio::test(start_paused = true)]
async fn round_robin_clients_do_not_fall_into_step_when_the_set_changes() {
    let is_even = |next: &[usize]| next.iter().all(|n| (5..=40).contains(n));
    // All servers are replaced by others.
    let next = next_of_200_clients(&[0..9, 0..10], 3).await;
    assert!(is_even(&next[20..]), "{next:?}");
    // One by one they are found, before the first request and after.
    let one_by_one: Vec<_> = (1..=10).map(|n| 0..n).collect();
    let next = next_of_200_clients(&one_by_one, 0).await;
    assert!(is_even(&next[..10]), "{next:?}");
    // A large set follows a small one that has served already.
    let next = next_of_200_clients(&[29..30, 28..30], 3).await;
    assert!(is_even(&next[20..]), "{next:?}");
}

#[tokio::test(start_paused = true)]
async fn all_handles_share_one_position() {
    let servers = servers(&[Behaviour::Answer(ms(0)); 3]);
    let balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(fixed(0..3))
        .service(factory(&servers));
    for _ in 0..30 {
        balance.clone().oneshot(()).await.unwrap();
    }
    assert!(servers.iter().all(|server| server.calls() == 10));
}

#[tokio::test]
async fn weighted_round_robin_is_smooth_and_exact() {
    let weights = [5, 1, 1];
    let mut firsts = [0; 3];
    for seed in 0..200 {
        let picks = picks(WeightedRoundRobin::seeded(seed), &weights, |_| 0.0, 70).await;
        firsts[picks[0]] += 1;
        for window in picks.windows(7) {
            for (i, &weight) in weights.iter().enumerate() {
                let count = window.iter().filter(|&&pick| pick == i).count() as i64;
                assert!((count - i64::from(weight)).abs() <= 1, "{window:?}");
            }
        }
    }
    assert!(
        firsts[1] > 5 && firsts[2] > 5,
        "the first pick is not always the heaviest: {firsts:?}"
    );
}

/// Before, .71 for the .56 of five of nine, .16 for a quarter, .17 for a fifth.
#[tokio::test]
async fn first_turns_of_weighted_round_robin_are_by_weight() {
    for weights in [&[5, 1, 1, 1, 1][..], &[1, 3], &[1, 20, 79]] {
        for one_by_one in [false, true] {
            let mut firsts = Vec::new();
            for seed in 0..3000 {
                let servers = servers(&vec![Behaviour::Answer(ms(0)); weights.len()]);
                let targets: Vec<(usize, u32)> = weights.iter().copied().enumerate().collect();
                let (list, rx) = watch::channel(vec![targets[0]]);
                let client = ServiceBuilder::new()
                    .layer(BalanceLayer::new(WeightedRoundRobin::seeded(seed)))
                    .layer(WatchLayer::new(rx))
                    .service(factory(&servers));
                if one_by_one {
                    settle().await;
                }
                list.send_replace(targets);
                settle().await;
                firsts.push(client.oneshot(()).await.unwrap());
            }
            let sum = f64::from(weights.iter().sum::<u32>());
            let due: Vec<_> = weights.iter().map(|&w| f64::from(w) / sum).collect();
            near(&shares(&firsts, weights.len()), &due, 0.035);
        }
    }
}

/// A set shrinks to one, for all clients alike, and grows again. Before, those who had stayed at
/// that one went on from there together.
#[tokio::test]
async fn clients_do_not_fall_into_step_when_a_set_shrinks_and_grows_again() {
    for left in [1, 2] {
        let mut next = [0; 10];
        for seed in 0..300 {
            let servers = servers(&[Behaviour::Answer(ms(0)); 10]);
            let (list, rx) = watch::channel((0..10).collect::<Vec<_>>());
            let mut client = ServiceBuilder::new()
                .layer(BalanceLayer::new(RoundRobin::seeded(seed)))
                .layer(WatchLayer::new(rx))
                .service(factory(&servers));
            for targets in [10, left, 10] {
                list.send_replace((0..targets).collect());
                settle().await;
                for _ in 0..3 {
                    start(&mut client).await.await.unwrap();
                }
            }
            list.send_replace((0..left).collect());
            settle().await;
            start(&mut client).await.await.unwrap();
            list.send_replace((0..10).collect());
            settle().await;
            next[start(&mut client).await.await.unwrap()] += 1;
        }
        // 30 each by chance, with a standard deviation of 5.
        assert!(next.iter().all(|&count| count < 55), "{next:?}");
    }
}

/// Before, one of nine alike got 844 of 900.
#[tokio::test]
async fn second_tries_are_by_weight_among_those_left() {
    async fn check<P>(policy: P, weights: &[u32])
    where
        P: Policy<usize, Constant<Client, f64>, ()> + Clone + std::fmt::Debug,
    {
        let name = format!("{policy:?}");
        let servers = servers(&vec![Behaviour::Answer(ms(0)); weights.len()]);
        let make = factory(&servers);
        let mut balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(fixed(weights.iter().copied().enumerate()))
            .service(move |endpoint: &Endpoint<usize>| Constant::new(make(endpoint), 0.0));
        let mut seconds = Vec::new();
        while seconds.len() < 4000 {
            let tried = Tried::new();
            let mut call = async || {
                let ready = ServiceExt::<()>::ready(&mut balance).await.unwrap();
                ready.call_excluding((), &tried).await.unwrap()
            };
            if call().await == 0 {
                seconds.push(call().await);
            }
        }
        let sum = f64::from(weights[1..].iter().sum::<u32>());
        let due = weights.iter().enumerate().map(|(i, &weight)| match i {
            0 => 0.0,
            _ => f64::from(weight) / sum,
        });
        println!("{name}");
        near(
            &shares(&seconds, weights.len()),
            &due.collect::<Vec<_>>(),
            // A second try may take the next turn, which depends a little on whose the first was.
            0.06,
        );
    }
    for weights in [
        &[1000, 1, 1, 1, 1, 1, 1, 1, 1, 1][..],
        &[1000, 1, 2, 3, 4],
        &[100, 6, 3, 1],
    ] {
        check(WeightedRoundRobin::seeded(1), weights).await;
        check(Random::seeded(1), weights).await;
        check(LeastLoaded::seeded(1), weights).await;
        check(p2c(1).choices(1), weights).await;
    }
}

#[tokio::test]
async fn huge_and_tiny_weights_are_taken() {
    let weights = [1, u32::MAX, 0];
    let policies = async |picks: Vec<usize>| near(&shares(&picks, 3), &[0.0, 1.0, 0.0], 0.001);
    policies(picks(p2c(9), &weights, |_| 0.0, 10_000).await).await;
    policies(picks(Random::seeded(9), &weights, |_| 0.0, 10_000).await).await;
    policies(picks(WeightedRoundRobin::seeded(9), &weights, |_| 0.0, 10_000).await).await;
}

/// Ten thousand members that are not ready, and one that is: each policy finds it.
#[tokio::test(start_paused = true)]
async fn the_one_that_is_ready_is_found_among_ten_thousand() {
    async fn check<P>(policy: P)
    where
        P: Policy<usize, PendingRequests<Client>, ()> + Clone + std::fmt::Debug,
    {
        let servers = servers(&vec![Behaviour::Answer(ms(0)); 10_000]);
        servers.iter().for_each(|server| server.allow(0));
        servers[6_789].allow(1);
        let name = format!("{policy:?}");
        let discover =
            each(PendingRequestsLayer::default()).layer(fixed(0..10_000).layer(factory(&servers)));
        let mut balance = BalanceLayer::new(policy).layer(discover);
        assert_eq!(start(&mut balance).await.await.unwrap(), 6_789, "{name}");
        assert!(poll_ready_once::<_, ()>(&mut balance).await.is_pending());
        servers[42].allow(1);
        // The first caller has looked and stays in its queues.
        let mut balance = balance.clone();
        assert!(poll_ready_once::<_, ()>(&mut balance).await.is_ready());
        assert_eq!(balance.call(()).await.unwrap(), 42);
    }
    check(p2c(10)).await;
    check(LeastLoaded::seeded(10)).await;
    check(Random::seeded(10)).await;
    check(RoundRobin::seeded(10)).await;
    check(WeightedRoundRobin::seeded(10)).await;
}

/// One of two members fails to become ready, while eight tasks send at once. The other one must
/// take every request.
#[test]
fn round_robin_passes_over_from_many_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let servers = servers(&[Behaviour::Answer(ms(0)); 2]);
        servers[0].fail_readiness(true);
        let balance: Balance<_, _, (), _> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(fixed(0..2))
            .service(factory(&servers));
        let call = |balance: Balance<_, _, (), _>| async move {
            for _ in 0..2_000 {
                assert_eq!(balance.clone().oneshot(()).await.unwrap(), 1);
            }
        };
        let tasks: Vec<_> = (0..8)
            .map(|_| tokio::spawn(call(balance.clone())))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}
