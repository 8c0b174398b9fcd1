use std::{future::poll_fn, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower::{BoxError, Service};

/// Sends a request and reads the whole answer.
pub(super) type Client = Box<dyn FnMut(Request<String>) -> Asked + Send>;

type Asked = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

/// The answer to a request.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Makes a client of a service that the user has handed over.
pub(super) fn of_service<C, B>(service: C) -> Client
where
    C: Service<Request<String>, Response = Response<B>, Error: Into<BoxError>, Future: Send>,
    C: Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    Box::new(move |request| {
        let mut service = service.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx))
                .await
                .map_err(Into::into)?;
            let answer = service.call(request).await.map_err(Into::into)?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, LONGEST_BODY).collect().await?;
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body: body.to_bytes(),
            })
        })
    })
}

/// Makes a client without TLS.
pub(super) fn plain() -> Client {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_WITHIN));
    connector.set_nodelay(true);
    let client = HyperClient::builder(TokioExecutor::new());
    of_service(client.build::<_, String>(connector))
}

/// An agent is usually on the same machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Some ten times what a hundred thousand instances take.
const LONGEST_BODY: usize = 1 << 30;
