//! Faults in a simulated network: what callers see, and for how long.
//!
//! Each run has four HTTP servers, one client with a full stack, and one fault, which lasts from
//! [`FAULT_BEGINS`] to [`FAULT_ENDS`]. Runs without failover measure how soon traffic leaves a
//! faulty server. Runs with failover assert that no read fails while a healthy server exists. Each
//! run prints its seed; `CHAOS_SEEDS` sets the number of seeds per fault.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use http_body_util::Empty;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client,
    server::conn::http1,
    service::service_fn as hyper_service,
};
use hyper_util::rt::TokioIo;
use tokio::{sync::watch, time::timeout};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_lb::{
    health::{HealthCheckLayer, OutlierLayer},
    *,
};
use turmoil::{
    Builder, Sim,
    net::{TcpListener, TcpStream},
};

mod run;
mod verdict;

use self::run::run;

const SERVERS: usize = 4;
/// Discovery lists this address in one of the faults. Nothing listens there.
const NOBODY: &str = "nobody";
const FAULT_BEGINS: Duration = Duration::from_secs(4);
const FAULT_ENDS: Duration = Duration::from_secs(11);
const END: Duration = Duration::from_secs(24);
/// Time between two requests.
const PACE: Duration = Duration::from_millis(40);
/// Timeout of the whole stack. [`PATIENCE_PER_TRY`] is the timeout of one endpoint within it.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_PER_TRY: Duration = Duration::from_millis(250);

/// Timeout of the whole stack with failover. It covers four tries and the pauses between them.
const PATIENCE_WITH_FAILOVER: Duration = Duration::from_secs(2);
const PACE_WITH_FAILOVER: Duration = Duration::from_millis(20);

/// At most this many requests may fail while one server is at fault. Five failures in a row eject
/// it, a few more requests are in flight by then, and checks keep it out.
const MOST_FAILURES: usize = 10;
/// The same limit if the server is reached at times. Few failures are consecutive then, and checks
/// succeed in between. Round robin sends the server some 44 requests in that time.
const MOST_FAILURES_OF_DELAYS: usize = 30;
/// Once most servers have crashed, the last one serves all requests after at most this time: three
/// checks, and one that had just ended.
const ALONE_WITHIN: Duration = Duration::from_secs(3);
/// After the fault, its server is used again within this time: the longest ejection that a fault of
/// this length leads to, and two checks.
const BACK_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The process ends and is started again.
    Crash,
    /// The server accepts requests and never answers.
    Hang,
    /// Status 500.
    Errors,
    /// Answers take a second.
    Slow,
    /// Packets are held back, as by a black hole.
    Hold,
    Partition,
    PartitionToServer,
    PartitionToClient,
    /// Packets take up to 300 ms.
    Delays,
    /// All links fail and are repaired at random.
    Loses,
    /// Discovery removes a server and adds it again, repeatedly.
    Flaps,
    /// Discovery lists an address where no server listens.
    Lies,
    /// All servers but one crash.
    AllButOne,
    /// The servers restart one after the other, without notice.
    Rolling,
}

/// Whether a request that has failed goes to another server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failover {
    Off,
    On,
}

/// How a server treats requests.
mod mode {
    pub(crate) const ANSWER: u8 = 0;
    pub(crate) const HANG: u8 = 1;
    pub(crate) const ERROR: u8 = 2;
    pub(crate) const SLOW: u8 = 3;
}

#[derive(Clone, Debug)]
struct Answer {
    by: By,
    at: Duration,
    took: Duration,
    ok: bool,
}

/// One try at one server.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    at: Duration,
    server: IpAddr,
    by: By,
    ok: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// May be executed more than once.
    Read,
    /// Has its own number and must be executed at most once.
    Write(u64),
    Check,
}

impl By {
    const fn is_read(&self) -> bool {
        matches!(self, Self::Read)
    }
}

/// What the client has seen.
#[derive(Default)]
struct Seen {
    answers: Vec<Answer>,
    calls: Vec<Call>,
    /// The members at the start of each request.
    sets: Vec<(Duration, Vec<IpAddr>)>,
    /// How often each write was executed.
    executed: BTreeMap<u64, usize>,
    in_flight_at_the_end: Vec<usize>,
    statuses_at_the_end: Vec<Status>,
}

type Shared = Arc<Mutex<Seen>>;

fn name(server: usize) -> String {
    format!("server-{server}")
}

/// Sends one request over its own connection.
async fn send_to(address: SocketAddr, by: By) -> Result<StatusCode, BoxError> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = match by {
        By::Write(number) => format!("/{number}"),
        By::Read | By::Check => "/".to_owned(),
    };
    let request = Request::get(path)
        .header("host", "server")
        .body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?.status())
}

#[derive(Debug)]
struct Failed(BoxError);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.0.as_ref())
    }
}

#[derive(Clone, Copy, Debug)]
struct OnlyOkIsWell;

impl<E> Classify<StatusCode, E> for OnlyOkIsWell {
    fn classify(&self, answer: Result<&StatusCode, &E>) -> Outcome {
        match answer {
            Ok(&StatusCode::OK) => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

/// P2c over Peak-EWMA for even seeds, round robin for odd ones. Round robin ignores load, so only
/// health keeps traffic away from a server.
#[derive(Clone)]
struct ByLoadOrInTurn {
    by_load: bool,
    p2c: P2c,
    round_robin: RoundRobin,
}

impl ByLoadOrInTurn {
    fn new(seed: u64) -> Self {
        Self {
            by_load: seed.is_multiple_of(2),
            p2c: P2c::seeded(seed),
            round_robin: RoundRobin::seeded(seed),
        }
    }
}

impl<S: Load<Metric: Cost>> Policy<SocketAddr, S, By> for ByLoadOrInTurn {
    type Table = (policy::table::P2cTable, policy::table::RoundRobinTable);

    fn table(
        &self,
        members: Candidates<'_, SocketAddr, S>,
        previous: Option<&Self::Table>,
    ) -> Self::Table {
        let (p2c, round_robin) = previous.map_or((None, None), |(a, b)| (Some(a), Some(b)));
        (
            Policy::<_, _, By>::table(&self.p2c, members, p2c),
            Policy::<_, _, By>::table(&self.round_robin, members, round_robin),
        )
    }

    fn pick(
        &self,
        (p2c, round_robin): &Self::Table,
        candidates: Candidates<'_, SocketAddr, S>,
        cx: &mut PickContext<'_, By>,
    ) -> Choice {
        match self.by_load {
            true => self.p2c.pick(p2c, candidates, cx),
            false => self.round_robin.pick(round_robin, candidates, cx),
        }
    }
}

/// The client's program: sends requests at a steady pace, each in its own task.
async fn send(
    targets: watch::Receiver<Vec<SocketAddr>>,
    seen: Shared,
    seed: u64,
    failover: Failover,
) -> turmoil::Result {
    let calls = seen.clone();
    let make = move |endpoint: &Endpoint| {
        let (address, calls) = (*endpoint.address(), calls.clone());
        service_fn(move |by| {
            let calls = calls.clone();
            async move {
                let at = turmoil::sim_elapsed().unwrap();
                let position = {
                    let calls = &mut calls.lock().unwrap().calls;
                    calls.push(Call {
                        at,
                        server: address.ip(),
                        by,
                        ok: false,
                    });
                    calls.len() - 1
                };
                let answer = timeout(PATIENCE_PER_TRY, send_to(address, by)).await;
                let answer = match answer {
                    Ok(answer) => answer.map_err(Failed),
                    Err(_) => Err(Failed("no answer in time".into())),
                };
                calls.lock().unwrap().calls[position].ok = matches!(answer, Ok(StatusCode::OK));
                answer
            }
        })
    };
    let check = HealthCheckLayer::new(|_: Endpoint, service| async move {
        match ServiceExt::oneshot(service, By::Check).await {
            Ok(StatusCode::OK) => Ok(()),
            Ok(status) => Err(Failed(status.to_string().into())),
            Err(error) => Err(error),
        }
    });
    let balance = ServiceBuilder::new()
        .layer(BalanceLayer::new(ByLoadOrInTurn::new(seed)))
        .layer(
            OutlierLayer::default()
                .classify(OnlyOkIsWell)
                .base_ejection(Duration::from_secs(2))
                .interval(Duration::from_secs(2))
                .max_ejected(0.5)
                .seeded(seed),
        )
        .layer(each(PeakEwmaLayer::default().classify(OnlyOkIsWell)))
        .layer(
            check
                .interval(Duration::from_secs(1))
                .edge_interval(Duration::from_millis(300))
                .timeout(PATIENCE_PER_TRY)
                .jitter(Duration::from_millis(100))
                .seeded(seed),
        )
        .layer(WatchLayer::new(targets))
        .service(make);

    let with_failover = FailoverLayer::new(Idempotent::when(By::is_read).classify(OnlyOkIsWell))
        .attempts(4)
        .budget(Budget::builder().minimum(30).build())
        .seeded(seed);
    let (client, patience, pace) = match failover {
        Failover::Off => (BoxCloneSyncService::new(balance.clone()), PATIENCE, PACE),
        Failover::On => (
            BoxCloneSyncService::new(with_failover.layer(balance.clone())),
            PATIENCE_WITH_FAILOVER,
            PACE_WITH_FAILOVER,
        ),
    };
    let mut requests = tokio::task::JoinSet::new();
    let mut number = 0;
    while turmoil::sim_elapsed().unwrap() < END {
        let at = turmoil::sim_elapsed().unwrap();
        let members = balance.members();
        let set = members
            .iter()
            .map(|member| member.endpoint().address().ip())
            .collect();
        seen.lock().unwrap().sets.push((at, set));
        let (client, seen) = (client.clone(), seen.clone());
        number += 1;
        let by = match number % 4 {
            0 => By::Write(number),
            _ => By::Read,
        };
        requests.spawn(async move {
            let answer = timeout(patience, client.oneshot(by)).await;
            let ok = matches!(answer, Ok(Ok(StatusCode::OK)));
            let took = turmoil::sim_elapsed().unwrap() - at;
            seen.lock()
                .unwrap()
                .answers
                .push(Answer { by, at, took, ok });
        });
        tokio::time::sleep(pace).await;
    }
    while requests.join_next().await.is_some() {}
    // Checks go on. The ones in flight get time to end.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let in_flight = || {
        balance
            .members()
            .iter()
            .map(|member| member.service().in_flight())
            .collect::<Vec<_>>()
    };
    for _ in 0..100 {
        if in_flight().iter().all(|&count| count == 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut seen = seen.lock().unwrap();
    seen.in_flight_at_the_end = in_flight();
    let statuses = balance.members();
    let statuses = statuses.iter().map(|member| member.endpoint().status());
    seen.statuses_at_the_end = statuses.collect();
    Ok(())
}

fn chaos(faults: &[Fault]) {
    let seeds = std::env::var("CHAOS_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(32);
    let mut table: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for &fault in faults {
        for seed in (0..seeds).map(|seed| fault as u64 * 1_000 + seed) {
            println!("{fault:?}, seed {seed}");
            let (seen, victim) = run(fault, seed, Failover::Off);
            let failures = seen.failures(Duration::ZERO, END);
            table
                .entry(format!("{fault:?}"))
                .or_default()
                .push(failures);
            seen.check(fault, victim);
        }
    }
    for (fault, failures) in table {
        let most = failures.iter().max().unwrap();
        let mean = failures.iter().sum::<usize>() as f64 / failures.len() as f64;
        println!("{fault:<18} of 600 requests failed {mean:.1} on average, {most} at the most");
    }
}

// Split up, because tests run in parallel.

#[test]
fn servers_that_die_or_misbehave() {
    chaos(&[
        Fault::Crash,
        Fault::Hang,
        Fault::Errors,
        Fault::Slow,
        Fault::AllButOne,
    ]);
}

#[test]
fn links_that_fail() {
    chaos(&[
        Fault::Hold,
        Fault::Partition,
        Fault::PartitionToServer,
        Fault::PartitionToClient,
        Fault::Delays,
        Fault::Loses,
    ]);
}

#[test]
fn discovery_that_flaps_and_lies() {
    chaos(&[Fault::Flaps, Fault::Lies]);
}

/// With a healthy server and enough budget, no read is lost and no write is executed twice.
#[test]
fn failover_loses_nothing_and_executes_no_write_twice() {
    let seeds = std::env::var("CHAOS_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(10);
    let (mut reads, mut writes_tried_again) = (0, 0);
    let mut writes: BTreeMap<String, usize> = BTreeMap::new();
    for fault in [
        Fault::Crash,
        Fault::Hang,
        Fault::Errors,
        Fault::Slow,
        Fault::Hold,
        Fault::Partition,
        Fault::PartitionToServer,
        Fault::PartitionToClient,
        Fault::Flaps,
        Fault::Lies,
        Fault::AllButOne,
        Fault::Rolling,
    ] {
        for seed in (0..seeds).map(|seed| fault as u64 * 1_000 + seed) {
            println!("{fault:?} with failover, seed {seed}");
            let (seen, _) = run(fault, seed, Failover::On);
            reads += seen.check_failover();
            writes_tried_again += seen.writes_tried_again();
            let lost = seen.answers.iter().filter(|a| !a.ok && !a.by.is_read());
            *writes.entry(format!("{fault:?}")).or_default() += lost.count();
        }
    }
    println!("0 of {reads} reads were lost; of the writes, 300 a run, in {seeds} runs: {writes:?}");
    println!("{writes_tried_again} writes were tried again: they had not been sent");
    assert!(reads >= 10_000 * seeds as usize);
    assert!(
        writes_tried_again > seeds as usize,
        "or the law says little"
    );
}
