//! When a request completes.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use ::http::Response;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::advance;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    health::OutlierLayer,
    http::{CompleteOnBody, CompleteOnFirstData, GrpcStatus, HttpStatus},
    *,
};

use crate::support::*;

/// Builds a tracked service that answers once with this body.
macro_rules! tracked {
    ($layer:expr, $response:expr) => {{
        let response = std::sync::Mutex::new(Some($response));
        $layer.layer(service_fn(move |(): ()| {
            let response = response.lock().unwrap().take().unwrap();
            async move { Ok::<_, std::io::Error>(response) }
        }))
    }};
}

fn on_body() -> PendingRequestsLayer<CompleteOnBody> {
    PendingRequestsLayer::default().completion(CompleteOnBody::new())
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_body_ends() {
    let body = || Script::new([Step::Data, Step::Data]);
    // Read to the end.
    let mut service = tracked!(on_body(), Response::new(body()));
    let response = service.call(()).await.unwrap();
    assert_eq!(service.in_flight(), 1);
    assert_eq!(response.body().size_hint().exact(), Some(8));
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((bytes.len(), service.in_flight()), (8, 0));
    // For comparison: completion with the response alone.
    let mut service = tracked!(PendingRequestsLayer::default(), Response::new(body()));
    let _response = service.call(()).await.unwrap();
    assert_eq!(service.in_flight(), 0);
    // Dropped midway.
    let mut service = tracked!(on_body(), Response::new(body()));
    let mut response = service.call(()).await.unwrap();
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 1);
    drop(response);
    assert_eq!(service.in_flight(), 0);
    // Never polled.
    let mut service = tracked!(on_body(), Response::new(body()));
    drop(service.call(()).await.unwrap());
    assert_eq!(service.in_flight(), 0);
    // A body that fails midway gives its count back with the error, not with the drop.
    let broken = Script::new([Step::Data, Step::Break]);
    let mut service = tracked!(on_body(), Response::new(broken));
    let mut response = service.call(()).await.unwrap();
    response.frame().await.unwrap().unwrap();
    response.frame().await.unwrap().unwrap_err();
    assert_eq!(service.in_flight(), 0);
    // Trailers pass through and end the body.
    let trailers = Script::new([Step::Data, Step::Trailers(vec![("x-sum", "7")])]);
    let mut service = tracked!(on_body(), Response::new(trailers));
    let mut response = service.call(()).await.unwrap();
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 1);
    let frame = response.frame().await.unwrap().unwrap();
    assert_eq!(frame.trailers_ref().unwrap()["x-sum"], "7");
    assert_eq!(service.in_flight(), 0);
}

#[tokio::test]
async fn a_body_that_says_that_it_has_ended_has() {
    // An answer to `HEAD`, and an empty one.
    let empty = Script {
        frames: VecDeque::new(),
        tells_its_end: true,
    };
    let mut service = tracked!(on_body(), Response::new(empty));
    let response = service.call(()).await.unwrap();
    assert!(response.body().is_end_stream());
    assert_eq!(service.in_flight(), 0);
    // The body reports that its last frame is the last.
    let known = Script {
        frames: [Step::Data].into(),
        tells_its_end: true,
    };
    let mut service = tracked!(on_body(), Response::new(known));
    let mut response = service.call(()).await.unwrap();
    assert!(!response.body().is_end_stream());
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 0);
}

#[tokio::test]
async fn the_first_data_ends_it_where_that_is_the_answer() {
    let layer = PendingRequestsLayer::default().completion(CompleteOnFirstData::new());
    let mut service = tracked!(
        layer.clone(),
        Response::new(Script::new([Step::Data, Step::Data]))
    );
    let mut response = service.call(()).await.unwrap();
    assert_eq!(service.in_flight(), 1);
    response.frame().await.unwrap().unwrap();
    assert_eq!(service.in_flight(), 0);
    assert_eq!(response.collect().await.unwrap().to_bytes().len(), 4);
    // Without any data, the end of the body completes the request.
    for last in [None, Some(Step::Trailers(vec![])), Some(Step::Break)] {
        let mut service = tracked!(layer.clone(), Response::new(Script::new(last)));
        let mut response = service.call(()).await.unwrap();
        let _ = response.frame().await;
        assert_eq!(service.in_flight(), 0);
    }
}

#[test]
fn frames_and_bodies_allocate_nothing() {
    use std::task::{Context, Waker};
    let mut service = tracked!(
        on_body(),
        Response::new(Script::new(vec![Step::Data; 1000]))
    );
    let mut cx = Context::from_waker(Waker::noop());
    let future = pin!(service.call(()));
    let std::task::Poll::Ready(Ok(response)) = future.poll(&mut cx) else {
        panic!("it answers at once");
    };
    let mut body = pin!(response.into_body());
    let allocations = allocation_counter::measure(|| {
        while let std::task::Poll::Ready(Some(_)) = body.as_mut().poll_frame(&mut cx) {}
    });
    assert_eq!(allocations.count_total, 0);
}

// What trailers say.

/// Calls one endpoint of three behind outlier detection by gRPC status. Returns the number of calls
/// after which it was ejected.
async fn calls_until_ejected(status: &'static str, place: Place) -> Option<usize> {
    let outliers = OutlierLayer::default()
        .classify(GrpcStatus::new())
        .completion(CompleteOnBody::classify(GrpcStatus::new()));
    let mut client = ServiceBuilder::new()
        .layer(BalanceLayer::new(InOrder))
        .layer(outliers)
        .layer(fixed(0..3))
        .service(move |endpoint: &Endpoint<usize>| {
            let name = *endpoint.address();
            service_fn(move |(): ()| {
                let status = if name == 0 { status } else { "0" };
                let answer = match place {
                    Place::Headers => response(200, &[("grpc-status", status)], Script::default()),
                    Place::Trailers => {
                        let trailers = Step::Trailers(vec![("grpc-status", status)]);
                        response(200, &[], Script::new([Step::Data, trailers]))
                    }
                };
                async move { Ok::<_, std::io::Error>(answer) }
            })
        });
    for call in 1..=20 {
        let response = client.ready().await.unwrap().call(()).await.unwrap();
        response.into_body().collect().await.unwrap();
        tokio::task::yield_now().await;
        let first = client.members().swap_remove(0);
        if first.endpoint().ejection().is_some() {
            return Some(call);
        }
    }
    None
}

#[derive(Clone, Copy)]
enum Place {
    Headers,
    Trailers,
}

#[tokio::test(start_paused = true)]
async fn a_status_in_trailers_reaches_outlier_detection() {
    for place in [Place::Headers, Place::Trailers] {
        for status in ["4", "13", "14"] {
            assert_eq!(
                calls_until_ejected(status, place).await,
                Some(5),
                "{status}"
            );
        }
        for status in ["0", "3", "5", "8", "16"] {
            assert_eq!(calls_until_ejected(status, place).await, None, "{status}");
        }
    }
}

/// Calls one endpoint of three with scripted bodies. Returns the number of calls after which it was
/// ejected.
macro_rules! calls_until_ejected {
    ($outliers:expr, $steps:expr) => {{
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer($outliers)
            .layer(fixed(0..3))
            .service(move |endpoint: &Endpoint<usize>| {
                let well = vec![Step::Data, Step::Trailers(vec![("grpc-status", "0")])];
                let steps = if *endpoint.address() == 0 {
                    $steps
                } else {
                    well
                };
                service_fn(move |(): ()| {
                    let body = Script::new(steps.clone());
                    async move { Ok::<_, std::io::Error>(Response::new(body)) }
                })
            });
        let mut calls = 0;
        loop {
            calls += 1;
            let mut response = client.ready().await.unwrap().call(()).await.unwrap();
            // Reads for at most 5 s, then drops the body.
            for _ in 0..50 {
                let Some(Ok(_)) = response.frame().await else {
                    break;
                };
                advance(Duration::from_millis(100)).await;
            }
            drop(response);
            tokio::task::yield_now().await;
            let first = client.members().swap_remove(0);
            if first.endpoint().ejection().is_some() {
                break Some(calls);
            } else if calls == 20 {
                break None;
            }
        }
    }};
}

#[tokio::test(start_paused = true)]
async fn what_a_body_shows_reaches_outlier_detection() {
    let grpc = OutlierLayer::default().classify(GrpcStatus::new());
    let http = OutlierLayer::default().classify(HttpStatus::new());
    let unavailable = || vec![Step::Trailers(vec![("grpc-status", "14")])];
    // Without data, the end of the body also decides for the first data.
    let on_data = grpc
        .clone()
        .completion(CompleteOnFirstData::classify(GrpcStatus::new()));
    assert_eq!(
        calls_until_ejected!(on_data.clone(), unavailable()),
        Some(5)
    );
    let with_data = || vec![Step::Data, Step::Trailers(vec![("grpc-status", "14")])];
    assert_eq!(calls_until_ejected!(on_data, with_data()), None);
    // A body that breaks off counts as a failure only if the status leaves the outcome to the body.
    let breaks = || vec![Step::Data, Step::Break];
    let on_body = http.clone().completion(CompleteOnBody::new());
    assert_eq!(calls_until_ejected!(on_body, breaks()), None);
    let undecided = http
        .classify(HttpStatus::new().class(2, Outcome::Undecided))
        .completion(CompleteOnBody::new());
    assert_eq!(calls_until_ejected!(undecided.clone(), breaks()), Some(5));
    assert_eq!(calls_until_ejected!(undecided, vec![Step::Data]), None);
    // A stream that its reader drops midway does not count as a request cancelled after a wait.
    let impatient = grpc
        .completion(CompleteOnBody::classify(GrpcStatus::new()))
        .cancelled_after(Duration::from_secs(1));
    assert_eq!(calls_until_ejected!(impatient, vec![Step::Data; 100]), None);
}

/// An ejected server works again and answers with long-lived streams.
#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_open_is_a_good_probe() {
    // Once with messages, and once with none so far.
    for steps in [vec![Step::Data; 10], vec![]] {
        let is_broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (broken, script) = (is_broken.clone(), steps.clone());
        let mut client = ServiceBuilder::new()
            .layer(BalanceLayer::new(InOrder))
            .layer(
                OutlierLayer::default()
                    .classify(GrpcStatus::new())
                    .completion(CompleteOnBody::classify(GrpcStatus::new())),
            )
            .layer(fixed(0..3))
            .service(move |endpoint: &Endpoint<usize>| {
                let (name, broken, script) = (*endpoint.address(), broken.clone(), script.clone());
                service_fn(move |(): ()| {
                    let is_broken = name == 0 && broken.load(std::sync::atomic::Ordering::Relaxed);
                    let status = if is_broken { "14" } else { "0" };
                    let status: &[_] = if is_broken {
                        &[("grpc-status", status)]
                    } else {
                        &[]
                    };
                    let answer = response(200, status, (name, Script::new(script.clone())));
                    let (head, (name, body)) = answer.into_parts();
                    let mut answer = Response::from_parts(head, body);
                    answer.extensions_mut().insert(name);
                    async move { Ok::<_, std::io::Error>(answer) }
                })
            });
        for _ in 0..5 {
            client.ready().await.unwrap().call(()).await.unwrap();
        }
        tokio::task::yield_now().await;
        assert!(client.members()[0].endpoint().ejection().is_some());
        is_broken.store(false, std::sync::atomic::Ordering::Relaxed);
        // Opens a stream every ten seconds and reads one message, if there is one. All stay open.
        let mut open = Vec::new();
        let mut to_first = 0;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let mut stream = client.ready().await.unwrap().call(()).await.unwrap();
            if !steps.is_empty() {
                stream.frame().await.unwrap().unwrap();
            }
            to_first += usize::from(stream.extensions().get() == Some(&0_usize));
            open.push(stream);
        }
        // With messages, the endpoint returns with the first probe. Without, it returns once the
        // longest ejection has passed.
        let least = if steps.is_empty() { 20 } else { 50 };
        assert!(to_first > least, "{to_first} of 60");
        assert!(client.members()[0].endpoint().ejection().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_in_trailers_reaches_peak_ewma() {
    for (status, penalty) in [("0", false), ("14", true)] {
        let layer = PeakEwmaLayer::default()
            .classify(GrpcStatus::new())
            .completion(CompleteOnBody::classify(GrpcStatus::new()));
        let trailers = Step::Trailers(vec![("grpc-status", status)]);
        let mut service = tracked!(layer, Response::new(Script::new([Step::Data, trailers])));
        let response = service.call(()).await.unwrap();
        advance(Duration::from_millis(10)).await;
        response.into_body().collect().await.unwrap();
        // The penalty is 5 s.
        let estimate = service.estimate();
        assert_eq!(estimate >= Duration::from_secs(4), penalty, "{estimate:?}");
    }
    // A body dropped before its trailers does not change the estimate.
    let layer = PeakEwmaLayer::default()
        .classify(GrpcStatus::new())
        .completion(CompleteOnBody::classify(GrpcStatus::new()));
    let mut service = tracked!(layer, Response::new(Script::new([Step::Data])));
    let response = service.call(()).await.unwrap();
    advance(Duration::from_secs(3)).await;
    drop(response);
    let default_rtt = Duration::from_millis(30);
    assert!(service.estimate() <= default_rtt);
}

/// A gateway answers 503 in 0.2 ms; the other server takes 20 ms.
#[tokio::test(start_paused = true)]
async fn a_gateway_that_fails_fast_draws_little_traffic() {
    let calls = Arc::new(std::sync::Mutex::new([0_usize; 2]));
    let seen = calls.clone();
    let client = ServiceBuilder::new()
        .layer(BalanceLayer::new(P2c::seeded(4)))
        .layer(each(PeakEwmaLayer::default().classify(HttpStatus::new())))
        .layer(fixed([0, 1]))
        .service(move |endpoint: &Endpoint<usize>| {
            let (name, calls) = (*endpoint.address(), calls.clone());
            service_fn(move |(): ()| {
                calls.lock().unwrap()[name] += 1;
                async move {
                    let (after, status) = [(200, 503), (20_000, 200)][name];
                    tokio::time::sleep(Duration::from_micros(after)).await;
                    Ok::<_, std::io::Error>(response(status, &[], ()))
                }
            })
        });
    for _ in 0..6000 {
        tokio::spawn(client.clone().oneshot(()));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let [gateway, server] = *seen.lock().unwrap();
    let share = gateway as f64 / (gateway + server) as f64;
    println!("{share:.4} of the traffic went to the gateway");
    assert!(share <= 0.05, "{share}");
}
