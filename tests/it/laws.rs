//! Laws that hold for every policy and every set.

use std::collections::HashSet;

use proptest::prelude::*;
use tokio::sync::watch;
use tower::ServiceBuilder;
use tower_lb::*;

use crate::support::*;

/// Runs `check` for each policy.
macro_rules! every_policy {
    ($check:ident, $($argument:expr),*) => {{
        $check(P2c::seeded(1), $($argument),*);
        $check(P2c::seeded(1).choices(3), $($argument),*);
        $check(LeastLoaded::seeded(1), $($argument),*);
        $check(Random::seeded(1), $($argument),*);
        $check(RoundRobin::seeded(1), $($argument),*);
        $check(WeightedRoundRobin::seeded(1), $($argument),*);
    }};
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(future)
}

type Tracked = PendingRequests<Client>;

/// Sends requests while the set changes. No endpoint that is draining or not in the set may be
/// picked.
fn members_only<P>(policy: P, lists: &[Vec<(usize, u32)>])
where
    P: Policy<usize, Tracked, ()> + Clone,
{
    run(async {
        let servers = servers(&[Behaviour::Answer(ms(0)); 8]);
        let (targets, rx) = watch::channel(vec![]);
        let mut balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(each(PendingRequestsLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        for list in lists {
            targets.send_replace(list.clone());
            settle().await;
            // Of targets with the same address the first one counts.
            let mut seen = HashSet::new();
            let firsts = list.iter().filter(|(address, _)| seen.insert(*address));
            let allowed: HashSet<_> = firsts
                .filter(|(_, weight)| *weight > 0)
                .map(|(address, _)| *address)
                .collect();
            for _ in 0..20 {
                match start(&mut balance).await.await {
                    Ok(address) => assert!(allowed.contains(&address), "{address} of {list:?}"),
                    Err(error) => {
                        assert!(error.is::<NoEndpoints>() && allowed.is_empty(), "{error}")
                    }
                }
            }
        }
    });
}

/// Checks by chi-squared, at one in a thousand, that picks are uniform over equal members.
fn uniform<P>(policy: P, n: usize)
where
    P: Policy<usize, Tracked, ()> + Clone + std::fmt::Debug,
{
    run(async {
        let name = format!("{policy:?}");
        let servers = servers(&vec![Behaviour::Answer(ms(0)); n]);
        let mut balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(each(PendingRequestsLayer::default()))
            .layer(fixed(0..n))
            .service(factory(&servers));
        let each = 1000.0;
        for _ in 0..n * each as usize {
            start(&mut balance).await.await.unwrap();
        }
        let deviation = |server: &Server| (server.calls() as f64 - each).powi(2) / each;
        let chi_squared: f64 = servers.iter().map(deviation).sum();
        // Wilson and Hilferty's approximation of the quantile: z = 3.09.
        let freedom = (n - 1) as f64;
        let a = 2.0 / (9.0 * freedom);
        let critical = freedom * (1.0 - a + 3.09 * a.sqrt()).powi(3);
        assert!(
            chi_squared < critical,
            "{name}: {chi_squared} at {n} members"
        );
    });
}

#[test]
fn every_policy_is_uniform_over_equal_members() {
    for n in [2, 3, 10, 100] {
        every_policy!(uniform, n);
    }
}

/// What a client does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Clone,
    Call(usize),
    Drop(usize),
    DropHandle(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Clone),
        (0_usize..100).prop_map(Step::Call),
        (0_usize..100).prop_map(Step::Call),
        (0_usize..100).prop_map(Step::Drop),
        (0_usize..100).prop_map(Step::DropHandle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nobody_outside_the_set_is_picked(
        lists in prop::collection::vec(prop::collection::vec((0_usize..8, 0_u32..4), 0..10), 1..6),
    ) {
        every_policy!(members_only, &lists);
    }

    #[test]
    fn sums_of_requests_in_flight_are_exact(steps in prop::collection::vec(step(), 1..100)) {
        run(async {
            let servers = servers(&[Behaviour::Hang; 4]);
            let balance: Balance<_, _, (), _> = ServiceBuilder::new()
                .layer(BalanceLayer::new(P2c::seeded(1)))
                .layer(each(PeakEwmaLayer::default()))
                .layer(each(PendingRequestsLayer::default()))
                .layer(fixed(0..4))
                .service(factory(&servers));
            settle().await;
            let (mut handles, mut answers) = (vec![balance.clone()], Vec::new());
            for step in steps {
                match step {
                    Step::Clone => handles.push(handles[handles.len() - 1].clone()),
                    Step::Call(which) => {
                        let which = which % handles.len();
                        answers.push(start(&mut handles[which]).await);
                    }
                    Step::Drop(which) if !answers.is_empty() => {
                        drop(answers.swap_remove(which % answers.len()));
                    }
                    Step::DropHandle(which) if handles.len() > 1 => {
                        drop(handles.swap_remove(which % handles.len()));
                    }
                    _ => {}
                }
                let members = balance.members();
                let outer: usize = members.iter().map(|member| member.service().in_flight()).sum();
                let inner: usize = members.iter().map(|member| member.service().get_ref().in_flight()).sum();
                assert_eq!((outer, inner), (answers.len(), answers.len()));
            }
        });
    }
}
