//! Kills, stops and restarts servers for 30 seconds while a client sends, and shows what its callers see.
//!
//! Five HTTP servers run as processes of their own. One is killed and started again, another one is stopped: it keeps its
//! port and its connections, and answers nothing. The client checks every endpoint once a second and ejects those
//! whose answers fail; it does not retry. Prints a line for every second, and draws them as an SVG.

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

const NAMES: [&str; 5] = ["A", "B", "C", "D", "E"];
const SECONDS: u64 = 30;
const REQUESTS_A_SECOND: u64 = 200;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The same program is the server.
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

/// What happened in one second.
struct Line {
    requests: u64,
    errors: u64,
    p99: Duration,
    out: String,
}

/// Sends requests at an even pace, and waits for all of their answers.
async fn send_for_a_second<S>(client: &S) -> Line
where
    S: Service<(), Response = StatusCode, Error = BoxError, Future: Send> + Clone + Send + 'static,
{
    let latencies: Histogram<u64> =
        Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order");
    let seen = Arc::new(Mutex::new((latencies, 0)));
    let start = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    for i in 0..REQUESTS_A_SECOND {
        let due = Duration::from_secs(1) * i as u32 / REQUESTS_A_SECOND as u32;
        tokio::time::sleep_until(start + due).await;
        let (client, seen) = (client.clone(), seen.clone());
        requests.spawn(async move {
            let start = Instant::now();
            let answer = tokio::time::timeout(Duration::from_millis(500), client.oneshot(())).await;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.0.saturating_record(start.elapsed().as_micros() as u64);
            seen.1 += u64::from(!matches!(answer, Ok(Ok(StatusCode::OK))));
        });
    }
    tokio::time::sleep_until(start + Duration::from_secs(1)).await;
    while requests.join_next().await.is_some() {}
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    Line {
        requests: seen.0.len(),
        errors: seen.1,
        p99: Duration::from_micros(seen.0.value_at_quantile(0.99)),
        out: String::new(),
    }
}

/// Lists the servers that are ejected or unhealthy, as a dashboard would.
fn who_is_out<P, S>(client: &Balance<P, S, ()>, addresses: &[SocketAddr]) -> String
where
    P: Policy<SocketAddr, S, ()>,
    S: Clone + Send + Sync + 'static,
{
    let members = client.endpoints();
    let out = members
        .iter()
        .filter(|member| member.endpoint().status() != Status::Available);
    let names = out.filter_map(|member| {
        let at = addresses
            .iter()
            .position(|address| address == member.endpoint().address())?;
        Some(NAMES[at])
    });
    names.collect::<Vec<_>>().join(" ")
}

/// Makes the client of one endpoint.
fn http_client(
    endpoint: &Endpoint,
) -> impl Service<(), Response = StatusCode, Error = Failed, Future: Send> + Clone + Send + Sync + use<>
{
    let address = *endpoint.address();
    let client: Client<HttpConnector, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    service_fn(move |()| {
        let client = client.clone();
        async move {
            let uri = Uri::try_from(format!("http://{address}/")).map_err(|_| Failed(address))?;
            // A stopped server is heard of in time only if somebody watches the clock.
            let answer = tokio::time::timeout(Duration::from_millis(300), client.get(uri)).await;
            match answer {
                Ok(Ok(response)) => Ok(response.status()),
                _ => Err(Failed(address)),
            }
        }
    })
}

/// Asks an endpoint, through its own service, whether it is well.
async fn check<S>(_: Endpoint, service: S) -> Result<(), BoxError>
where
    S: Service<(), Response = StatusCode, Error = Failed>,
{
    match service.oneshot(()).await? {
        StatusCode::OK => Ok(()),
        status => Err(status.to_string().into()),
    }
}

/// Says which server failed a request.
#[derive(Debug)]
struct Failed(SocketAddr);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} did not answer", self.0)
    }
}

impl std::error::Error for Failed {}

/// Takes every status but 200 for a failure.
#[derive(Clone, Copy)]
struct OkIsWell;

impl Classify<StatusCode, Failed> for OkIsWell {
    fn classify(&self, answer: Result<&StatusCode, &Failed>) -> Outcome {
        match answer {
            Ok(&StatusCode::OK) => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

/// One server, a process of its own that ends with this one.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    /// Starts a server on a port of loopback, any one if that is 0.
    fn start(port: u16) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command
            .arg(port.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or("the server has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().parse()?;
        Ok(Self { child, address })
    }

    fn kill(&mut self, event: &'static str) -> Result<&'static str, BoxError> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(event)
    }

    fn restart(&mut self, event: &'static str) -> Result<&'static str, BoxError> {
        *self = Self::start(self.address.port())?;
        Ok(event)
    }

    fn signal(&self, signal: &str, event: &'static str) -> Result<&'static str, BoxError> {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", signal, &id]).status()?;
        if status.success() {
            Ok(event)
        } else {
            Err("kill failed".into())
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is a server: answers every request with 200 after 5 ms.
async fn serve(port: u16) -> Result<(), BoxError> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = respond_with(|_: Request<_>| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

/// Draws requests, errors, p99 and who was out, by the second.
fn draw(lines: &[Line], path: &Path) -> Result<(), BoxError> {
    let area = SVGBackend::new(path, (900, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "requests (black), errors (red), p99 in ms (blue), and who is out, by the second",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(45)
        .build_cartesian_2d(0..lines.len(), 0_u64..550)?;
    chart.configure_mesh().x_desc("seconds").draw()?;
    let requests = lines.iter().enumerate();
    let requests = requests.map(|(second, line)| (second, line.requests));
    chart.draw_series(LineSeries::new(requests, &BLACK))?;
    let out = lines.iter().enumerate();
    chart.draw_series(
        out.map(|(second, line)| Text::new(line.out.clone(), (second, 520), ("sans-serif", 14))),
    )?;
    let errors = lines
        .iter()
        .enumerate()
        .map(|(second, line)| (second, line.errors));
    chart.draw_series(LineSeries::new(errors, &RED))?;
    let p99 = lines
        .iter()
        .enumerate()
        .map(|(second, line)| (second, line.p99.as_millis() as u64));
    chart.draw_series(LineSeries::new(p99, &BLUE))?;
    area.present()?;
    Ok(())
}
