//! DNS: knot, and a responder that can misbehave.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time::sleep,
};

use crate::{
    program::{self, Program, free_port, until_ok},
    traffic::Registry,
};

/// A server of the zone `internal.`, whose records have a TTL of 1 s unless another one is given.
#[derive(Debug)]
pub struct Knot {
    program: PathBuf,
    nsupdate: PathBuf,
    folder: TempDir,
    port: u16,
    running: Option<Program>,
}

impl Knot {
    /// Starts the server; `None` where knot or nsupdate is not installed.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub async fn start() -> Option<Self> {
        let program = program::find("knotd", "KNOTD")?;
        let nsupdate = program::find("nsupdate", "NSUPDATE")?;
        let folder = tempfile::tempdir().unwrap();
        let port = free_port(Ipv4Addr::LOCALHOST);
        let at = folder.path().display();
        let configuration = format!(
            "server:\n    rundir: \"{at}\"\n    listen: 127.0.0.1@{port}\n\
             log:\n  - target: stderr\n    any: error\n\
             database:\n    storage: \"{at}\"\n\
             acl:\n  - id: all\n    address: 127.0.0.1\n    action: update\n\
             zone:\n  - domain: internal.\n    file: \"{at}/zone\"\n    storage: \"{at}\"\n    \
             acl: all\n    zonefile-sync: 0\n    journal-content: none\n"
        );
        fs::write(folder.path().join("knot.conf"), configuration).unwrap();
        let zone = "$ORIGIN internal.\n$TTL 1\n\
                    @ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n";
        fs::write(folder.path().join("zone"), zone).unwrap();
        let mut knot = Self {
            program,
            nsupdate,
            folder,
            port,
            running: None,
        };
        knot.restart().await;
        Some(knot)
    }

    /// Returns where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.port)
    }

    /// Stops the server.
    pub async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill().await;
        }
    }

    /// Starts the server that was stopped. It has the zone that it had before.
    pub async fn restart(&mut self) {
        let file = self.folder.path().join("knot.conf");
        self.running = Some(Program::start(
            &self.program,
            &["-c", file.to_str().unwrap()],
        ));
        let address = self.address();
        until_ok("knot listens", async || {
            TcpStream::connect(address).await.map(drop)
        })
        .await;
    }

    /// Replaces the records of a name, for example by `["60 A 127.0.0.1", "A 127.0.0.2"]`.
    pub fn set<R: AsRef<str>>(&self, name: &str, records: &[R]) {
        let mut update = format!("server 127.0.0.1 {}\nzone internal.\n", self.port);
        let _ = writeln!(update, "update delete {name}");
        for record in records {
            let record = record.as_ref();
            let ttl = match record.starts_with(|c: char| c.is_ascii_digit()) {
                true => "",
                false => "1 ",
            };
            let _ = writeln!(update, "update add {name} {ttl}{record}");
        }
        update.push_str("send\n");
        let file = self.folder.path().join("update");
        fs::write(&file, update).unwrap();
        program::run(&self.nsupdate, &[], Some(&file));
    }
}

/// The addresses of one name at knot.
#[derive(Debug)]
pub struct KnotName<'a>(pub &'a Knot, pub &'static str);

impl Registry for KnotName<'_> {
    async fn list(&mut self, servers: &[SocketAddr]) {
        let records = servers.iter().map(|server| format!("A {}", server.ip()));
        self.0.set(self.1, &records.collect::<Vec<_>>());
    }
}

/// How a responder answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// With these addresses, and a TTL of so many seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    /// With these, over UDP only that the answer is too long.
    Long(Vec<Ipv4Addr>),
    /// With an error: 2 is `SERVFAIL`, 3 is `NXDOMAIN`, 5 is `REFUSED`.
    Error(u8),
    /// With an error to questions for IPv6 addresses, and with these to others.
    OnlyV4(Vec<Ipv4Addr>),
    /// With these addresses, but to a question that nobody has asked.
    Another(Vec<Ipv4Addr>),
    /// With bytes that are no message.
    Garbage,
    /// Not at all.
    Nothing,
    /// With these addresses, after a second.
    Late(Vec<Ipv4Addr>),
}

/// A server of every name, over UDP and TCP, that answers as it is told.
#[derive(Debug)]
pub struct Responder {
    address: SocketAddr,
    shared: Arc<Mutex<(Says, usize)>>,
    tasks: JoinSet<()>,
}

impl Responder {
    /// Starts to answer.
    pub async fn start(says: Says) -> Self {
        let mut responder = Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST))),
            shared: Arc::new(Mutex::new((says, 0))),
            tasks: JoinSet::new(),
        };
        responder.restart().await;
        responder
    }

    /// Listens no more.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Listens again, at the same port.
    pub async fn restart(&mut self) {
        let tcp = TcpSocket::new_v4().unwrap();
        tcp.set_reuseaddr(true).unwrap();
        tcp.bind(self.address).unwrap();
        let tcp = tcp.listen(64).unwrap();
        self.address = tcp.local_addr().unwrap();
        let udp = Arc::new(UdpSocket::bind(self.address).await.unwrap());
        let says = self.shared.clone();
        self.tasks.spawn(async move {
            let mut answers = JoinSet::new();
            loop {
                let mut question = vec![0; 4096];
                let Ok((len, from)) = udp.recv_from(&mut question).await else {
                    continue;
                };
                question.truncate(len);
                let (udp, says) = (udp.clone(), says.clone());
                answers.spawn(async move {
                    if let Some(answer) = answer(&question, &says, true).await {
                        let _ = udp.send_to(&answer, from).await;
                    }
                });
                while answers.try_join_next().is_some() {}
            }
        });
        let says = self.shared.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = tcp.accept().await {
                let says = says.clone();
                connections.spawn(async move {
                    while let Ok(len) = stream.read_u16().await {
                        let mut question = vec![0; len.into()];
                        let Ok(_) = stream.read_exact(&mut question).await else {
                            return;
                        };
                        if let Some(answer) = answer(&question, &says, false).await {
                            let _ = stream.write_u16(answer.len() as u16).await;
                            let _ = stream.write_all(&answer).await;
                        }
                    }
                });
            }
        });
    }

    /// Returns where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it answers.
    pub fn say(&self, says: Says) {
        self.shared.lock().unwrap().0 = says;
    }

    /// Returns how many questions have come.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.shared.lock().unwrap().1
    }
}

impl Registry for Responder {
    async fn list(&mut self, servers: &[SocketAddr]) {
        let v4 = |server: &SocketAddr| match server.ip() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => unreachable!("the servers have IPv4 addresses"),
        };
        self.say(Says::Addresses(servers.iter().map(v4).collect(), 1));
    }
}

/// Makes the answer to a question, in the format of RFC 1035.
async fn answer(question: &[u8], says: &Mutex<(Says, usize)>, is_udp: bool) -> Option<Vec<u8>> {
    let says = {
        let mut says = says.lock().unwrap();
        says.1 += 1;
        says.0.clone()
    };
    // The name: labels with their lengths, then 0, then type and class.
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += usize::from(question[end]) + 1;
    }
    end += 5;
    let asked = question.get(12..end)?;
    let is_v4 = question[end - 4..end - 2] == [0, 1];
    let (error, is_cut, ttl, addresses) = match says {
        Says::Addresses(addresses, ttl) => (0, false, ttl, addresses),
        Says::Long(_) if is_udp => (0, true, 0, Vec::new()),
        Says::Long(addresses) => (0, false, 1, addresses),
        Says::Error(error) => (error, false, 0, Vec::new()),
        Says::OnlyV4(_) if !is_v4 => (2, false, 0, Vec::new()),
        Says::OnlyV4(addresses) => (0, false, 1, addresses),
        Says::Another(addresses) => {
            let another = b"\x07another\0\0\x01\0\x01";
            let mut answer = question[..2].to_vec();
            answer.extend([0x84, 0x80, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
            answer.extend(another);
            for address in addresses {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                answer.extend(address.octets());
            }
            return Some(answer);
        }
        Says::Garbage => return Some(vec![0xff; 40]),
        Says::Nothing => return None,
        Says::Late(addresses) => {
            sleep(Duration::from_secs(1)).await;
            (0, false, 1, addresses)
        }
    };
    let addresses = if is_v4 { addresses } else { Vec::new() };
    let mut answer = question[..2].to_vec();
    let flags = 0x84 | if is_cut { 2 } else { 0 };
    answer.extend([flags, 0x80 | error, 0, 1]);
    answer.extend((addresses.len() as u16).to_be_bytes());
    answer.extend([0, 0, 0, 0]);
    answer.extend(asked);
    for address in addresses {
        // A pointer to the name in the question.
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
