//! Calls that go on while a server dies.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tonic::{body::Body, client::GrpcService};
use tower::BoxError;

use crate::greeter::{GrpcServer, say};

/// Makes 1 000 calls, kills the first server before the 300th, and prints how the calls ended.
/// Returns the time from the kill until calls stopped going to the server; `None` if they did not
/// stop, or if more calls failed after that than the probes that ejections end with.
///
/// `takes_requests` returns whether calls still go to an address.
pub(crate) async fn outlive<T>(
    what: &str,
    client: T,
    mut servers: Vec<GrpcServer>,
    takes_requests: impl Fn(&SocketAddr) -> bool,
) -> Option<Duration>
where
    T: GrpcService<Body> + Clone,
    T::ResponseBody: http_body::Body + Send + 'static,
    <T::ResponseBody as http_body::Body>::Error: Into<BoxError>,
{
    let address = servers[0].address;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut died, mut left) = (Instant::now(), None);
    for number in 1..=1000 {
        if number == 300 {
            servers.remove(0).kill().await;
            died = Instant::now();
        }
        if number >= 300 && left.is_none() && !takes_requests(&address) {
            left = Some((number, died.elapsed()));
        }
        let answer = timeout(Duration::from_millis(250), say(client.clone(), "hello")).await;
        if !matches!(answer, Ok(Ok(_))) {
            let failed = if left.is_some() {
                &mut after
            } else {
                &mut before
            };
            failed.push(number);
        }
        sleep(Duration::from_millis(1)).await;
    }
    print!("{what}: a server died at call 300, {} failed", before.len());
    match (left, before.last()) {
        (Some((number, took)), _) => println!(
            ", {before:?}; it was left at {number}, after {took:.0?}, and then failed {after:?}"
        ),
        (None, Some(last)) => println!(", the last one {last}"),
        (None, None) => println!(),
    }
    let took = left.map(|(_, took)| took);
    took.filter(|_| after.len() <= PROBES)
}

/// The first ejections end after one, three and seven seconds, each with a call as a probe. With
/// failover, that call goes to another server.
const PROBES: usize = 2;
