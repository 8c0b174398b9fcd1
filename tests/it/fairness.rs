//! Nobody starves: endpoints that join, restart or weigh little get what is due to them.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_lb::*;

use crate::support::*;

/// Before, nothing for 5 s and 7 % of its share in the first minute.
#[tokio::test(start_paused = true)]
async fn a_newcomer_soon_has_its_share_of_peak_ewma() {
    for (known, joins) in [
        (vec![1, 1, 1, 1], 1),
        (vec![1, 5, 30, 1, 5, 30, 1, 5, 30, 5], 5),
    ] {
        let n = known.len();
        let behaviours = known.iter().chain([&joins]);
        let behaviours: Vec<_> = behaviours.map(|&m| Behaviour::Answer(ms(m))).collect();
        let servers = servers(&behaviours);
        let (targets, rx) = watch::channel((0..n).collect::<Vec<_>>());
        let client = ServiceBuilder::new()
            .layer(BalanceLayer::new(p2c(1)))
            .layer(each(PeakEwmaLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        send(client.clone(), &servers, 1000, 10, None).await;
        targets.send_replace((0..=n).collect());
        send(client.clone(), &servers, 1000, 1, None).await;
        let mut seconds = Vec::new();
        for _ in 0..30 {
            seconds.push(send(client.clone(), &servers, 1000, 1, None).await.0);
        }
        for window in seconds.windows(10) {
            let calls = |server| window.iter().map(|calls| calls[server]).sum::<usize>() as f64;
            let peers: Vec<_> = (0..n).filter(|&peer| known[peer] == joins).collect();
            let fair = peers.iter().map(|&peer| calls(peer)).sum::<f64>() / peers.len() as f64;
            let got = calls(n) / fair;
            println!("{got}");
            assert!((0.9..1.1).contains(&got), "{got} of its share, {window:?}");
        }
    }
}

/// A server that works on one request at a time, and refuses connections while it restarts.
#[derive(Clone)]
struct Worker {
    free: Arc<Semaphore>,
    down_until: Arc<std::sync::Mutex<Instant>>,
}

impl Worker {
    fn new() -> Self {
        Self {
            free: Arc::new(Semaphore::new(1)),
            down_until: Arc::new(std::sync::Mutex::new(Instant::now())),
        }
    }

    async fn work(self, time: Duration) -> Result<(), std::io::Error> {
        if Instant::now() < *self.down_until.lock().unwrap() {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let _permit = self.free.acquire().await.unwrap();
        sleep(time).await;
        Ok(())
    }
}

/// Returns the 99th percentile and the number of errors at a load of .5, in ms.
async fn p99(restarts: bool) -> (u128, usize) {
    const SECONDS: u32 = 120;
    let workers: Vec<_> = (0..5).map(|_| Worker::new()).collect();
    let of = workers.clone();
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(ConnectErrors::default()).seeded(1))
        .layer(BalanceLayer::new(p2c(1)))
        .layer(OutlierLayer::default().seeded(1))
        .layer(each(PeakEwmaLayer::default()))
        .layer(fixed(0..5))
        .service(move |endpoint: &Endpoint<usize>| {
            let worker = of[*endpoint.address()].clone();
            service_fn(move |time| worker.clone().work(time))
        });
    if restarts {
        tokio::spawn(async move {
            for worker in workers.iter().cycle() {
                sleep(ms(2500)).await;
                *worker.down_until.lock().unwrap() = Instant::now() + ms(300);
            }
        });
    }
    let mut random = 1_u64;
    let mut draw = || {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        -((random >> 11) as f64 / (1_u64 << 53) as f64)
            .max(1e-9)
            .ln()
    };
    let start = Instant::now();
    let mut at = start;
    let mut answers = Vec::new();
    while at < start + Duration::from_secs(SECONDS.into()) {
        // 20 ms each, so 125 a second keep half of five busy.
        at += ms(8).mul_f64(draw());
        sleep_until(at).await;
        let (client, time) = (client.clone(), ms(20).mul_f64(draw()));
        answers.push(tokio::spawn(async move {
            let sent = Instant::now();
            client.oneshot(time).await.map(|()| sent.elapsed())
        }));
    }
    let mut took = Vec::new();
    let mut errors = 0;
    for answer in answers {
        match answer.await.unwrap() {
            Ok(time) => took.push(time.as_millis()),
            Err(_) => errors += 1,
        }
    }
    took.sort_unstable();
    (took[took.len() * 99 / 100], errors)
}

#[tokio::test(start_paused = true)]
async fn restarts_in_turn_do_not_show() {
    let (quiet, _) = p99(false).await;
    let (busy, errors) = p99(true).await;
    println!("{quiet} ms, with restarts {busy} ms, {errors} errors");
    assert_eq!(errors, 0);
    assert!(busy as f64 <= 1.2 * quiet as f64, "{busy}");
}

/// Latencies of like servers differ by chance. Before, the weight counted twice, in the draw and in
/// the division: .02 to .004 for .20, and .001 to .011 for .048.
#[tokio::test(start_paused = true)]
async fn small_weights_get_their_due_of_peak_ewma_from_one_caller() {
    async fn check<P>(policy: P, weights: &[u32], slow_start: bool) -> f64
    where
        P: Policy<usize, PeakEwma<Client>, ()> + Clone,
    {
        let servers = servers(&vec![Behaviour::Answer(ms(10)); weights.len()]);
        let mut targets: Vec<(usize, u32)> = weights.iter().copied().enumerate().collect();
        let joins = slow_start.then(|| targets.pop()).flatten();
        let (list, rx) = watch::channel(targets);
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(policy).slow_start(SlowStart::default()))
            .layer(each(PeakEwmaLayer::default()))
            .layer(WatchLayer::new(rx))
            .service(factory(&servers));
        let mut jitter = (0..).map(|i: u64| ms(9 + i * 7 % 3));
        let mut run = async |requests: u32| {
            for _ in 0..requests {
                let time = jitter.next().unwrap();
                servers
                    .iter()
                    .for_each(|server| server.behave(Behaviour::Answer(time)));
                start(&mut client).await.await.unwrap();
            }
        };
        sleep(Duration::from_secs(90)).await;
        run(1000).await;
        if let Some(joins) = joins {
            list.send_modify(|targets| targets.push(joins));
            // The share is a tenth until the sixth second.
            sleep(ms(1)).await;
        }
        let last = weights.len() - 1;
        let before: Vec<_> = servers.iter().map(Server::calls).collect();
        run(if slow_start { 500 } else { 10_000 }).await;
        let calls = servers
            .iter()
            .zip(before)
            .map(|(server, before)| server.calls() - before);
        share(&calls.collect::<Vec<_>>(), last)
    }
    let cases: [(&[u32], bool, f64); 4] = [
        (&[4, 1], false, 0.2),
        (&[100, 100, 100, 100, 20], false, 0.048),
        (&[100, 100, 100, 100, 20, 20], false, 0.0455),
        (&[1, 1, 1, 1, 1], true, 0.0244),
    ];
    for (weights, slow_start, due) in cases {
        let p2c = check(p2c(1), weights, slow_start).await;
        let least = check(LeastLoaded::seeded(1), weights, slow_start).await;
        println!("{weights:?}: p2c {p2c}, least loaded {least}, due {due}");
        for share in [p2c, least] {
            let part = share / due;
            assert!(
                (0.65..1.5).contains(&part),
                "{share}, not {due}, of {weights:?}"
            );
        }
    }
}
