//! Outlier detection against a model of it.

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Behave(usize, Behaviour),
    Check(usize, bool),
    Beat(usize),
    Send(usize),
    Pass(u64),
    Toggle(usize),
}

const N: usize = 4;
const TTL: Duration = Duration::from_secs(100);

fn step() -> impl Strategy<Value = Step> {
    let server = 0..N;
    let behaviour = prop_oneof![Just(ANSWER), Just(FAIL), Just(Behaviour::Hang)];
    prop_oneof![
        2 => (server.clone(), behaviour).prop_map(|(server, behaviour)| Step::Behave(server, behaviour)),
        2 => (server.clone(), any::<bool>()).prop_map(|(server, well)| Step::Check(server, well)),
        3 => server.clone().prop_map(Step::Beat),
        4 => (1_usize..60).prop_map(Step::Send),
        3 => (1_u64..40_000).prop_map(Step::Pass),
        1 => server.prop_map(Step::Toggle),
    ]
}

/// The rule of health checks, implemented a second time: unhealthy after 3 failures, healthy after
/// 2 successes. An endpoint that is unhealthy before its first check needs only 1.
#[derive(Clone, Copy, Default)]
struct Patient {
    sick: bool,
    checked: bool,
    against: u32,
}

impl Patient {
    fn take(&mut self, well: bool) {
        let enough = match (self.sick, self.checked) {
            (false, _) => 3,
            (true, false) => 1,
            (true, true) => 2,
        };
        self.checked = true;
        self.against = if well == self.sick {
            self.against + 1
        } else {
            0
        };
        if self.against == enough {
            (self.sick, self.against) = (!self.sick, 0);
        }
    }
}

async fn run(steps: &[Step], max_ejected: f64) {
    let servers = servers(&[ANSWER; N]);
    let patients = Arc::new(Mutex::new([Patient::default(); N]));
    let wells = Arc::new(Mutex::new([true; N]));
    let (model, says) = (patients.clone(), wells.clone());
    let checks = HealthCheckLayer::new(move |endpoint: Endpoint<usize>, _: Client| {
        let well = says.lock().unwrap()[*endpoint.address()];
        model.lock().unwrap()[*endpoint.address()].take(well);
        std::future::ready(if well { Ok(()) } else { Err("sick") })
    });
    let heartbeats = Heartbeats::new(TTL);
    let (targets, rx) = watch::channel((0..N).collect::<Vec<_>>());
    let mut balance: Balance<_, Watched, (), usize> = ServiceBuilder::new()
        .layer(BalanceLayer::new(Random::seeded(1)))
        .layer(
            OutlierLayer::default()
                .max_ejected(max_ejected)
                .cancelled_after(ms(20))
                .seeded(1),
        )
        .layer(heartbeats.clone())
        .layer(checks.seeded(1))
        .layer(WatchLayer::new(rx))
        .service(factory(&servers));
    settle().await;
    let mut last_beat = [Instant::now(); N];
    let mut ejected_before = 0;
    for step in steps {
        match *step {
            Step::Behave(server, behaviour) => servers[server].behave(behaviour),
            Step::Check(server, well) => wells.lock().unwrap()[server] = well,
            Step::Beat(server) => {
                if heartbeats.beat(&server) {
                    last_beat[server] = Instant::now();
                }
            }
            Step::Send(n) => {
                for _ in 0..n {
                    let _ = timeout(ms(30), call(&mut balance)).await;
                }
            }
            Step::Pass(millis) => tokio::time::sleep(ms(millis)).await,
            Step::Toggle(server) => {
                targets.send_modify(|targets| {
                    match targets.iter().position(|&target| target == server) {
                        Some(at) => drop(targets.remove(at)),
                        None => {
                            patients.lock().unwrap()[server] = Patient::default();
                            last_beat[server] = Instant::now();
                            targets.push(server);
                        }
                    }
                });
            }
        }
        settle().await;
        let members = balance.members();
        let patients = *patients.lock().unwrap();
        for member in &members {
            let (server, status) = (*member.endpoint().address(), member.endpoint().status());
            let silent = last_beat[server].elapsed() >= TTL;
            assert_eq!(
                status == Status::Unhealthy,
                patients[server].sick || silent,
                "{server} after {step:?}"
            );
        }
        let is_out = |member: &&Member<_, _>| member.endpoint().ejection().is_some();
        let ejected = members.iter().filter(is_out).count();
        let most = ((members.len() as f64 * max_ejected) as usize).max(1);
        let most = most.min(members.len().saturating_sub(1));
        let by_verdict = !matches!(step, Step::Toggle(_)) && ejected > ejected_before;
        assert!(
            !by_verdict || ejected <= most,
            "{ejected} of {} after {step:?}",
            members.len()
        );
        ejected_before = ejected;
    }
    // Every server works again: every endpoint must become available and be used.
    servers.iter().for_each(|server| server.behave(ANSWER));
    *wells.lock().unwrap() = [true; N];
    targets.send_replace((0..N).collect());
    settle().await;
    for _ in 0..800 {
        (0..N).for_each(|server| assert!(heartbeats.beat(&server)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = timeout(ms(30), call(&mut balance)).await;
    }
    settle().await;
    assert_eq!(statuses(&balance), [Status::Available; N]);
    let before: Vec<_> = servers.iter().map(Server::calls).collect();
    for _ in 0..200 {
        call(&mut balance).await.unwrap();
    }
    assert!(
        servers
            .iter()
            .zip(before)
            .all(|(server, before)| server.calls() > before)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn statuses_follow_the_rules(
        steps in prop::collection::vec(step(), 1..80),
        max_ejected in prop_oneof![Just(0.1), Just(0.5), Just(1.0)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(run(&steps, max_ejected));
    }
}
