//! Handles, their driver, and what they show of the members.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_driver_can_be_kept_by_the_caller() {
    let servers = answering(1);
    let discover = fixed([0]).layer(factory(&servers));
    let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let driver = tokio::spawn(driver);
    assert_eq!(balance.clone().oneshot(()).await.unwrap(), 0);
    assert!(!driver.is_finished());
    drop(balance);
    driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_driver_dropped_before_the_first_report_leaves_nobody_waiting() {
    let servers = answering(1);
    let discover = fixed([0]).layer(factory(&servers));
    let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let request = tokio::spawn(balance.oneshot(()));
    settle().await;
    drop(driver);
    assert!(request.await.unwrap().unwrap_err().is::<NotDriven>());
}

#[tokio::test(start_paused = true)]
async fn layers_above_and_below_find_what_they_expect() {
    // A limit below the balancer: two endpoints take one request each, and the third is shed.
    let servers = answering(2);
    let shedding = ServiceBuilder::new()
        .load_shed()
        .layer(BalanceLayer::new(p2c(17)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(each(ConcurrencyLimitLayer::new(1)))
        .layer(fixed(0..2))
        .service(factory(&servers));
    settle().await;
    let requests: Vec<_> = (0..3)
        .map(|_| tokio::spawn(shedding.clone().oneshot(())))
        .collect();
    let mut shed = 0;
    for request in requests {
        shed += usize::from(request.await.unwrap().is_err());
    }
    assert_eq!(shed, 1);
    // A limit above it: at most two requests are in flight in all, and the third waits.
    let (_targets, rx) = watch::channel(weights(2));
    let limited = ConcurrencyLimit::new(over(&servers, BalanceLayer::new(p2c(18)), rx), 2);
    let start = Instant::now();
    let requests: Vec<_> = (0..3)
        .map(|_| tokio::spawn(limited.clone().oneshot(())))
        .collect();
    for request in requests {
        request.await.unwrap().unwrap();
    }
    assert_eq!(start.elapsed(), ms(2));
}

#[tokio::test(start_paused = true)]
async fn the_dashboard_sees_what_there_is() {
    let servers = servers(&[Behaviour::Hang; 2]);
    let (_targets, rx) = watch::channel(vec![(0, 1), (1, 3)]);
    let balance = over(&servers, BalanceLayer::new(p2c(19)), rx);
    settle().await;
    let born = Instant::now();
    advance(ms(5)).await;
    endpoint(&balance, 0).mark_unhealthy();
    settle().await;
    let mut handle = balance.clone();
    let _answer = handle.ready().await.unwrap().call(());
    let rows: Vec<_> = balance
        .members()
        .iter()
        .map(|member| {
            let endpoint = member.endpoint();
            let since = endpoint.status_since() - born;
            (
                *endpoint.address(),
                member.weight(),
                endpoint.status(),
                member.service().in_flight(),
                member.load(),
                since,
            )
        })
        .collect();
    let expected = [
        (0, 1, Status::Unhealthy, 0, 0, ms(5)),
        (1, 3, Status::Available, 1, 1, ms(0)),
    ];
    assert_eq!(rows, expected);
}

#[tokio::test(start_paused = true)]
async fn handles_draw_from_streams_of_their_own() {
    let picks = async |seed: Option<u64>| {
        let servers = answering(16);
        let policy = seed.map_or_else(Random::default, Random::seeded);
        let balance: Balance<_, _, (), _> = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy))
            .layer(fixed(0..16))
            .service(factory(&servers));
        settle().await;
        let mut picks = Vec::new();
        for mut handle in [balance.clone(), balance.clone(), balance] {
            let mut row = Vec::new();
            for _ in 0..20 {
                row.push(handle.ready().await.unwrap().call(()).await.unwrap());
            }
            picks.push(row);
        }
        picks
    };
    let seeded = picks(Some(7)).await;
    assert_eq!(seeded, picks(Some(7)).await, "a seed repeats the run");
    assert!(
        seeded[0] != seeded[1] && seeded[1] != seeded[2],
        "clones share no stream"
    );
    assert_ne!(
        picks(None).await,
        picks(None).await,
        "no seed, no repetition"
    );
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_has_ended_holds_nothing() {
    let servers = answering(1);
    let client = servers[0].client();
    let alive = client.alive();
    let (targets, rx) = watch::channel(vec![0]);
    let client = std::sync::Mutex::new(Some(client));
    let discover = WatchLayer::new(rx)
        .layer(move |_: &Endpoint<usize>| client.lock().unwrap().take().unwrap());
    let (balance, mut driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
    let mut polled = tokio_test::task::spawn(&mut driver);
    tokio_test::assert_pending!(polled.poll());
    drop(polled);
    assert_eq!(balance.members().len(), 1);
    drop(balance);
    (&mut driver).await;
    assert_eq!(alive.strong_count(), 0);
    assert!(targets.is_closed());
    (&mut driver).await;
}

/// Handles are dropped on two threads while the driver runs on a third. The driver must end each
/// time.
#[test]
fn the_driver_ends_whenever_the_last_handle_goes() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    for _ in 0..500 {
        let servers = answering(2);
        let discover = fixed(0..2).layer(factory(&servers));
        let (balance, driver) = Balance::<_, _, (), _>::pair(discover, RoundRobin::default());
        let driver = runtime.spawn(driver);
        let clone = balance.clone();
        let thread = std::thread::spawn(move || drop(clone));
        drop(balance);
        thread.join().unwrap();
        let ended = async { timeout(Duration::from_secs(10), driver).await };
        runtime.block_on(ended).expect("the driver ends").unwrap();
    }
}

fn build() -> Balance<RoundRobin, Client, (), usize> {
    ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(fixed(0..2))
        .service(factory(&answering(2)))
}

#[test]
#[should_panic(expected = "take `Balance::pair`")]
fn outside_a_runtime_the_panic_names_the_mend() {
    build();
}

#[test]
#[should_panic(expected = "`BalanceLayer` and `Balance::new` spawn")]
fn a_runtime_without_timers_is_refused_at_once() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    let _guard = runtime.enter();
    build();
}

#[tokio::test(start_paused = true)]
async fn a_watcher_lists_members_after_boxing_and_keeps_nothing_alive() {
    let servers = answering(2);
    let (targets, rx) = watch::channel(weights(2));
    let balance = over(&servers, BalanceLayer::new(p2c(1)), rx);
    let watcher = balance.watcher();
    let statuses = balance.clone();
    let client = tower::util::BoxCloneSyncService::new(balance);
    settle().await;
    let mut one = client.clone();
    let answer = start(&mut one).await;
    drop(one);
    let in_flight: usize = watcher
        .members()
        .iter()
        .filter_map(MemberView::in_flight)
        .sum();
    assert_eq!(in_flight, 1);
    assert!(
        watcher
            .members()
            .iter()
            .all(|member| member.load().is_some())
    );
    answer.await.unwrap();
    targets.send_replace(vec![(0, 3)]);
    settle().await;
    let members = watcher.members();
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].weight(), members[0].is_candidate()), (3, true));
    let untracked = statuses.watcher_without_loads().members();
    assert_eq!(
        (untracked[0].in_flight(), untracked[0].load()),
        (None, None)
    );
    drop((client, statuses));
    settle().await;
    assert!(watcher.clone().members().is_empty());
}
