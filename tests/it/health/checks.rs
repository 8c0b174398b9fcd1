//! Health checks.

use std::{future::Ready, task::Poll};

use super::*;

/// The result of the checks of each server, and how many there were.
#[derive(Clone)]
struct Doctor(Arc<Mutex<HashMap<usize, (bool, usize)>>>);

trait Check: Fn(Endpoint<usize>, Client) -> Ready<Result<(), &'static str>> + Clone {}
impl<F: Fn(Endpoint<usize>, Client) -> Ready<Result<(), &'static str>> + Clone> Check for F {}

impl Doctor {
    fn new(n: usize) -> Self {
        Self(Arc::new(Mutex::new(
            (0..n).map(|server| (server, (true, 0))).collect(),
        )))
    }

    fn say(&self, server: usize, well: bool) {
        self.0.lock().unwrap().get_mut(&server).unwrap().0 = well;
    }

    fn asked(&self, server: usize) -> usize {
        self.0.lock().unwrap()[&server].1
    }

    fn check(&self, server: usize) -> Result<(), &'static str> {
        let mut all = self.0.lock().unwrap();
        let (well, asked) = all.get_mut(&server).unwrap();
        *asked += 1;
        well.then_some(()).ok_or("sick")
    }

    fn layer(&self) -> HealthCheckLayer<impl Check + use<>> {
        let doctor = self.clone();
        HealthCheckLayer::new(move |endpoint: Endpoint<usize>, _: Client| {
            std::future::ready(doctor.check(*endpoint.address()))
        })
        .jitter(Duration::ZERO)
        .initial_jitter(Duration::ZERO)
    }
}

/// A balancer over `$n` servers that all answer, checked by `$layer`.
macro_rules! checked {
    ($n:expr, $layer:expr) => {
        Balance::<_, _, (), usize>::new(
            $layer.layer(fixed(0..$n).layer(factory(&servers(&[ANSWER; $n])))),
            RoundRobin::seeded(1),
        )
    };
}

async fn pass(secs: u64) {
    for _ in 0..secs {
        advance(Duration::from_secs(1)).await;
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_failures_make_unhealthy_and_two_successes_healthy() {
    let doctor = Doctor::new(2);
    let balance = checked!(2, doctor.layer());
    settle().await;
    assert_eq!(doctor.asked(0), 1, "at once");
    doctor.say(0, false);
    pass(29).await;
    assert_eq!(
        (doctor.asked(0), statuses(&balance)[0]),
        (3, Status::Available)
    );
    pass(1).await;
    assert_eq!(
        (doctor.asked(0), statuses(&balance)[0]),
        (4, Status::Unhealthy)
    );
    assert_eq!(statuses(&balance)[1], Status::Available);
    doctor.say(0, true);
    pass(10).await;
    assert_eq!(
        statuses(&balance)[0],
        Status::Unhealthy,
        "one success is not enough"
    );
    doctor.say(0, false);
    pass(10).await;
    doctor.say(0, true);
    pass(10).await;
    assert_eq!(statuses(&balance)[0], Status::Unhealthy, "not two in a row");
    pass(10).await;
    assert_eq!(statuses(&balance)[0], Status::Available);
}

#[tokio::test(start_paused = true)]
async fn who_must_be_checked_first_takes_nothing_until_the_first_success() {
    let doctor = Doctor::new(2);
    doctor.say(0, false);
    let layer = doctor.layer().until_first_check(UntilFirstCheck::Unhealthy);
    let balance = checked!(2, layer);
    settle().await;
    assert_eq!(statuses(&balance), [Status::Unhealthy, Status::Available]);
}

/// One of three is up. Before, more than half of the first requests went to the others.
#[tokio::test(start_paused = true)]
async fn nobody_is_asked_before_the_first_check_tells_of_it() {
    let servers = servers(&[ANSWER, FAIL, FAIL]);
    let (targets, rx) = watch::channel(vec![0, 1, 2]);
    let checks = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
        let address = *endpoint.address();
        tokio::time::sleep(ms(100 * (3 - address as u64))).await;
        if address == 0 { Ok(()) } else { Err("down") }
    });
    let mut balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)).panic_threshold(0.3))
        .layer(checks.until_first_check(UntilFirstCheck::Unhealthy))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    assert_eq!(statuses(&balance), [Status::Unknown; 3]);
    // The first two results are failures, and the third is still awaited.
    tokio::time::sleep(ms(150)).await;
    assert_eq!(
        statuses(&balance),
        [Status::Unknown, Status::Unknown, Status::Unhealthy]
    );
    assert_eq!(call(&mut balance).await.unwrap(), 0);
    assert_eq!(
        statuses(&balance),
        [Status::Available, Status::Unhealthy, Status::Unhealthy]
    );
    // Those that join do not count among those that are away.
    targets.send_replace(vec![0]);
    settle().await;
    targets.send_replace(vec![0, 1, 2]);
    settle().await;
    for _ in 0..30 {
        assert_eq!(call(&mut balance).await.unwrap(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn callers_wait_for_the_first_check_when_nobody_else_is_there() {
    for well in [true, false] {
        let server = Server::new(0, ANSWER);
        let checks = HealthCheckLayer::new(move |_: Endpoint<usize>, _: Client| async move {
            tokio::time::sleep(ms(100)).await;
            if well { Ok(()) } else { Err("down") }
        });
        let mut balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)).fail_closed())
            .layer(checks.until_first_check(UntilFirstCheck::Unhealthy))
            .layer(fixed([0]))
            .service(factory(&[server]));
        let start = Instant::now();
        assert_eq!(call(&mut balance).await.is_ok(), well);
        let waited = start.elapsed();
        assert!((ms(100)..ms(110)).contains(&waited), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_edges_are_looked_at_sooner_and_the_idle_later() {
    let doctor = Doctor::new(3);
    let layer = doctor
        .layer()
        .edge_interval(Duration::from_secs(1))
        .idle_interval(Duration::from_secs(60));
    let mut balance = checked!(3, layer);
    settle().await;
    doctor.say(0, false);
    for _ in 0..12 {
        // The third endpoint gets no traffic.
        balance.members()[2].endpoint().mark_unhealthy();
        settle().await;
        calls(&mut balance, 4).await;
        pass(1).await;
    }
    // There was no traffic before the first check, so the next one of each endpoint is at 60 s.
    assert_eq!([0, 1, 2].map(|i| doctor.asked(i)), [1, 1, 1]);
    for _ in 0..50 {
        calls(&mut balance, 4).await;
        pass(1).await;
    }
    assert_eq!([1, 2].map(|i| doctor.asked(i)), [2, 2]);
    assert_eq!(
        (doctor.asked(0), statuses(&balance)[0]),
        (4, Status::Unhealthy),
        "at 60, 61 and 62 s"
    );
    for _ in 0..20 {
        calls(&mut balance, 4).await;
        pass(1).await;
    }
    assert_eq!([1, 2].map(|i| doctor.asked(i)), [4, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_takes_too_long_or_panics_has_failed() {
    let layer = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| async move {
        match endpoint.address() {
            0 => std::future::pending().await,
            1 => panic!("a check that panics, as it should"),
            _ => Ok::<_, String>(()),
        }
    });
    let layer = layer.unhealthy_after(1).jitter(Duration::ZERO);
    let balance = checked!(3, layer.initial_jitter(Duration::ZERO));
    settle().await;
    assert_eq!(
        statuses(&balance),
        [Status::Available, Status::Unhealthy, Status::Available]
    );
    pass(1).await;
    assert_eq!(
        statuses(&balance),
        [Status::Unhealthy, Status::Unhealthy, Status::Available]
    );
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_before_it_starts_has_failed_too_and_no_interval_is_too_long() {
    let layer = HealthCheckLayer::new(|endpoint: Endpoint<usize>, _: Client| {
        assert_ne!(*endpoint.address(), 0, "a check that panics, as it should");
        std::future::ready(Ok::<_, String>(()))
    });
    let layer = layer
        .unhealthy_after(1)
        .interval(Duration::MAX)
        .jitter(Duration::MAX)
        .initial_jitter(Duration::ZERO);
    let balance = checked!(2, layer);
    settle().await;
    assert_eq!(statuses(&balance), [Status::Unhealthy, Status::Available]);
}

#[tokio::test(start_paused = true)]
async fn checks_go_through_the_service_side_by_side_up_to_a_cap_and_stop_with_the_balancer() {
    let running = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let at_once = running.clone();
    let layer = HealthCheckLayer::new(move |_: Endpoint<usize>, service: Client| {
        let running = at_once.clone();
        async move {
            running
                .1
                .fetch_max(running.0.fetch_add(1, Relaxed) + 1, Relaxed);
            tokio::time::sleep(ms(500)).await;
            running.0.fetch_sub(1, Relaxed);
            service.oneshot(()).await.map(drop)
        }
    });
    let servers = servers(&[ANSWER; 10]);
    let balance: Balance<_, Client, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(layer.concurrency(4).initial_jitter(Duration::ZERO))
        .layer(fixed(0..10))
        .service(factory(&servers));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let calls = || servers.iter().map(Server::calls).sum::<usize>();
    assert_eq!((running.1.load(Relaxed), calls()), (4, 10));
    drop(balance);
    pass(60).await;
    assert_eq!(calls(), 10);
}

#[tokio::test(start_paused = true)]
async fn checks_and_outliers_object_separately_and_a_check_may_end_an_ejection() {
    for ends_ejection in [false, true] {
        let doctor = Doctor::new(2);
        let servers = servers(&[FAIL, ANSWER]);
        let mut layer = doctor.layer();
        if !ends_ejection {
            layer = layer.keep_ejections();
        }
        let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(OutlierLayer::default().base_ejection(Duration::from_secs(30)))
            .layer(layer)
            .layer(fixed(0..2))
            .service(factory(&servers));
        settle().await;
        pass(5).await;
        calls(&mut balance, 12).await;
        assert!(is_ejected(&statuses(&balance)[0]));
        pass(6).await;
        // The check at 10 s was a success.
        assert_eq!(is_ejected(&statuses(&balance)[0]), !ends_ejection);
        if ends_ejection {
            servers[0].behave(ANSWER);
            calls(&mut balance, 12).await;
            assert!(servers[0].calls() > 8, "probed at once, and back");
        } else {
            doctor.say(0, false);
            pass(30).await;
            assert_eq!(
                statuses(&balance)[0],
                Status::Unhealthy,
                "its ejection is over"
            );
        }
    }
}

/// Somebody takes an endpoint out by hand. A check knows nothing of the reason.
#[tokio::test(start_paused = true)]
async fn a_check_ends_no_ejection_but_those_of_outlier_detection() {
    let doctor = Doctor::new(2);
    let balance = checked!(2, doctor.layer());
    settle().await;
    let until = Instant::now() + Duration::from_secs(3600);
    balance.members()[0].endpoint().eject(until);
    pass(60).await;
    assert_eq!(statuses(&balance)[0], Status::Ejected { until });
}

/// A check that hangs, for all servers but each tenth.
async fn hangs(endpoint: Endpoint<usize>, _: Client) -> Result<(), &'static str> {
    if endpoint.address() % 10 != 0 {
        std::future::pending::<()>().await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn when_thousands_hang_it_shows_as_soon_as_when_one_does() {
    const N: usize = 5000;
    let layer = HealthCheckLayer::new(hangs).seeded(1);
    let balance = Balance::<_, _, (), usize>::new(
        layer.layer(fixed(0..N).layer(factory(&servers(&[ANSWER; N])))),
        RoundRobin::seeded(1),
    );
    // Three checks that hang, the first within 10 s, with 10 to 11 s between.
    // Timers are late by up to a millisecond.
    tokio::time::sleep(Duration::from_millis(35_020)).await;
    settle().await;
    let unhealthy = statuses(&balance);
    let unhealthy = unhealthy.iter().filter(|&&s| s == Status::Unhealthy);
    let unhealthy = unhealthy.count();
    // Of so many, some draw nearly the longest times, and timers are late by a millisecond.
    assert!(
        (N / 10 * 9 - 5..=N / 10 * 9).contains(&unhealthy),
        "{unhealthy}"
    );
}

/// A new set is not checked in one burst, and many clients do not check it at the same moments.
#[tokio::test(start_paused = true)]
async fn the_first_checks_come_at_random_parts_of_the_interval() {
    let doctor = Doctor::new(1000);
    let layer = HealthCheckLayer::new({
        let doctor = doctor.clone();
        move |endpoint: Endpoint<usize>, _: Client| {
            std::future::ready(doctor.check(*endpoint.address()))
        }
    });
    let _balance = checked!(1000, layer.seeded(1));
    settle().await;
    let asked = || (0..1000).map(|server| doctor.asked(server)).sum::<usize>();
    for second in 1..=10 {
        pass(1).await;
        let expected = 100 * second;
        let asked = asked();
        assert!(asked.abs_diff(expected) < 50, "{asked} in {second} s");
    }
}

#[tokio::test(start_paused = true)]
async fn checks_that_end_at_once_give_the_thread_back() {
    let checks = Arc::new(AtomicUsize::new(0));
    let count = checks.clone();
    let layer = HealthCheckLayer::new(move |_: Endpoint<usize>, _: Client| {
        count.fetch_add(1, Relaxed);
        std::future::ready(Ok::<_, String>(()))
    });
    let layer = layer.jitter(Duration::ZERO);
    let balance = checked!(2000, layer.initial_jitter(Duration::ZERO));
    settle().await;
    let before = checks.load(Relaxed);
    assert_eq!(before, 2000);
    // A task that is always ready to run: `yield_now` would wait until no other one is.
    let (mut before, mut most, mut turns) = (before, 0, 0);
    let other = tokio::spawn(std::future::poll_fn(move |cx| {
        let now = checks.load(Relaxed);
        most = most.max(now - before);
        before = now;
        turns += 1;
        if now == 4000 || turns == 10_000 {
            return Poll::Ready(most);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }));
    settle().await;
    // All are due at once.
    advance(Duration::from_secs(10)).await;
    let most = other.await.unwrap();
    assert!((1..=256).contains(&most), "{most} checks without a pause");
    drop(balance);
}
