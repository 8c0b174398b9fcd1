//! What a budget does for a service that breaks down.

use super::*;

/// Makes backends with a queue each; four of them together serve `rate` requests a second.
fn queues(rate: watch::Receiver<u64>) -> impl Fn(&Endpoint<usize>) -> BoxedBackend + Clone {
    use tokio::sync::{mpsc, oneshot};
    move |_: &Endpoint<usize>| {
        let (queue, mut requests) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
        let rate = rate.clone();
        tokio::spawn(async move {
            while let Some(answer) = requests.recv().await {
                let service = secs(4) / *rate.borrow() as u32;
                sleep(service).await;
                // Requests whose callers have given up cost the server as much work as others.
                let _ = answer.send(());
            }
        });
        BoxedBackend::new(service_fn(move |_: Verb| {
            let (tx, rx) = oneshot::channel();
            let _ = queue.send(tx);
            async move { rx.await.map(|()| 200).map_err(io::Error::other) }
        }))
    }
}

/// Returns the goodput of each second. Capacity is 1000/s, and 300/s for 10 s; 700/s are offered; a
/// try times out after 1 s, and there are 3 attempts.
fn goodput(budget: Budget, seconds: u64) -> Vec<u32> {
    run(async move {
        let (rate, rx) = watch::channel(1000);
        let client = ServiceBuilder::new()
            .layer(
                FailoverLayer::new(Idempotent::all())
                    .try_timeout(secs(1))
                    .budget(budget)
                    .seeded(1),
            )
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(fixed(0..4))
            .service(queues(rx));
        let good = Arc::new(Mutex::new(vec![0; seconds as usize + 1]));
        let start = Instant::now();
        for tick in 0..seconds * 100 {
            tokio::time::sleep_until(start + ms(10) * tick as u32).await;
            let capacity = if (1000..2000).contains(&tick) {
                300
            } else {
                1000
            };
            rate.send_replace(capacity);
            for _ in 0..7 {
                let (client, good) = (client.clone(), good.clone());
                tokio::spawn(async move {
                    if client.oneshot(Get).await.is_ok() {
                        let second = start.elapsed().as_secs() as usize;
                        if let Some(good) = good.lock().unwrap().get_mut(second) {
                            *good += 1;
                        }
                    }
                });
            }
        }
        let good = good.lock().unwrap();
        good[..seconds as usize].to_vec()
    })
}

#[test]
fn a_budget_ends_an_outage_that_retries_alone_would_keep_up() {
    // A budget of far more retries than are ever made is as good as none.
    let without = goodput(Budget::builder().minimum(1_000_000).build(), 90);
    println!("without a budget, each second: {without:?}");
    assert!(without[2..10].iter().all(|&good| good >= 690), "before it");
    let after: u32 = without[60..].iter().sum();
    assert!(after < 30 * 35, "{after} in 30 s: it should stay down");
    let with = goodput(Budget::builder().minimum(0).ratio(0.2).build(), 90);
    println!("with a budget of 20 %, each second: {with:?}");
    let recovered = with[20..].iter().position(|&good| good >= 690);
    println!("recovered after {recovered:?} s");
    assert!(recovered.is_some_and(|secs| secs <= 40));
    assert!(with[60..].iter().all(|&good| good >= 690));
}
