use std::{io, net::SocketAddr};

use tokio::net::TcpStream;

use crate::endpoint::Endpoint;

/// Checks that an endpoint accepts TCP connections: for [`HealthCheckLayer`](super::HealthCheckLayer).
///
/// ```
/// use tower_lb::health::{HealthCheckLayer, tcp_connect};
///
/// # type HttpClient = ();
/// let layer = HealthCheckLayer::new(tcp_connect::<HttpClient>);
/// # let _ = layer;
/// ```
///
/// A listening socket says little of the server behind it: a stopped process has one still. Prefer a request.
///
/// # Errors
///
/// Those of the connection.
pub async fn tcp_connect<S>(endpoint: Endpoint<SocketAddr>, _: S) -> io::Result<()> {
    TcpStream::connect(endpoint.address()).await.map(drop)
}
