//! Retries of HTTP requests.

use std::{
    convert::Infallible,
    io::{self, ErrorKind},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty};
use tokio::time::Instant;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    AttemptsFailed, BalanceLayer, Endpoint, FailoverLayer, HedgeLayer, PendingRequestsLayer,
    RoundRobin, each,
    failover::{Retry, RetryPolicy},
    fixed,
    http::{BodyMoved, ExcludeTriedLayer, HttpRetry, TagTriedLayer, UnsentBody, retry_after},
};

use crate::support::InOrder;

type Calls = Arc<Mutex<Vec<usize>>>;

fn judge(
    policy: &HttpRetry,
    method: Method,
    status: u16,
    headers: &[(&'static str, &str)],
) -> Retry {
    let mut request = Request::new(());
    *request.method_mut() = method;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().append(*name, value.parse().unwrap());
    }
    policy.retry(&request, Ok(&response))
}

#[test]
fn statuses_are_tried_again_as_the_table_says() {
    let policy = HttpRetry::new();
    for status in 100..600 {
        let again = [502, 503, 504].contains(&status);
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let expected = if again { Retry::Yes } else { Retry::No };
            assert_eq!(judge(&policy, method, status, &[]), expected, "{status}");
        }
        for method in ["POST", "PATCH", "CONNECT", "ANY"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(judge(&policy, method, status, &[]), Retry::No);
        }
    }
}

#[test]
fn pushback_is_read_from_headers() {
    let policy = HttpRetry::new();
    let after = |value: &str| judge(&policy, Method::GET, 503, &[("retry-after", value)]);
    assert_eq!(after("7"), Retry::Elsewhere(Duration::from_secs(7)));
    assert_eq!(after("0"), Retry::Elsewhere(Duration::ZERO));
    assert_eq!(
        after("Sun, 06 Nov 1994 08:49:37 GMT"),
        Retry::Elsewhere(Duration::ZERO)
    );
    assert_eq!(after("soon"), Retry::Yes);
    let limited = |headers: &[(&'static str, &str)]| judge(&policy, Method::GET, 429, headers);
    assert_eq!(limited(&[]), Retry::No);
    assert_eq!(
        limited(&[("retry-after", "2")]),
        Retry::Elsewhere(Duration::from_secs(2))
    );
    assert_eq!(
        judge(&policy, Method::POST, 503, &[("retry-after", "7")]),
        Retry::No
    );
    assert_eq!(
        judge(&policy, Method::GET, 200, &[("retry-after", "7")]),
        Retry::No
    );

    let grpc = HttpRetry::new().grpc();
    let answer = |headers: &[(&'static str, &str)]| judge(&grpc, Method::POST, 200, headers);
    assert_eq!(answer(&[("grpc-status", "14")]), Retry::Yes);
    for code in ["0", "1", "4", "5", "8", "13", "16", "99", "", "014"] {
        assert_eq!(answer(&[("grpc-status", code)]), Retry::No, "{code}");
    }
    for (pushback, expected) in [
        ("150", Retry::After(Duration::from_millis(150))),
        ("0", Retry::After(Duration::ZERO)),
        ("-1", Retry::Forbidden),
        ("later", Retry::Forbidden),
        ("", Retry::Forbidden),
    ] {
        let headers = [("grpc-status", "14"), ("grpc-retry-pushback-ms", pushback)];
        assert_eq!(answer(&headers), expected, "{pushback:?}");
    }
    let exhausted = [("grpc-status", "8"), ("grpc-retry-pushback-ms", "150")];
    assert_eq!(answer(&exhausted), Retry::After(Duration::from_millis(150)));
    assert_eq!(
        judge(&policy, Method::POST, 200, &[("grpc-status", "14")]),
        Retry::No
    );
}

#[test]
fn errors_are_tried_again_as_the_table_says() {
    let policy = HttpRetry::new();
    let judge = |method: Method, kind: ErrorKind| {
        let mut request = Request::new(());
        *request.method_mut() = method;
        let error = BoxError::from(io::Error::from(kind));
        policy.retry(&request, Err::<&Response<()>, _>(&error))
    };
    assert_eq!(
        judge(Method::POST, ErrorKind::ConnectionRefused),
        Retry::Yes
    );
    assert_eq!(judge(Method::POST, ErrorKind::ConnectionReset), Retry::No);
    assert_eq!(judge(Method::GET, ErrorKind::ConnectionReset), Retry::Yes);
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = httpdate::parse_http_date("Fri, 31 Dec 1999 23:59:00 GMT").unwrap();
    let read = |value: &str, now: SystemTime| {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", value.parse().unwrap());
        retry_after(&headers, now)
    };
    let secs = |secs| Some(Duration::from_secs(secs));
    for (value, expected) in [
        ("120", secs(120)),
        (" 120 ", secs(120)),
        ("0", secs(0)),
        ("99999999999999999999999", secs(u64::MAX)),
        ("Fri, 31 Dec 1999 23:59:59 GMT", secs(59)),
        ("Fri, 31 Dec 1999 23:58:59 GMT", secs(0)),
        ("Friday, 31-Dec-99 23:59:59 GMT", secs(59)),
        ("Fri Dec 31 23:59:59 1999", secs(59)),
        ("-1", None),
        ("+1", None),
        ("1.5", None),
        ("", None),
        ("tomorrow", None),
    ] {
        assert_eq!(read(value, now), expected, "{value:?}");
    }
    assert_eq!(retry_after(&HeaderMap::new(), now), None);
}

type Answers = Arc<Mutex<Vec<(u16, Option<&'static str>)>>>;

/// Makes clients of servers `0..`, which answer with these statuses and `Retry-After`s, from a
/// seed. Also a watcher.
macro_rules! answering {
    ($answers:expr, $calls:expr) => {{
        let (answers, calls): (Answers, Calls) = ($answers.clone(), $calls.clone());
        let n = answers.lock().unwrap().len();
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..n))
            .service(move |endpoint: &Endpoint<usize>| {
                let (name, answers, calls) = (*endpoint.address(), answers.clone(), calls.clone());
                service_fn(move |_: Request<()>| {
                    calls.lock().unwrap().push(name);
                    let (status, after) = answers.lock().unwrap()[name];
                    let mut response = Response::builder().status(status);
                    if let Some(after) = after {
                        response = response.header("retry-after", after);
                    }
                    std::future::ready(response.body(()))
                })
            });
        let watcher = balance.watcher_without_loads();
        // Each layer has a budget of its own.
        let client = move |seed| {
            let failover = FailoverLayer::new(HttpRetry::new()).seeded(seed);
            failover.layer(balance.clone())
        };
        (client, watcher)
    }};
}

/// Before, the caller got the answer with two servers idle.
#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_a_pause_has_it_and_the_others_serve() {
    let answers: Answers = Arc::new(Mutex::new(vec![(503, Some("6")), (200, None), (200, None)]));
    let calls = Calls::default();
    let (client, watcher) = answering!(answers, calls);
    let client = client(1);
    let start = Instant::now();
    let answer = client.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(
        start.elapsed() <= Duration::from_millis(25),
        "usual backoff"
    );
    let ejection = watcher.members()[0].endpoint().ejection().unwrap();
    assert_eq!(&*ejection.reason, "its server asked for a pause");
    let rests = ejection.until - start;
    assert!(
        (Duration::from_secs(6)..=Duration::from_secs(9)).contains(&rests),
        "{rests:?}"
    );
    for _ in 0..55 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.clone().oneshot(Request::new(())).await.unwrap();
    }
    assert_eq!(calls.lock().unwrap().iter().filter(|&&c| c == 0).count(), 1);
    answers.lock().unwrap()[0] = (200, None);
    tokio::time::sleep(Duration::from_secs(4)).await;
    client.oneshot(Request::new(())).await.unwrap();
    assert_eq!(calls.lock().unwrap().last(), Some(&0), "it is back");
}

/// Hedging alone honours it as well, also for a request that is not sent again.
#[tokio::test(start_paused = true)]
async fn under_hedging_a_server_that_asks_for_a_pause_has_it() {
    for (method, status) in [(Method::GET, 200), (Method::POST, 503)] {
        let balance = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed(0..2))
            .service(|endpoint: &Endpoint<usize>| {
                let status = [503, 200][*endpoint.address()];
                service_fn(move |_: Request<()>| {
                    let response = Response::builder().status(status);
                    std::future::ready(response.header("retry-after", "6").body(()))
                })
            });
        let watcher = balance.watcher_without_loads();
        let client = HedgeLayer::after(Duration::from_secs(1), HttpRetry::new()).layer(balance);
        let request = Request::builder().method(method).body(()).unwrap();
        let answer = client.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status);
        let ejections = watcher.members();
        let mut ejections = ejections.iter().map(|member| member.endpoint().ejection());
        assert!(ejections.next().unwrap().is_some());
        assert!(ejections.next().unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_hours_is_a_minute_and_the_last_one_has_none() {
    let answers: Answers = Arc::new(Mutex::new(vec![(503, Some("7200")); 2]));
    let (client, watcher) = answering!(answers, Calls::default());
    let client = client(1);
    let start = Instant::now();
    let answer = client.clone().oneshot(Request::new(())).await;
    assert_eq!(answer.unwrap().status(), 503);
    let rests: Vec<_> = watcher
        .members()
        .iter()
        .map(|member| {
            member
                .endpoint()
                .ejection()
                .map(|e| (e.until - start).as_secs())
        })
        .collect();
    assert!(
        rests[0].is_some_and(|secs| (40..=60).contains(&secs)),
        "{rests:?}"
    );
    assert_eq!(rests[1], None);
}

/// A quota is the caller's: other requests go on there.
#[tokio::test(start_paused = true)]
async fn a_spent_quota_binds_this_request_alone() {
    let answers: Answers = Arc::new(Mutex::new(vec![(429, Some("60")), (200, None)]));
    let calls = Calls::default();
    let (client, watcher) = answering!(answers, calls);
    let client = client(1);
    for _ in 0..3 {
        let answer = client.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(*calls.lock().unwrap(), [0, 1, 0, 1, 0, 1]);
    assert!(watcher.members()[0].endpoint().ejection().is_none());
}

/// Before, five hundred clients that were told `1` came back within one millisecond.
#[tokio::test(start_paused = true)]
async fn clients_that_are_told_one_time_come_back_apart() {
    let answers: Answers = Arc::new(Mutex::new(vec![(503, Some("1"))]));
    let (client, _) = answering!(answers, Calls::default());
    let times = Arc::new(Mutex::new(Vec::new()));
    let start = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for seed in 0..500 {
        let (client, times) = (client(seed), times.clone());
        clients.spawn(async move {
            client.oneshot(Request::new(())).await.unwrap();
            times.lock().unwrap().push(start.elapsed().as_millis());
        });
    }
    clients.join_all().await;
    let mut times = std::mem::take(&mut *times.lock().unwrap());
    times.sort_unstable();
    // Each has waited twice, for 1 to 1.5 s.
    assert!(times[0] >= 2000 && times[499] <= 3010, "{times:?}");
    assert!(times[450] - times[50] > 400, "{times:?}");
}

/// A body that is not `Clone` and counts how many of its frames were read.
struct Stream {
    frames: usize,
    read: Arc<Mutex<usize>>,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.frames == 0 {
            return Poll::Ready(None);
        }
        self.frames -= 1;
        *self.read.lock().unwrap() += 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }

    fn is_end_stream(&self) -> bool {
        self.frames == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.frames as u64)
    }
}

/// How server 0 fails. Server 1 reads the whole body and answers with the number of bytes.
#[derive(Clone, Copy, PartialEq)]
enum First {
    FailsBefore,
    FailsMidway,
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_again_only_when_nothing_of_it_was_read() {
    for (first, expected_calls) in [
        (First::FailsBefore, vec![0, 1]),
        (First::FailsMidway, vec![0]),
    ] {
        let calls = Calls::default();
        let seen = calls.clone();
        let connect = move |endpoint: &Endpoint<usize>| {
            let (name, calls) = (*endpoint.address(), calls.clone());
            service_fn(move |request: Request<UnsentBody<Stream>>| {
                calls.lock().unwrap().push(name);
                async move {
                    let mut body = request.into_body();
                    assert_eq!(body.size_hint().exact(), Some(3));
                    assert!(!body.is_end_stream());
                    if name == 0 && first == First::FailsMidway {
                        body.frame().await.unwrap().unwrap();
                    }
                    if name == 0 {
                        return Err(io::Error::from(ErrorKind::ConnectionRefused));
                    }
                    let bytes = body.collect().await.unwrap().to_bytes();
                    Ok(Response::new(bytes.len()))
                }
            })
        };
        let read = Arc::new(Mutex::new(0));
        let stream = Stream {
            frames: 3,
            read: read.clone(),
        };
        let client = ServiceBuilder::new()
            .map_request(|request: Request<Stream>| request.map(UnsentBody::new))
            .layer(FailoverLayer::new(HttpRetry::new()).copy_with(UnsentBody::copy_request))
            .layer(BalanceLayer::new(InOrder))
            .layer(fixed([0, 1]))
            .service(connect);
        let mut request = Request::new(stream);
        request
            .headers_mut()
            .insert("x-kept", "yes".parse().unwrap());
        let answer = client.oneshot(request).await;
        match first {
            First::FailsBefore => {
                assert_eq!(answer.unwrap().into_body(), 3);
                assert_eq!(*read.lock().unwrap(), 3);
            }
            First::FailsMidway => {
                assert!(answer.unwrap_err().is::<io::Error>(), "as it is");
                assert_eq!(*read.lock().unwrap(), 1);
            }
        }
        assert_eq!(*seen.lock().unwrap(), expected_calls);
    }
}

/// Of two concurrent tries, the first one to read gets the body. The other one fails and sends
/// nothing.
#[tokio::test]
async fn only_one_try_reads_a_body() {
    let read = Arc::new(Mutex::new(0));
    let stream = Stream {
        frames: 2,
        read: read.clone(),
    };
    let first = Request::new(UnsentBody::new(stream));
    let kept = UnsentBody::copy_request(&first).unwrap();
    let second = UnsentBody::copy_request(&kept).unwrap();
    let body = second.into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes().len(), 2);
    assert!(UnsentBody::copy_request(&kept).is_none());
    let error = first.into_body().frame().await.unwrap().unwrap_err();
    assert!(error.is::<BodyMoved>());
    assert_eq!(*read.lock().unwrap(), 2);
}

/// Each try goes to another endpoint even with a timeout per try and a buffer between the failover
/// and the balancer.
#[tokio::test(start_paused = true)]
async fn the_tried_set_travels_through_layers_between() {
    let calls = Calls::default();
    let seen = calls.clone();
    let connect = move |endpoint: &Endpoint<usize>| {
        let (name, calls) = (*endpoint.address(), calls.clone());
        service_fn(move |request: Request<Empty<Bytes>>| {
            assert!(
                request.extensions().is_empty(),
                "the list stays with the balancer"
            );
            calls.lock().unwrap().push(name);
            async move {
                match name {
                    3 => Ok(Response::new(name)),
                    2 => Err(io::Error::from(ErrorKind::ConnectionRefused)),
                    _ => std::future::pending().await,
                }
            }
        })
    };
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(HttpRetry::new()).attempts(4))
        .layer(TagTriedLayer::addressed_by::<usize>())
        .buffer(1)
        .timeout(Duration::from_millis(100))
        .layer(ExcludeTriedLayer)
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(each(PendingRequestsLayer::default()))
        .layer(fixed(0..4))
        .service(connect.clone());
    for _ in 0..8 {
        seen.lock().unwrap().clear();
        let start = Instant::now();
        let answer = client.clone().oneshot(Request::new(Empty::new())).await;
        assert_eq!(answer.unwrap().into_body(), 3);
        assert!(start.elapsed() <= Duration::from_millis(2 * 100 + 25 + 75 + 175 + 10));
        let mut tried = seen.lock().unwrap().clone();
        let all = tried.len();
        tried.sort_unstable();
        tried.dedup();
        assert_eq!(tried.len(), all, "nobody twice");
    }
    // When all tries fail, the error names their endpoints, although the balancer is several layers
    // below.
    let client = ServiceBuilder::new()
        .layer(FailoverLayer::new(HttpRetry::new()).attempts(3))
        .layer(TagTriedLayer::addressed_by::<usize>())
        .timeout(Duration::from_millis(100))
        .layer(ExcludeTriedLayer)
        .layer(BalanceLayer::new(InOrder))
        .layer(fixed(0..3))
        .service(connect);
    let error = client
        .oneshot(Request::new(Empty::new()))
        .await
        .unwrap_err();
    let failed = error.downcast_ref::<AttemptsFailed>().unwrap();
    let names: Vec<_> = failed
        .attempts()
        .iter()
        .map(|a| a.endpoint().unwrap())
        .collect();
    assert_eq!(names, ["0", "1", "2"]);
}
