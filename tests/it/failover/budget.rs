//! Budgets and the token throttle.

use super::*;

fn withdrawals(budget: &Budget) -> u32 {
    let mut withdrawn = 0;
    while budget.withdraw() {
        withdrawn += 1;
    }
    withdrawn
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_exact_for_any_ratio() {
    for ratio in [
        0.01,
        0.3,
        0.4,
        0.6,
        0.75,
        0.99,
        2.0,
        0.2,
        1.0,
        0.0,
        1.0 / 3.0,
        100.0,
    ] {
        for minimum in [0, 10] {
            for deposits in [0, 1, 7, 99, 10_000] {
                let budget = Budget::builder().ratio(ratio).minimum(minimum).build();
                (0..deposits).for_each(|_| budget.deposit());
                let exact = ratio * f64::from(deposits) + f64::from(minimum) * 10.0;
                let withdrawn = f64::from(withdrawals(&budget));
                assert!(
                    withdrawn <= exact + 1e-6 && withdrawn > exact - 1.0 - 1e-3,
                    "{withdrawn} of {exact}, ratio {ratio}"
                );
                // Taking turns at depositing and withdrawing gives the same total.
                let budget = Budget::builder().ratio(ratio).minimum(minimum).build();
                let mut by_turns = 0;
                for _ in 0..deposits {
                    budget.deposit();
                    by_turns += u32::from(budget.withdraw());
                }
                by_turns += withdrawals(&budget);
                let most = f64::from(deposits).max(0.0) + exact;
                assert!(f64::from(by_turns) <= exact.min(most) + 1e-6);
                assert!(
                    f64::from(by_turns) > exact - 1.0 - 1e-3,
                    "{by_turns} of {exact}"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn deposits_and_withdrawals_are_forgotten_after_the_ttl() {
    let budget = Budget::builder().minimum(1).ratio(0.5).build();
    (0..20).for_each(|_| budget.deposit());
    assert_eq!(withdrawals(&budget), 20);
    advance(ms(9_999)).await;
    assert_eq!(withdrawals(&budget), 0);
    advance(ms(1)).await;
    assert_eq!(withdrawals(&budget), 10, "the minimum is there again");
    advance(secs(10)).await;
    (0..20).for_each(|_| budget.deposit());
    advance(ms(9_999)).await;
    // To within one, because the test does not know into which slot the first few deposits fell.
    assert!((19.0..=20.0).contains(&budget.balance()));
    advance(ms(1)).await;
    assert_eq!(budget.balance(), 10.0, "but not the deposits");
}

/// In each ttl as many retries are allowed as the ratio of the requests and the minimum add up to.
#[tokio::test(start_paused = true)]
async fn a_steady_stream_of_failures_is_retried_at_the_ratio_and_the_minimum() {
    for (ratio, minimum) in [(0.2, 10), (0.3, 0), (0.01, 1), (2.0, 5)] {
        let budget = Budget::builder().ratio(ratio).minimum(minimum).build();
        let mut retries = 0_u32;
        // 100 requests a second for 200 s, all of which fail. The first 100 s spend the initial
        // balance.
        for i in 0..20_000 {
            budget.deposit();
            for _ in 0..3 {
                let retried = budget.withdraw();
                retries += u32::from(retried && i >= 10_000);
            }
            advance(ms(10)).await;
        }
        let expected = (100.0 * ratio + f64::from(minimum)).min(300.0) * 100.0;
        let share = f64::from(retries) / expected;
        assert!((0.97..1.03).contains(&share), "{retries} of {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_month_leaves_nothing_and_is_not_caught_up_on() {
    let budget = Budget::new();
    (0..1003).for_each(|_| budget.deposit());
    advance(secs(30 * 24 * 60 * 60)).await;
    (0..1000).for_each(|_| budget.deposit());
    let withdrawn = withdrawals(&budget);
    assert!((299..=301).contains(&withdrawn), "{withdrawn}");
    advance(secs(30 * 24 * 60 * 60)).await;
    assert_eq!(withdrawals(&budget), 100);
}

#[tokio::test(start_paused = true)]
async fn clones_share_a_budget_and_drawing_ones_deposit_nothing() {
    let budget = Budget::builder().minimum(0).ratio(1.0).build();
    let clone = budget.clone();
    let drawing = budget.drawing();
    clone.deposit();
    drawing.deposit();
    assert_eq!(budget.balance(), 1.0);
    assert!(drawing.clone().withdraw());
    assert!(!budget.withdraw());
    assert_eq!(budget.balance(), 0.0);
}

#[test]
fn a_budget_loses_and_invents_nothing_between_threads() {
    let budget = Budget::builder().minimum(0).ratio(0.25).build();
    let withdrawn: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..20_000)
                        .map(|_| {
                            budget.deposit();
                            u32::from(budget.withdraw())
                        })
                        .sum::<u32>()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    // Within the ttl no deposit is lost. Those not withdrawn yet are in the threads' purses, about
    // a retry's worth in each.
    let left = budget.balance();
    assert_eq!(f64::from(withdrawn) + left, 20_000.0);
    assert!(left < 4.0 * 1.25 + 1.0, "{left}");
}

#[tokio::test(start_paused = true)]
async fn towers_retry_takes_our_budgets() {
    fn take(budget: &dyn tower::retry::budget::Budget) -> bool {
        budget.deposit();
        budget.withdraw()
    }
    assert!(take(&Budget::new()));
    assert!(take(&TokenThrottle::new(10, 0.1)));

    #[derive(Clone)]
    struct Attempts(Budget);
    impl<E> tower::retry::Policy<Verb, u16, E> for Attempts {
        type Future = std::future::Ready<()>;
        fn retry(&mut self, _: &mut Verb, result: &mut Result<u16, E>) -> Option<Self::Future> {
            let failed = result.is_err();
            (failed && self.0.withdraw()).then(|| std::future::ready(()))
        }
        fn clone_request(&mut self, request: &Verb) -> Option<Verb> {
            Some(*request)
        }
    }
    let (calls, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::Other)));
    let budget = Budget::builder().minimum(1).build();
    let client = ServiceBuilder::new()
        .retry(Attempts(budget.clone()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    client.oneshot(Get).await.unwrap_err();
    assert_eq!(calls.lock().unwrap().len(), 11, "one, and ten retries");
    assert!(!budget.withdraw());
}

/// A whole stack makes as many retries as the budget allows, and no more.
#[tokio::test(start_paused = true)]
async fn failover_deposits_first_tries_only_and_stays_within_its_budget() {
    let (calls, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::Other)));
    for ratio in [0.01, 0.2, 0.3, 0.75, 2.0] {
        calls.lock().unwrap().clear();
        let mut client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(Idempotent::all())
                    .backoff(ms(0), ms(0))
                    .attempts(10)
                    .budget(Budget::builder().minimum(0).ratio(ratio).build()),
            )
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed([0, 1]))
            .service(make.clone());
        let mut last = None;
        for _ in 0..1000 {
            last = client.ready().await.unwrap().call(Get).await.err();
        }
        if ratio < 1.0 {
            assert_eq!(stopped(&last.unwrap()), Stopped::Budget);
        }
        let retries = calls.lock().unwrap().len() as f64 - 1000.0;
        let exact = 1000.0 * ratio;
        assert!(
            retries <= exact + 1e-6 && retries >= exact - 2.0,
            "{retries}"
        );
    }
}

/// gRFC A6: five failures take 10 tokens to 5.0, which stops retries; one success makes it 5.1.
#[tokio::test(start_paused = true)]
async fn the_token_throttle_is_grpcs() {
    let throttle = TokenThrottle::new(10, 0.1);
    for left in [9.0, 8.0, 7.0, 6.0] {
        assert!(throttle.failed());
        assert_eq!(throttle.tokens(), left);
    }
    assert!(!throttle.failed());
    assert_eq!(throttle.tokens(), 5.0);
    throttle.succeeded();
    assert_eq!(throttle.tokens(), 5.1);
    assert!(throttle.allows());
    // The count stays between 0 and the maximum.
    (0..20).for_each(|_| assert!(!throttle.failed()));
    assert_eq!(throttle.tokens(), 0.0);
    (0..200).for_each(|_| throttle.succeeded());
    assert_eq!(throttle.tokens(), 10.0);
    // Through the layer: the first request's tries are two failures and a success.
    let broken = Arc::new(Mutex::new(true));
    let script = broken.clone();
    let (calls, make) = backends(move |_| {
        let act = match *script.lock().unwrap() {
            true => Act::Fail(ErrorKind::Other),
            false => Act::Answer(200),
        };
        (Duration::ZERO, act)
    });
    let throttle = TokenThrottle::new(10, 0.1);
    let client = ServiceBuilder::new()
        .layer(
            FailoverLayer::new(Idempotent::all())
                .attempts(4)
                .budget(throttle.clone()),
        )
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..9))
        .service(make);
    let error = client.clone().oneshot(Get).await.unwrap_err();
    assert_eq!(stopped(&error), Stopped::Attempts);
    assert_eq!((throttle.tokens(), calls.lock().unwrap().len()), (6.0, 4));
    let error = client.clone().oneshot(Get).await.unwrap_err();
    assert_eq!(stopped(&error), Stopped::Budget);
    assert_eq!((throttle.tokens(), calls.lock().unwrap().len()), (5.0, 5));
    *broken.lock().unwrap() = false;
    client.oneshot(Get).await.unwrap();
    assert_eq!(throttle.tokens(), 5.1);
}

#[tokio::test(start_paused = true)]
async fn only_answers_that_are_well_fill_the_throttle() {
    let (_, make) = backends(|_| (Duration::ZERO, Act::Fail(ErrorKind::ConnectionReset)));
    let throttle = TokenThrottle::new(10, 1.0);
    (0..8).for_each(|_| assert!(throttle.failed() || throttle.tokens() <= 5.0));
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(Idempotent::when(is_get)).budget(throttle.clone()))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    client.clone().oneshot(Post).await.unwrap_err();
    assert_eq!(throttle.tokens(), 2.0, "a failure that is not tried again");
    client.oneshot(Get).await.unwrap_err();
    assert_eq!(throttle.tokens(), 1.0, "one that would be");
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let refused = |what: &str, set: fn()| {
        assert!(std::panic::catch_unwind(set).is_err(), "{what}");
    };
    refused("a ttl of nothing", || {
        drop(Budget::builder().ttl(Duration::ZERO).build())
    });
    refused("an endless ttl", || {
        drop(Budget::builder().ttl(Duration::MAX).build())
    });
    refused("a negative ratio", || {
        drop(Budget::builder().ratio(-0.1).build())
    });
    refused("no ratio", || {
        drop(Budget::builder().ratio(f64::NAN).build())
    });
    refused("no tokens", || drop(TokenThrottle::new(0, 0.1)));
    refused("no success", || drop(TokenThrottle::new(10, 0.0)));
    refused("no attempts", || {
        drop(FailoverLayer::new(ConnectErrors::default()).attempts(0));
    });
    refused("a K below one", || {
        drop(AdaptiveThrottleLayer::default().k(0.5));
    });
    refused("no window", || {
        drop(AdaptiveThrottleLayer::default().window(Duration::ZERO));
    });
    // And the largest are taken.
    let budget = Budget::builder()
        .minimum(u32::MAX)
        .ratio(100.0)
        .ttl(secs(60))
        .build();
    (0..1000).for_each(|_| budget.deposit());
    assert!(budget.withdraw());
    assert_eq!(TokenThrottle::new(1000, 1e-9).tokens(), 1000.0);
}
