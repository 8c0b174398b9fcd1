use std::{io, net::SocketAddr};

use tokio::net::TcpStream;

use crate::endpoint::Endpoint;

/// Checks that an endpoint accepts TCP connections; for use with
/// [`HealthCheckLayer`](super::HealthCheckLayer).
///
/// ```
/// use tower_lb::health::{HealthCheckLayer, tcp_connect};
///
/// # type HttpClient = ();
/// let layer = HealthCheckLayer::new(tcp_connect::<HttpClient>);
/// # let _ = layer;
/// ```
///
/// A listening socket says little about the server behind it: even a stopped process keeps one.
/// Prefer a check that sends a request.
///
/// # Errors
///
/// Fails if the connection fails.
pub async fn tcp_connect<S>(endpoint: Endpoint<SocketAddr>, _: S) -> io::Result<()> {
    TcpStream::connect(endpoint.address()).await.map(drop)
}
