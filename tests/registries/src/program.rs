//! Programs that the tests start, and those that are not there.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tokio::{
    process::Child,
    time::{Instant, sleep},
};

/// A program that runs until this is dropped.
#[derive(Debug)]
pub struct Program(Child);

impl Program {
    /// Starts a program in a process of its own.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).kill_on_drop(true);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("the program starts"))
    }

    /// Kills the program and waits for its end.
    pub async fn kill(mut self) {
        let _ = self.0.kill().await;
    }
}

/// Finds a program as [`find_or_say`] does.
///
/// # Panics
///
/// If it is not there and `CI` is `true`: then it is to be installed.
#[must_use]
pub fn find(program: &str, at: &str) -> Option<PathBuf> {
    let found = find_or_say(program, at);
    let is_ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
    assert!(found.is_some() || !is_ci, "`{program}` is not installed");
    found
}

/// Finds a program in the folders of `PATH` and in `/usr/sbin`, or at the path that the environment
/// variable `at` holds.
///
/// Returns `None`, and says so loudly, where it is not there.
#[must_use]
pub fn find_or_say(program: &str, at: &str) -> Option<PathBuf> {
    let given = std::env::var_os(at).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = given.or_else(|| {
        let mut files = folders.map(|folder| folder.join(program));
        files.find(|file| file.is_file())
    });
    if found.is_none() {
        eprintln!("NOT RUN: `{program}` is not installed, nor does {at} name it");
    }
    found
}

/// Runs a program to its end.
///
/// # Panics
///
/// If it fails.
pub fn run(program: &Path, arguments: &[&str], input: Option<&Path>) {
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(input) = input {
        command.stdin(std::fs::File::open(input).unwrap());
    }
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{program:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns a port that nobody uses, at this address, over TCP and UDP.
///
/// It is none of those that systems give to clients, so that a server can come back to it.
pub fn free_port(ip: Ipv4Addr) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes at the same time begin at different ones.
    let first = std::process::id() % 1_000 * 10;
    loop {
        let next = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST_PORT + ((first + next) % PORTS) as u16;
        let at = (ip, port);
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return port;
        }
    }
}

const FIRST_PORT: u16 = 20_000;
const PORTS: u32 = 10_000;

/// Waits until `is_true`, for at most 90 s.
///
/// # Panics
///
/// If it does not come true.
#[track_caller]
pub fn until(what: &str, mut is_true: impl FnMut() -> bool) -> impl Future<Output = Duration> {
    let what = what.to_owned();
    async move {
        let start = Instant::now();
        while !is_true() {
            assert!(start.elapsed() < PATIENCE, "{what}: still not so");
            sleep(Duration::from_millis(2)).await;
        }
        start.elapsed()
    }
}

/// Asks until there is no error, for at most 90 s.
///
/// # Panics
///
/// If it does not come true.
pub async fn until_ok<T>(what: &str, mut ask: impl AsyncFnMut() -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{what}: {error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// More than the longest pause of a source that has failed, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(90);
