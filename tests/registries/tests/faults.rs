//! What happens to a client when its registry fails in each way that registries do.
//!
//! The registry is away for a minute; `AWAY_SECONDS` sets another time, of 12 s at least.
#![allow(clippy::unwrap_used)]

use std::{fs, net::SocketAddr, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    time::sleep,
};
use tower_lb::discover::{Dns, Found};
use tower_lb_registries::{
    backends::Backends,
    cloud_map::{self, Moto},
    consul::{self, Agent},
    dns::{Responder, Says},
    file::File,
    kubernetes::{self, ApiServer},
    program::until,
    traffic::{Registry, Retries, Traffic, stack},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Away,
    Garbage,
    Hangs,
    Empty,
}

/// A registry that can fail.
trait Faulty: Registry + Sized {
    /// Starts a registry; `None` where its program is not installed.
    async fn start() -> Option<Self>;

    /// Starts a client's source.
    fn found(&self, port: u16) -> Found;

    /// Fails from now on.
    async fn fail(&mut self, fault: Fault);

    /// Works again, and lists these servers.
    async fn heal(&mut self, servers: &[SocketAddr]);
}

impl Faulty for Responder {
    async fn start() -> Option<Self> {
        Some(Self::start(Says::Nothing).await)
    }

    fn found(&self, port: u16) -> Found {
        let dns = Dns::new("users.internal.", port).servers([self.address()]);
        dns.start().unwrap()
    }

    async fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Away => self.stop().await,
            Fault::Garbage => self.say(Says::Garbage),
            Fault::Hangs => self.say(Says::Nothing),
            Fault::Empty => self.say(Says::Error(3)),
        }
    }

    async fn heal(&mut self, servers: &[SocketAddr]) {
        self.list(servers).await;
        self.stop().await;
        self.restart().await;
    }
}

impl Faulty for Agent {
    async fn start() -> Option<Self> {
        Some(Self::small())
    }

    fn found(&self, _: u16) -> Found {
        self.source().wait(Duration::from_secs(1)).start().unwrap()
    }

    async fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Away => self.stop().await,
            Fault::Garbage => self.set_mode(consul::Mode::Garbage),
            Fault::Hangs => self.set_mode(consul::Mode::Hangs),
            Fault::Empty => self.set_mode(consul::Mode::Empty),
        }
    }

    /// It has forgotten everything, and its index is lower.
    async fn heal(&mut self, servers: &[SocketAddr]) {
        self.stop().await;
        self.restart().await;
        self.list(servers).await;
    }
}

impl Faulty for ApiServer {
    async fn start() -> Option<Self> {
        Some(Self::start())
    }

    fn found(&self, _: u16) -> Found {
        self.source().start().unwrap()
    }

    async fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Away => return self.stop().await,
            Fault::Garbage => self.set_mode(kubernetes::Mode::Garbage),
            Fault::Hangs => self.set_mode(kubernetes::Mode::Hangs),
            Fault::Empty => self.replace_all(Default::default()),
        }
        self.compact();
        self.break_connections().await;
    }

    async fn heal(&mut self, servers: &[SocketAddr]) {
        self.stop().await;
        self.set_mode(kubernetes::Mode::Well);
        self.list(servers).await;
        self.restart();
    }
}

impl Faulty for Moto {
    async fn start() -> Option<Self> {
        Self::start().await
    }

    fn found(&self, _: u16) -> Found {
        self.source().start().unwrap()
    }

    async fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Away => self.stop().await,
            Fault::Garbage => self.set_mode(cloud_map::Mode::Garbage),
            Fault::Hangs => self.set_mode(cloud_map::Mode::Hangs),
            Fault::Empty => self.set_mode(cloud_map::Mode::Empty),
        }
    }

    async fn heal(&mut self, servers: &[SocketAddr]) {
        self.stop().await;
        self.restart();
        self.set_mode(cloud_map::Mode::Well);
        self.list(servers).await;
    }
}

impl Faulty for File {
    async fn start() -> Option<Self> {
        Some(Self::default())
    }

    fn found(&self, _: u16) -> Found {
        self.source().start().unwrap()
    }

    async fn fail(&mut self, fault: Fault) {
        match fault {
            Fault::Away => self.remove(),
            Fault::Garbage => self.write("[\"10.0.0."),
            Fault::Empty => self.write("[]"),
            // A file does not hang.
            Fault::Hangs => {}
        }
    }

    async fn heal(&mut self, servers: &[SocketAddr]) {
        self.list(servers).await;
    }
}

/// Lets a client live through all faults, on a runtime of its own.
fn survive<R: Faulty>(name: &'static str) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let Some(mut registry) = R::start().await else {
            return;
        };
        let backends = Backends::start(3).await;
        let (first, second) = (backends.addresses(&[0, 1]), backends.addresses(&[1, 2]));
        let alive = || Handle::current().metrics().num_alive_tasks();
        let cycle = async |registry: &R| {
            let found = registry.found(backends.port());
            found.first(Duration::from_secs(10)).await.unwrap();
        };
        registry.heal(&first).await;
        cycle(&registry).await;
        sleep(Duration::from_secs(1)).await;
        // Beside those of a client there are those that list servers, which come and go.
        let most = alive() + 4;
        registry.fail(Fault::Away).await;

        let found = registry.found(backends.port());
        let client = stack(&found, Retries::Off);
        let traffic = Traffic::start(&client, 2);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(traffic.sent(), 0, "{name}: what is not known is waited for");
        registry.heal(&first).await;
        traffic.until_answered_by(&first).await;

        let (mut listed, mut next) = (first, second);
        for fault in [Fault::Away, Fault::Garbage, Fault::Hangs, Fault::Empty] {
            let sent = traffic.sent();
            registry.fail(fault).await;
            let away = std::env::var("AWAY_SECONDS").ok();
            let away = away.and_then(|seconds| seconds.parse().ok()).unwrap_or(60);
            sleep(Duration::from_secs(match fault {
                Fault::Away => away.max(12),
                _ => 12,
            }))
            .await;
            assert!(
                traffic.sent() > sent + 100,
                "{name}, {fault:?}: requests go on"
            );
            let mut targets: Vec<_> = found.targets().iter().map(|t| t.address).collect();
            targets.sort();
            assert_eq!(targets, listed, "{name}, {fault:?}: what is known stays");
            // A hanging API server is found out after a minute, and a file does not hang.
            if fault != Fault::Hangs || !["kubernetes", "file"].contains(&name) {
                assert!(
                    found.state().is_stale(),
                    "{name}, {fault:?}: {:?}",
                    found.state()
                );
            }
            registry.heal(&next).await;
            traffic.until_answered_by(&next).await;
            until("it is well again", || !found.state().is_stale()).await;
            std::mem::swap(&mut listed, &mut next);
        }
        for _ in 0..10 {
            registry.fail(Fault::Away).await;
            sleep(Duration::from_millis(50)).await;
            registry.heal(&listed).await;
            sleep(Duration::from_millis(50)).await;
        }
        traffic.until_answered_by(&listed).await;

        let (sent, failures) = traffic.stop().await;
        assert!(failures.is_empty(), "{name}: {failures:?}");
        println!("{name}: {sent} requests, none failed");
        drop((client, found));
        until(&format!("{name}: tasks end"), || alive() <= most).await;

        // A client that is made and dropped leaves nothing behind.
        for _ in 0..5 {
            cycle(&registry).await;
        }
        let resident = resident();
        for _ in 0..30 {
            cycle(&registry).await;
        }
        let grown = self::resident().saturating_sub(resident);
        println!("{name}: 30 more clients leave {} KiB", grown >> 10);
        assert!(grown < 16 << 20, "{name}: {grown} bytes");
        until(&format!("{name}: tasks end"), || alive() <= most).await;
    });
}

/// Returns how many sockets the process has.
fn sockets() -> usize {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count()
}

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_client_outlives_the_faults_of_its_registry() {
    let before = sockets();
    let sources = [
        thread::spawn(|| survive::<Responder>("dns")),
        thread::spawn(|| survive::<Agent>("consul")),
        thread::spawn(|| survive::<ApiServer>("kubernetes")),
        thread::spawn(|| survive::<Moto>("cloud-map")),
        thread::spawn(|| survive::<File>("file")),
    ];
    let ended: Vec<_> = sources.into_iter().map(thread::JoinHandle::join).collect();
    for ended in ended {
        ended.expect("the client lives");
    }
    // Since a program was started, tokio has a pair for signals.
    let left = sockets() - before;
    assert!(left <= 2, "{left} sockets are left");
}
