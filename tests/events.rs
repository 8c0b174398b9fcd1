//! Events that a balancer logs. These tests need their own process, because `tracing` caches which
//! subscriber is interested in which event.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, discover::Change, service_fn};
use tower_lb::{
    Balance, BalanceLayer, Endpoint, IntoTarget, Outcome, RoundRobin, WatchLayer, fixed,
    from_discover,
    health::{HealthCheckLayer, Heartbeats, OutlierLayer},
};
use tracing_subscriber::{Layer as _, layer::SubscriberExt};

/// Yields often enough for the driver to act.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

struct Collect(Lines);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Collect {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Fields(BTreeMap<&'static str, String>);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }
        }
        let mut fields = Fields(BTreeMap::new());
        event.record(&mut fields);
        let field = |name| fields.0.get(name).cloned().unwrap_or_default();
        let names = ["message", "endpoint", "to", "reason", "seconds", "error"];
        let line = names.map(field).join(" ");
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        self.0
            .lock()
            .unwrap()
            .push(format!("{} {}", event.metadata().level(), line.trim()));
    }
}

fn collect() -> (Lines, tracing::subscriber::DefaultGuard) {
    let lines = Lines::default();
    let info = tracing_subscriber::filter::LevelFilter::INFO;
    let subscriber = tracing_subscriber::registry().with(Collect(lines.clone()).with_filter(info));
    (lines, tracing::subscriber::set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn changes_of_set_and_status_are_events() {
    let (lines, _guard) = collect();
    let (targets, rx) = watch::channel(vec![(0, 1), (0, 2)]);
    let balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(WatchLayer::new(rx))
        .service(|_: &Endpoint<usize>| service_fn(|()| async { Ok::<_, BoxError>(()) }));
    settle().await;
    balance.members()[0].endpoint().mark_unhealthy();
    settle().await;
    balance.members()[0].endpoint().mark_healthy();
    settle().await;
    for weight in [0, 7, 8] {
        targets.send_replace(vec![(0, weight)]);
        settle().await;
    }
    targets.send_replace(vec![]);
    settle().await;
    let expected = [
        "WARN address listed more than once: the first counts 0",
        "INFO endpoint joined 0",
        "INFO status changed 0 Unhealthy",
        "WARN too few endpoints are available: panic",
        "INFO status changed 0 Available",
        "INFO enough endpoints are available again",
        "INFO draining: no new requests 0",
        "INFO no longer draining 0",
        "INFO endpoint left 0",
    ];
    assert_eq!(*lines.lock().unwrap(), expected);
}

/// Logs only the first error in a row, because a source may fail every time it is polled.
#[tokio::test(start_paused = true)]
async fn a_discovery_error_is_an_event() {
    let (lines, _guard) = collect();
    let service = || service_fn(|()| async { Ok::<_, BoxError>(()) });
    let changes = [
        Err("away"),
        Err("away"),
        Ok(Change::Insert(0, service())),
        Err("away again"),
        Ok(Change::Insert(0, service())),
        Ok(Change::Remove(0)),
    ];
    let _balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(from_discover(tokio_stream::iter(changes)));
    // Each error is followed by a pause.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let expected = [
        "WARN discovery failed: the set stays as it is away",
        "INFO endpoint joined 0",
        "WARN discovery failed: the set stays as it is away again",
        "INFO endpoint's service replaced 0",
        "INFO endpoint left 0",
    ];
    assert_eq!(*lines.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn who_drains_drains_on_when_its_service_is_replaced() {
    let (lines, _guard) = collect();
    let (changes, rx) = mpsc::unbounded_channel();
    let endpoint = Endpoint::new((0, 0));
    let insert = || {
        let service = service_fn(|()| async { Ok::<_, BoxError>(()) });
        let change = Change::Insert(endpoint.clone(), service);
        changes.send(Ok::<_, BoxError>(change)).unwrap();
    };
    insert();
    let _balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .service(UnboundedReceiverStream::new(rx));
    settle().await;
    insert();
    settle().await;
    endpoint.set_attributes(&(0, 3).into_target());
    settle().await;
    let expected = [
        "INFO endpoint joined 0",
        "INFO draining: no new requests 0",
        "INFO endpoint's service replaced 0",
        "INFO no longer draining 0",
    ];
    assert_eq!(*lines.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn verdicts_are_events_with_reason_and_figures() {
    let (lines, _guard) = collect();
    let mut balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(
            OutlierLayer::default()
                .base_ejection(Duration::from_secs(30))
                .jitter(Duration::ZERO),
        )
        .layer(fixed([0, 1]))
        .service(|endpoint: &Endpoint<usize>| {
            let address = *endpoint.address();
            service_fn(move |()| async move {
                if address == 0 && FAILS.load(Relaxed) {
                    Err(BoxError::from("as told"))
                } else {
                    Ok(())
                }
            })
        });
    settle().await;
    lines.lock().unwrap().clear();
    for _ in 0..10 {
        let _ = balance.ready().await.unwrap().call(()).await;
    }
    settle().await;
    FAILS.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(30)).await;
    settle().await;
    for _ in 0..4 {
        let _ = balance.ready().await.unwrap().call(()).await;
    }
    let lines = lines.lock().unwrap();
    let is_ejection = |line: &&String| line.starts_with("WARN ejected 0 5 failures in a row 30");
    assert!(lines.iter().any(|line| is_ejection(&line)), "{lines:?}");
    assert!(
        lines.contains(&"INFO probes succeeded: readmitted 0".to_string()),
        "{lines:?}"
    );
}

static FAILS: AtomicBool = AtomicBool::new(true);

/// A classifier that leaves the outcome to trailers, over a completion that does not wait for them.
/// Before, silence.
#[tokio::test(start_paused = true)]
async fn outcomes_that_nobody_decides_are_told_once() {
    let (lines, _guard) = collect();
    let undecided = |_: Result<&(), &BoxError>| Outcome::Undecided;
    let mut balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(OutlierLayer::default().classify(undecided))
        .layer(fixed([0, 1]))
        .service(|_: &Endpoint<usize>| service_fn(|()| async { Ok::<_, BoxError>(()) }));
    for _ in 0..20 {
        balance.ready().await.unwrap().call(()).await.unwrap();
    }
    let lines = lines.lock().unwrap();
    let told = lines
        .iter()
        .filter(|line| line.starts_with("WARN answers leave"));
    assert_eq!(told.count(), 1, "{lines:?}");
}

/// A list that has an address twice may be refreshed every second.
#[tokio::test(start_paused = true)]
async fn an_address_listed_twice_is_one_event_while_that_lasts() {
    let (lines, _guard) = collect();
    let (targets, rx) = watch::channel(vec![0, 0, 0]);
    let _balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(WatchLayer::new(rx))
        .service(|_: &Endpoint<usize>| service_fn(|()| async { Ok::<_, BoxError>(()) }));
    settle().await;
    let warnings = || {
        let lines = lines.lock().unwrap();
        let twice = "WARN address listed more than once: the first counts 0";
        lines.iter().filter(|line| *line == twice).count()
    };
    for _ in 0..100 {
        targets.send_replace(vec![0, 0]);
        settle().await;
    }
    assert_eq!(warnings(), 1);
    targets.send_replace(vec![0]);
    settle().await;
    targets.send_replace(vec![0, 0]);
    settle().await;
    assert_eq!(warnings(), 2);
}

/// A cap that is too low for so many endpoints, while all checks hang. Before, silence.
#[tokio::test(start_paused = true)]
async fn late_checks_are_one_event_while_that_lasts() {
    let (lines, _guard) = collect();
    let hangs = |_: Endpoint<usize>, _| std::future::pending::<Result<(), BoxError>>();
    let _balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::default()))
        .layer(HealthCheckLayer::new(hangs).concurrency(1))
        .layer(fixed(0..30))
        .service(|_: &Endpoint<usize>| service_fn(|()| async { Ok::<_, BoxError>(()) }));
    let late = || {
        let lines = lines.lock().unwrap();
        let late = "WARN health checks are late: they wait for others";
        lines.iter().filter(|line| *line == late).count()
    };
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(late(), 0);
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(late(), 1);
}

#[test]
fn a_driver_that_is_gone_is_one_error() {
    let (lines, _guard) = collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.unwrap();
    let _balance: Balance<_, _, (), _> = runtime.block_on(async {
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(RoundRobin::default()))
            .layer(fixed([0]))
            .service(|_: &Endpoint<usize>| service_fn(|()| async { Ok::<_, BoxError>(()) }));
        settle().await;
        balance
    });
    drop(runtime);
    let lines = lines.lock().unwrap();
    let errors: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("ERROR"))
        .collect();
    assert_eq!(errors.len(), 1, "{lines:?}");
    assert!(errors[0].contains("driver is gone"), "{lines:?}");
}

/// Looks, at every event, into what the event may be about.
struct Curious {
    look: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>,
    heard: Lines,
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Curious {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        if let Some(look) = self.look.get() {
            look();
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.heard.lock().unwrap().push(message.0);
    }
}

/// A lock that is held during an event would stop this test for good.
async fn pass_every_transition(look: Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>) {
    let fails = Arc::new(AtomicBool::new(true));
    let told = fails.clone();
    let hour = Duration::from_secs(3600);
    let heartbeats = Heartbeats::new(hour);
    let (targets, rx) = watch::channel(vec![(0, 1), (1, 1), (2, 1)]);
    let mut balance: Balance<_, _, (), _> = ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(heartbeats.clone())
        .layer(OutlierLayer::default().max_ejected(0.4))
        .layer(WatchLayer::new(rx))
        .service(move |endpoint: &Endpoint<usize>| {
            let (address, fails) = (*endpoint.address(), told.clone());
            service_fn(move |()| {
                let answer = match address < 2 && fails.load(Relaxed) {
                    true => Err(BoxError::from("as told")),
                    false => Ok(()),
                };
                std::future::ready(answer)
            })
        });
    let (others, beats) = (balance.clone(), heartbeats.clone());
    let curious = move || {
        beats.beat(&usize::MAX);
        for member in others.members() {
            let endpoint = member.endpoint();
            let _ = (
                endpoint.status(),
                endpoint.ejection(),
                format!("{endpoint:?}"),
            );
            let mut service = member.service().clone();
            let mut ready = tokio_test::task::spawn(service.ready());
            let _ = ready.poll();
        }
    };
    look.set(Box::new(curious))
        .unwrap_or_else(|_| panic!("set once"));
    settle().await;
    let endpoints: Vec<_> = balance
        .members()
        .iter()
        .map(|m| m.endpoint().clone())
        .collect();
    // Failures in a row: one is ejected, and another may not be.
    for _ in 0..60 {
        let _ = balance.ready().await.unwrap().call(()).await;
    }
    // The probe fails: the ejection is renewed.
    tokio::time::sleep(Duration::from_secs(31)).await;
    for _ in 0..6 {
        let _ = balance.ready().await.unwrap().call(()).await;
    }
    // The probe succeeds.
    fails.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(300)).await;
    for _ in 0..6 {
        let _ = balance.ready().await.unwrap().call(()).await;
    }
    // The end of an interval judges by rates.
    fails.store(true, Relaxed);
    for round in 0..600 {
        fails.store(round % 4 > 0, Relaxed);
        let _ = balance.ready().await.unwrap().call(()).await;
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for endpoint in &endpoints {
        endpoint.mark_unhealthy();
        endpoint.mark_healthy();
        endpoint.eject(tokio::time::Instant::now() + hour);
        endpoint.readmit();
    }
    tokio::time::sleep(2 * hour).await;
    for endpoint in &endpoints {
        assert!(heartbeats.beat(endpoint.address()));
    }
    settle().await;
    for list in [vec![(0, 0), (1, 1)], vec![(0, 5), (3, 1)], vec![]] {
        targets.send_replace(list);
        settle().await;
    }
}

#[test]
fn who_hears_of_a_change_may_look_at_what_has_changed() {
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (look, heard) = (Arc::default(), Lines::default());
        let curious = Curious {
            look: Arc::clone(&look),
            heard: heard.clone(),
        };
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(curious));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(pass_every_transition(look));
        ended.send(heard).unwrap();
    });
    // Ends in a fraction of a second, or never.
    let heard = end.recv_timeout(Duration::from_secs(60));
    let heard = heard.expect("no deadlock");
    let heard = heard.lock().unwrap();
    for message in [
        "endpoint joined",
        "ejected",
        "not ejected",
        "status changed",
        "probes succeeded: readmitted",
        "no heartbeat for too long: unhealthy",
        "heartbeats are back",
        "draining: no new requests",
        "endpoint left",
    ] {
        assert!(
            heard.iter().any(|heard| heard == message),
            "{message}: {heard:?}"
        );
    }
}

/// One event for each change of a source's state, however often it is asked.
#[tokio::test(start_paused = true)]
async fn a_source_that_fails_and_recovers_is_two_events() {
    let (lines, _guard) = collect();
    let (says, hears) = watch::channel(Ok(vec![1_usize, 2]));
    let found = tower_lb::discover::poll(Duration::from_secs(1), move || {
        let answer: Result<Vec<usize>, &str> = hears.borrow().clone();
        async move { answer }
    });
    let found = found.named("users").start().expect("a runtime");
    for answer in [Ok(vec![1, 2]), Err("away"), Ok(vec![2, 1]), Ok(vec![])] {
        drop(says.send_replace(answer));
        tokio::time::sleep(Duration::from_secs(100)).await;
    }
    let lines = lines.lock().unwrap();
    let expected = [
        "WARN the source fails: the last set stays away",
        "INFO the source is well again",
        "WARN the source answers with nothing: the last set stays",
        "WARN the source answers with nothing, and still does: believed",
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    assert_eq!(lines, expected);
    assert!(found.targets().is_empty());
}
