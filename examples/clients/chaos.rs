//! Kills, stops and restarts servers for 30 seconds and shows what a client sees meanwhile.
//!
//! Five HTTP servers run in their own processes. One is killed and started again. Another one is
//! stopped: it keeps its port and its connections, but does not answer. The client checks every
//! endpoint once a second and ejects endpoints whose answers fail. It does not retry. Prints a line
//! for every second and draws the lines as an SVG.
//!
//! Run: `cargo run -p tower-lb-clients --example chaos`

use std::{
    convert::Infallible,
    fmt,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use http_body_util::Empty;
use hyper::{
    Request, Response, StatusCode, Uri, body::Bytes, server::conn::http1,
    service::service_fn as respond_with,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use plotters::prelude::*;
use tokio::{net::TcpListener, time::Instant};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    Balance, BalanceLayer, Classify, Endpoint, Outcome, P2c, PendingRequestsLayer, Policy, Status,
    each, fixed,
    health::{HealthCheckLayer, OutlierLayer},
};

mod processes;

use self::processes::*;

const NAMES: [&str; 5] = ["A", "B", "C", "D", "E"];
const SECONDS: u64 = 30;
const REQUESTS_A_SECOND: u64 = 200;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The same program also runs as a server.
    if let Some(port) = std::env::args().nth(1) {
        return serve(port.parse()?).await;
    }
    let mut servers = Vec::new();
    for _ in NAMES {
        servers.push(Process::start(0)?);
    }
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::default()))
        .layer(
            OutlierLayer::default()
                .base_ejection(Duration::from_secs(3))
                .classify(OkIsWell),
        )
        .layer(each(PendingRequestsLayer::default()))
        .layer(
            HealthCheckLayer::new(check)
                .interval(Duration::from_secs(1))
                .edge_interval(Duration::from_millis(300))
                .timeout(Duration::from_millis(300))
                .jitter(Duration::from_millis(100)),
        )
        .layer(fixed(addresses.clone()))
        .service(http_client);

    println!(
        "{REQUESTS_A_SECOND} requests a second over 5 processes, each given up after 500 ms; no retries\n"
    );
    println!("second  requests  errors      p99  out       what happens");
    let mut lines = Vec::new();
    for second in 0..SECONDS {
        let event = match second {
            5 => servers[1].kill("B is killed")?,
            12 => servers[1].restart("B is started again")?,
            16 => servers[2].signal("STOP", "C is stopped")?,
            23 => servers[2].signal("CONT", "C goes on")?,
            _ => "",
        };
        let mut line = send_for_a_second(&client).await;
        line.out = who_is_out(&client, &addresses);
        println!(
            "{second:>6}  {:>8}  {:>6}  {:>4} ms  {:<8}  {event}",
            line.requests,
            line.errors,
            line.p99.as_millis(),
            line.out
        );
        lines.push(line);
    }
    let errors: u64 = lines.iter().map(|line| line.errors).sum();
    let requests: u64 = lines.iter().map(|line| line.requests).sum();
    println!("\n{errors} of {requests} requests failed");
    let path = Path::new("target").join("chaos.svg");
    std::fs::create_dir_all("target")?;
    draw(&lines, &path)?;
    println!("drawn in {}", path.display());
    Ok(())
}
