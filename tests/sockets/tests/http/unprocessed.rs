//! What an HTTP/2 server has not begun with is sent to another one, whatever the method.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ::http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_lb::{
    http::{HttpRetry, UnsentBody},
    *,
};

/// What a server does with each stream.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answer,
    /// Refuses it, with RST_STREAM.
    Refuse,
    /// Shuts the connection down before it begins with the stream, with GOAWAY.
    ShutDown,
    /// Begins, and then resets the stream.
    Break,
}

async fn server(does: Does) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = Arc::new(AtomicUsize::new(0));
    let seen = streams.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(socket, does, seen.clone()));
        }
    });
    (address, streams)
}

async fn serve(
    socket: tokio::net::TcpStream,
    does: Does,
    seen: Arc<AtomicUsize>,
) -> Result<(), h2::Error> {
    if does == Does::ShutDown {
        let _ = shut_down(socket, &seen).await;
        return Ok(());
    }
    let mut connection = h2::server::handshake(socket).await?;
    while let Some(stream) = connection.accept().await {
        let (_, mut respond) = stream?;
        seen.fetch_add(1, Relaxed);
        match does {
            Does::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
            Does::Break => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            Does::Answer | Does::ShutDown => {
                respond.send_response(Response::new(()), true)?;
            }
        }
    }
    Ok(())
}

/// Answers the first HEADERS with a GOAWAY that names no stream as processed.
async fn shut_down(mut socket: tokio::net::TcpStream, seen: &AtomicUsize) -> std::io::Result<()> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    socket.write_all(&SETTINGS).await?;
    socket.read_exact(&mut [0; 24]).await?;
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        socket.read_exact(&mut vec![0; length as usize]).await?;
        if head[3] == 1 {
            seen.fetch_add(1, Relaxed);
            socket.write_all(&GOAWAY).await?;
        }
    }
}

#[tokio::test]
async fn a_stream_that_no_server_began_is_sent_to_another_one() {
    for (does, fails) in [
        (Does::Refuse, false),
        (Does::ShutDown, false),
        (Does::Break, true),
    ] {
        let (bad, seen) = server(does).await;
        let (good, _) = server(Does::Answer).await;
        let client = ServiceBuilder::new()
            .map_request(|request: Request<Full<Bytes>>| {
                request.map(|body| UnsentBody::buffered(body, 1024))
            })
            .layer(
                // The retry of such a stream takes neither an attempt nor budget.
                FailoverLayer::new(HttpRetry::new())
                    .attempts(1)
                    .copy_with(UnsentBody::copy_request),
            )
            .layer(BalanceLayer::new(RoundRobin::seeded(1)))
            .layer(fixed([bad, good]))
            .service(|endpoint: &Endpoint| {
                let authority = endpoint.to_string();
                let client = Client::builder(TokioExecutor::new())
                    .http2_only(true)
                    .build_http::<UnsentBody<Full<Bytes>>>();
                service_fn(move |mut request: Request<_>| {
                    let uri = format!("http://{authority}/").parse().unwrap();
                    *request.uri_mut() = uri;
                    client.request(request)
                })
            });
        let mut failed = Vec::new();
        for _ in 0..40 {
            let body = Full::new(Bytes::from_static(b"once"));
            let request = Request::post("/").body(body).unwrap();
            if let Err(error) = client.clone().oneshot(request).await {
                failed.push(error);
            }
        }
        assert!(seen.load(Relaxed) > 0, "{does:?}");
        assert_eq!(!failed.is_empty(), fails, "{does:?}: {failed:?}");
    }
}

/// The second try sends the same body, up to the limit.
#[tokio::test]
async fn a_buffered_body_is_sent_again_up_to_its_limit() {
    for (limit, is_kept) in [(11, true), (10, false)] {
        let body = Full::new(Bytes::from_static(b"eleven byte"));
        let first = Request::new(UnsentBody::buffered(body, limit));
        let kept = UnsentBody::copy_request(&first).unwrap();
        let sent = first.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(sent, "eleven byte");
        let again = UnsentBody::copy_request(&kept);
        assert_eq!(again.is_some(), is_kept);
        let again = kept.into_body().collect().await;
        let again = again.map(|body| body.to_bytes());
        assert_eq!(again.is_ok_and(|body| body == "eleven byte"), is_kept);
    }
}

/// A copy that reads while the first one still does waits for it, and goes on where it ended.
#[tokio::test]
async fn a_copy_goes_on_where_the_first_try_ended() {
    let (frames, rx) = tokio::sync::mpsc::channel(8);
    let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
    let body = http_body_util::StreamBody::new(stream);
    let frame = |text: &'static str| {
        Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from_static(
            text.as_bytes(),
        )))
    };
    let first = Request::new(UnsentBody::buffered(body, 1024));
    let second = UnsentBody::copy_request(&first).unwrap();
    let mut first = first.into_body();
    frames.send(frame("a")).await.unwrap();
    first.frame().await.unwrap().unwrap();
    let second = tokio::spawn(second.into_body().collect());
    tokio::task::yield_now().await;
    drop(first);
    frames.send(frame("b")).await.unwrap();
    drop(frames);
    let all = second.await.unwrap().unwrap().to_bytes();
    assert_eq!(all, "ab");
}

/// Sent again, it would seem whole.
#[tokio::test]
async fn a_body_that_broke_off_is_not_sent_again() {
    let frames = [
        Ok(hyper::body::Frame::data(Bytes::from_static(b"half"))),
        Err(std::io::Error::other("the source is gone")),
    ];
    let body = http_body_util::StreamBody::new(tokio_stream::iter(frames));
    let first = Request::new(UnsentBody::buffered(body, 1024));
    let kept = UnsentBody::copy_request(&first).unwrap();
    first.into_body().collect().await.unwrap_err();
    assert!(UnsentBody::copy_request(&kept).is_none());
    kept.into_body().collect().await.unwrap_err();
}
