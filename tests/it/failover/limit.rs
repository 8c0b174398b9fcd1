//! Throttling and limits.

use super::*;

/// Checks the share of rejected requests against `max(0, 1 - 2 / offered)`, where `offered` is in
/// multiples of what the backend accepts. Up to 2 nothing is rejected.
#[test]
fn an_adaptive_throttle_rejects_what_the_backends_would() {
    for (offered, expected) in [
        (0.5, 0.0),
        (1.5, 0.0),
        (2.0, 0.0),
        (3.0, 0.333),
        (4.0, 0.5),
        (10.0, 0.8),
    ] {
        run(async move {
            const ACCEPTED: u32 = 50;
            let start = Instant::now();
            let accepted = Arc::new(Mutex::new((0_u64, 0_u32)));
            let backend = service_fn(move |()| {
                let second = start.elapsed().as_secs();
                let mut accepted = accepted.lock().unwrap();
                if accepted.0 != second {
                    *accepted = (second, 0);
                }
                accepted.1 += 1;
                let is_accepted = accepted.1 <= ACCEPTED;
                std::future::ready(is_accepted.then_some(()).ok_or("too many"))
            });
            let mut client = AdaptiveThrottleLayer::default().seeded(3).layer(backend);
            let per_second = (f64::from(ACCEPTED) * offered) as u32;
            let (mut rejected, mut sent) = (0_u32, 0_u32);
            for i in 0..per_second * 600 {
                tokio::time::sleep_until(start + secs(1) * i / per_second).await;
                let answer = client.ready().await.unwrap().call(()).await;
                // Counts only once the window has been filled twice.
                if start.elapsed() >= secs(300) {
                    sent += 1;
                    rejected += u32::from(answer.is_err_and(|error| error.is::<Throttled>()));
                }
            }
            let share = f64::from(rejected) / f64::from(sent);
            println!("offered {offered}: {share:.4} rejected, expected {expected}");
            assert!((share - expected).abs() <= 0.01, "{share} at {offered}");
        });
    }
}

/// Before, of 10, 100 and 1000 requests at once, 74, 95 and 99 % were rejected, and 93 % of 1000 a
/// second that take a second each.
#[tokio::test(start_paused = true)]
async fn a_healthy_backend_is_not_throttled_for() {
    let slow = service_fn(|()| async {
        sleep(secs(1)).await;
        Ok::<_, BoxError>(())
    });
    for at_once in [10, 100, 1000] {
        let throttle = AdaptiveThrottleLayer::default().layer(slow);
        let burst = (0..at_once).map(|_| tokio::spawn(throttle.clone().oneshot(())));
        for answer in burst.collect::<Vec<_>>() {
            answer.await.unwrap().unwrap();
        }
    }
    for per_second in [100, 1000] {
        let throttle = AdaptiveThrottleLayer::default().layer(slow);
        let mut answers = Vec::new();
        for _ in 0..30 * per_second {
            answers.push(tokio::spawn(throttle.clone().oneshot(())));
            sleep(secs(1) / per_second).await;
        }
        for answer in answers {
            answer.await.unwrap().unwrap();
        }
    }
}

/// Before, it took ten minutes.
#[tokio::test(start_paused = true)]
async fn a_minute_after_an_outage_all_is_well() {
    for per_second in [1, 100, 1000] {
        let works = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_up = works.clone();
        let backend = service_fn(move |()| {
            let is_up = is_up.load(std::sync::atomic::Ordering::Relaxed);
            std::future::ready(is_up.then_some(()).ok_or("down"))
        });
        let mut client = AdaptiveThrottleLayer::default().seeded(1).layer(backend);
        let mut pass = async |seconds: u32| {
            let mut passed = 0;
            for _ in 0..seconds * per_second {
                let probability = client.probability();
                assert!((0.0..=1.0).contains(&probability), "{probability}");
                let answer = client.ready().await.unwrap().call(()).await;
                passed += u32::from(answer.is_ok());
                sleep(secs(1) / per_second).await;
            }
            f64::from(passed) / f64::from(seconds * per_second)
        };
        assert_eq!(pass(180).await, 0.0);
        works.store(true, std::sync::atomic::Ordering::Relaxed);
        pass(59).await;
        let passed = pass(10).await;
        assert!(passed >= 0.95, "{passed} at {per_second} a second");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_given_up_is_as_if_it_had_not_been_throttled_for() {
    let hanging = service_fn(|()| std::future::pending::<Result<(), BoxError>>());
    let throttle = AdaptiveThrottleLayer::default().layer(hanging);
    for _ in 0..100 {
        assert!(timeout(ms(1), throttle.clone().oneshot(())).await.is_err());
    }
    assert_eq!(throttle.probability(), 0.0);
    // A backend that fails every request makes the throttle reject nearly all. Ten seconds later
    // this is forgotten.
    let broken = service_fn(|()| std::future::ready(Err::<(), _>("no")));
    let mut throttle = AdaptiveThrottleLayer::default().layer(broken);
    for _ in 0..1000 {
        throttle.ready().await.unwrap().call(()).await.unwrap_err();
    }
    assert!(throttle.probability() > 0.99);
    advance(secs(10)).await;
    assert_eq!(throttle.probability(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_rejects_by_name_and_makes_room_again() {
    let (_, make) = one_slow(ms(100), Act::Answer(200));
    let client = ServiceBuilder::new()
        .layer(LimitLayer::new(2).named("payments"))
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed([0]))
        .service(make);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(tokio::spawn(client.clone().oneshot(Get)));
    }
    settle().await;
    assert_eq!(client.in_flight(), 2);
    let error = answers.pop().unwrap().await.unwrap().unwrap_err();
    let limit = error.downcast_ref::<LimitReached>().unwrap();
    assert_eq!((limit.max(), limit.name()), (2, Some("payments")));
    assert_eq!(
        error.to_string(),
        "payments: the limit of 2 requests in flight is reached"
    );
    // One request ends and one is cancelled.
    answers.pop().unwrap().abort();
    answers.pop().unwrap().await.unwrap().unwrap();
    settle().await;
    assert_eq!(client.in_flight(), 0);
    client.clone().oneshot(Get).await.unwrap();
    let none = LimitLayer::new(0).layer(client);
    assert!(none.oneshot(Get).await.unwrap_err().is::<LimitReached>());
}

/// tower's own layers do what the module's docs say of them.
#[tokio::test(start_paused = true)]
async fn towers_limits_work_for_each_endpoint_and_for_the_whole() {
    let (calls, make) = one_slow(ms(100), Act::Answer(200));
    let client = ServiceBuilder::new()
        .load_shed()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(ConcurrencyLimitLayer::new(1)))
        .layer(fixed([0, 1]))
        .service(make);
    settle().await;
    let mut handles: Vec<_> = (0..3).map(|_| client.clone()).collect();
    let mut answers = Vec::new();
    for handle in &mut handles {
        answers.push(handle.ready().await.unwrap().call(Get));
    }
    // A full endpoint is passed over. When both are full, the third request is shed.
    assert_eq!(*calls.lock().unwrap(), [0, 1]);
    let error = answers.pop().unwrap().await.unwrap_err();
    assert!(error.is::<Overloaded>());
    for answer in answers {
        answer.await.unwrap();
    }
    // Without shedding, readiness waits.
    let (_, make) = one_slow(ms(100), Act::Answer(200));
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(each(ConcurrencyLimitLayer::new(1)))
        .layer(fixed([0]))
        .service(make);
    settle().await;
    let answer = client.ready().await.unwrap().call(Get);
    assert!(poll_ready_once(&mut client).await.is_pending());
    answer.await.unwrap();
    assert!(poll_ready_once(&mut client).await.is_ready());
}
