//! Support for the chaos example: server processes, load, and a chart.

use super::*;

/// What happened in one second.
pub(crate) struct Line {
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) p99: Duration,
    pub(crate) out: String,
}

/// Sends requests at an even pace, and waits for all of their answers.
pub(crate) async fn send_for_a_second<S>(client: &S) -> Line
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
pub(crate) fn who_is_out<P, S>(client: &Balance<P, S, ()>, addresses: &[SocketAddr]) -> String
where
    P: Policy<SocketAddr, S, ()>,
    S: Clone + Send + Sync + 'static,
{
    let members = client.members();
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
pub(crate) fn http_client(
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
            // A stopped server keeps its connections open, so only a timeout reveals it.
            let answer = tokio::time::timeout(Duration::from_millis(300), client.get(uri)).await;
            match answer {
                Ok(Ok(response)) => Ok(response.status()),
                _ => Err(Failed(address)),
            }
        }
    })
}

/// Checks an endpoint by a request through its own service.
pub(crate) async fn check<S>(_: Endpoint, service: S) -> Result<(), BoxError>
where
    S: Service<(), Response = StatusCode, Error = Failed>,
{
    match service.oneshot(()).await? {
        StatusCode::OK => Ok(()),
        status => Err(status.to_string().into()),
    }
}

/// An error that names the server that failed a request.
#[derive(Debug)]
pub(crate) struct Failed(SocketAddr);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} did not answer", self.0)
    }
}

impl std::error::Error for Failed {}

/// Counts every status but 200 as a failure.
#[derive(Clone, Copy)]
pub(crate) struct OkIsWell;

impl Classify<StatusCode, Failed> for OkIsWell {
    fn classify(&self, answer: Result<&StatusCode, &Failed>) -> Outcome {
        match answer {
            Ok(&StatusCode::OK) => Outcome::Success,
            _ => Outcome::Failure,
        }
    }
}

/// Runs one server in its own process, which ends with this one.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts a server on this port of loopback; 0 stands for any free port.
    pub(crate) fn start(port: u16) -> Result<Self, BoxError> {
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

    pub(crate) fn kill(&mut self, event: &'static str) -> Result<&'static str, BoxError> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(event)
    }

    pub(crate) fn restart(&mut self, event: &'static str) -> Result<&'static str, BoxError> {
        *self = Self::start(self.address.port())?;
        Ok(event)
    }

    pub(crate) fn signal(
        &self,
        signal: &str,
        event: &'static str,
    ) -> Result<&'static str, BoxError> {
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

/// Runs a server that answers every request with 200 after 5 ms.
pub(crate) async fn serve(port: u16) -> Result<(), BoxError> {
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

/// Draws requests, errors, p99 and the unavailable servers for each second.
pub(crate) fn draw(lines: &[Line], path: &Path) -> Result<(), BoxError> {
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
