//! One run: a simulated network, a fault, and the client.

use super::*;

pub(crate) struct Run<'a> {
    sim: Sim<'a>,
    modes: Vec<Arc<AtomicU8>>,
    targets: watch::Sender<Vec<SocketAddr>>,
    all: Vec<SocketAddr>,
    victim: usize,
    /// The server that is being restarted.
    down: Option<usize>,
}

impl Run<'_> {
    pub(crate) fn begin(&mut self, fault: Fault) {
        let (victim, client) = (name(self.victim), "client");
        let mode = |mode| self.modes[self.victim].store(mode, Relaxed);
        match fault {
            Fault::Crash => self.sim.crash(victim),
            Fault::Hang => mode(mode::HANG),
            Fault::Errors => mode(mode::ERROR),
            Fault::Slow => mode(mode::SLOW),
            Fault::Hold => self.sim.hold(client, victim),
            Fault::Partition => self.sim.partition(client, victim),
            Fault::PartitionToServer => self.sim.partition_oneway(client, victim),
            Fault::PartitionToClient => self.sim.partition_oneway(victim, client),
            Fault::Delays => {
                let long = Duration::from_millis(300);
                self.sim.set_link_max_message_latency(client, victim, long);
            }
            Fault::Loses => self.sim.set_fail_rate(0.01),
            Fault::Lies => {
                let nobody = SocketAddr::new(self.sim.lookup(NOBODY), 80);
                self.targets.send_modify(|targets| targets.push(nobody));
            }
            Fault::AllButOne => {
                for server in (0..SERVERS).filter(|&server| server != self.victim) {
                    self.sim.crash(name(server));
                }
            }
            Fault::Flaps | Fault::Rolling => {}
        }
    }

    /// Advances the fault; called at every step of the simulation while it lasts.
    pub(crate) fn go_on(&mut self, fault: Fault, at: Duration) {
        match fault {
            Fault::Flaps => self.flap(at),
            Fault::Rolling => self.roll(at),
            _ => {}
        }
    }

    /// Keeps each server in turn down for the second half of its share of the time.
    pub(crate) fn roll(&mut self, at: Duration) {
        let share = (FAULT_ENDS - FAULT_BEGINS) / SERVERS as u32;
        let since = at.saturating_sub(FAULT_BEGINS);
        let turn = (since.as_nanos() / share.as_nanos()) as usize;
        let is_late = since.as_nanos() % share.as_nanos() > share.as_nanos() / 2;
        let down = (is_late && turn < SERVERS).then_some(turn);
        if down == self.down {
            return;
        }
        if let Some(server) = self.down {
            self.sim.bounce(name(server));
        }
        if let Some(server) = down {
            self.sim.crash(name(server));
        }
        self.down = down;
    }

    pub(crate) fn flap(&self, at: Duration) {
        let is_there = (at.as_millis() / 700).is_multiple_of(2);
        let victim = self.all[self.victim];
        let targets = self
            .all
            .iter()
            .copied()
            .filter(|&target| is_there || target != victim);
        let targets: Vec<_> = targets.collect();
        self.targets.send_if_modified(|now| {
            let changes = *now != targets;
            now.clone_from(&targets);
            changes
        });
    }

    pub(crate) fn end(&mut self, fault: Fault) {
        let (victim, client) = (name(self.victim), "client");
        self.modes[self.victim].store(mode::ANSWER, Relaxed);
        match fault {
            Fault::Crash => self.sim.bounce(victim),
            Fault::Hold => self.sim.release(client, victim),
            Fault::Partition => self.sim.repair(client, victim),
            Fault::PartitionToServer => self.sim.repair_oneway(client, victim),
            Fault::PartitionToClient => self.sim.repair_oneway(victim, client),
            Fault::Delays => {
                let short = Duration::from_millis(5);
                self.sim.set_link_max_message_latency(client, victim, short);
            }
            Fault::Loses => {
                self.sim.set_fail_rate(0.0);
                for server in 0..SERVERS {
                    self.sim.repair(client, name(server));
                }
            }
            Fault::AllButOne => {
                for server in (0..SERVERS).filter(|&server| server != self.victim) {
                    self.sim.bounce(name(server));
                }
            }
            Fault::Rolling => {
                if let Some(server) = self.down.take() {
                    self.sim.bounce(name(server));
                }
            }
            _ => drop(self.targets.send_replace(self.all.clone())),
        }
    }
}

/// Runs one fault. Returns what the client saw and the victim's address.
pub(crate) fn run(fault: Fault, seed: u64, failover: Failover) -> (Seen, IpAddr) {
    let mut sim = Builder::new()
        .rng_seed(seed)
        .simulation_duration(END + Duration::from_secs(10))
        .tick_duration(Duration::from_millis(2))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(5))
        .repair_rate(0.1)
        .build();
    let modes: Vec<_> = (0..SERVERS)
        .map(|_| Arc::new(AtomicU8::new(mode::ANSWER)))
        .collect();
    let seen = Shared::default();
    for (server, mode) in modes.iter().enumerate() {
        let (mode, seen) = (mode.clone(), seen.clone());
        sim.host(name(server), move || serve(mode.clone(), seen.clone()));
    }
    sim.host(NOBODY, std::future::pending);
    let all: Vec<_> = (0..SERVERS)
        .map(|server| SocketAddr::new(sim.lookup(name(server)), 80))
        .collect();
    let (targets, rx) = watch::channel(all.clone());
    sim.client("client", send(rx, seen.clone(), seed, failover));
    let victim = seed as usize % SERVERS;
    let address = all[victim].ip();
    let mut run = Run {
        sim,
        modes,
        targets,
        all,
        victim,
        down: None,
    };
    let (mut has_begun, mut has_ended) = (false, false);
    while !run.sim.step().unwrap() {
        let at = run.sim.elapsed();
        if !has_begun && at >= FAULT_BEGINS {
            has_begun = true;
            run.begin(fault);
        }
        if has_begun && !has_ended {
            run.go_on(fault, at);
            if at >= FAULT_ENDS {
                has_ended = true;
                run.end(fault);
            }
        }
    }
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, address)
}

async fn serve(mode: Arc<AtomicU8>, seen: Shared) -> turmoil::Result {
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (mode, seen) = (mode.clone(), seen.clone());
        let answer = hyper_service(move |request: Request<Incoming>| {
            if let Ok(number) = request.uri().path()[1..].parse() {
                *seen.lock().unwrap().executed.entry(number).or_default() += 1;
            }
            let mode = mode.clone();
            async move {
                match mode.load(Relaxed) {
                    mode::HANG => std::future::pending().await,
                    mode::SLOW => tokio::time::sleep(Duration::from_secs(1)).await,
                    _ => {}
                }
                let mut response = Response::new(Empty::<Bytes>::new());
                if mode.load(Relaxed) == mode::ERROR {
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                }
                Ok::<_, BoxError>(response)
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
