//! HTTP servers on loopback that can leave and come back.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
};

use crate::program::free_port;

/// Servers at one port of several addresses of 127.0.0.0/8, so that DNS can name them.
#[derive(Debug)]
pub struct Backends {
    servers: Vec<Server>,
    port: u16,
    seen: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// `None` while it is down. Dropped, it shuts down gracefully.
    up: Option<(watch::Sender<()>, JoinSet<()>)>,
}

impl Backends {
    /// Starts `n` servers.
    ///
    /// # Panics
    ///
    /// If no port is free at all of their addresses.
    pub async fn start(n: u8) -> Self {
        // Each set has addresses of its own, so that sets do not meet.
        static SETS: AtomicUsize = AtomicUsize::new(1);
        let set = SETS.fetch_add(1, Ordering::Relaxed) as u8;
        let ip = |i: u8| Ipv4Addr::new(127, 7, set, i + 1);
        let port = free_port(ip(0));
        let servers = (0..n).map(|i| Server {
            address: SocketAddr::new(IpAddr::V4(ip(i)), port),
            up: None,
        });
        let mut backends = Self {
            servers: servers.collect(),
            port,
            seen: Arc::default(),
        };
        for i in 0..usize::from(n) {
            backends.start_one(i);
        }
        backends
    }

    /// Returns the port of all servers.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address of a server.
    #[must_use]
    pub fn address(&self, i: usize) -> SocketAddr {
        self.servers[i].address
    }

    /// Returns the addresses of some servers.
    #[must_use]
    pub fn addresses(&self, of: &[usize]) -> Vec<SocketAddr> {
        of.iter().map(|&i| self.address(i)).collect()
    }

    /// Returns how many requests have come in all.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// Starts a server that is down.
    pub fn start_one(&mut self, i: usize) {
        let server = &mut self.servers[i];
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(server.address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let (stop, stopped) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, server.address, stopped, self.seen.clone()));
        server.up = Some((stop, tasks));
    }

    /// Shuts a server down: it takes no new connection, and answers what it has begun.
    pub async fn stop(&mut self, i: usize) {
        let (stop, mut tasks) = self.servers[i].up.take().expect("it is up");
        drop(stop);
        while tasks.join_next().await.is_some() {}
    }

    /// Kills a server: its connections break, whatever they carry.
    pub async fn kill(&mut self, i: usize) {
        let (_, mut tasks) = self.servers[i].up.take().expect("it is up");
        tasks.shutdown().await;
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    mut stopped: watch::Receiver<()>,
    seen: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.changed() => break,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let (mut stopped, seen) = (stopped.clone(), seen.clone());
        connections.spawn(async move {
            let service = service_fn(|_: Request<Incoming>| {
                seen.fetch_add(1, Ordering::Relaxed);
                let body = Full::new(Bytes::from(address.to_string()));
                async move { Ok::<_, Infallible>(Response::new(body)) }
            });
            let server = hyper::server::conn::http1::Builder::new();
            let mut connection =
                std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
