use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Method, Request, Response, StatusCode, header::RETRY_AFTER};
use tower::BoxError;

use super::retry_after;
use crate::failover::{ConnectErrors, Idempotent, Reach, Retry, RetryPolicy};

/// Retries HTTP requests: idempotent ones after failures, all others only after errors of
/// connecting.
///
/// | what happened | GET, HEAD, OPTIONS, TRACE, PUT, DELETE | any other method |
/// |---|---|---|
/// | connecting failed; no endpoint became ready; with the feature `http2`, no server began with it | yes, without a pause | yes, without a pause |
/// | another error, or the try's own timeout | yes, except errors of the balancer, such as `NoEndpoints` | no |
/// | 502, 503, 504; 429 with `Retry-After` | yes; after `Retry-After` if no other endpoint is left | no |
/// | any other status | no | no |
/// | such a status, with the header `grpc-retry-pushback-ms` | yes, after that time; no if it is not a number | no |
///
/// After a 503 with `Retry-After` the endpoint gets no request at all for that time, as long as
/// another one is available; at most a minute counts. A 429 is about the caller, so only this
/// request avoids the endpoint. Up to half of a `Retry-After` is added at random, because a server
/// tells all its clients the same time.
///
/// With [`grpc`](Self::grpc), an answer UNAVAILABLE is retried too, and RESOURCE_EXHAUSTED where
/// the server says by that header when, and all methods count as idempotent, because every gRPC
/// method is a POST. Use it only if all methods that are called may be executed twice.
///
/// Source: RFC 9110, sections 9.2.2 and 10.2.3; [gRFC
/// A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md).
#[derive(Clone, Debug, Default)]
pub struct HttpRetry {
    connect: ConnectErrors,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Protocol {
    #[default]
    Http,
    Grpc,
}

impl HttpRetry {
    /// Creates the policy of the table above.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            connect: ConnectErrors::new(),
            protocol: Protocol::Http,
        }
    }

    /// Treats every request as idempotent, and the status UNAVAILABLE in the headers as a failure.
    #[must_use]
    pub const fn grpc(mut self) -> Self {
        self.protocol = Protocol::Grpc;
        self
    }

    /// Sets the errors after which any request is retried.
    #[must_use]
    pub fn connect_errors(mut self, connect: ConnectErrors) -> Self {
        self.connect = connect;
        self
    }

    fn is_idempotent(&self, method: &Method) -> bool {
        self.protocol == Protocol::Grpc || method.is_idempotent()
    }

    /// Returns whether the answer is a failure that another endpoint may avoid.
    fn failed(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let is_unavailable = self.protocol == Protocol::Grpc
            && headers
                .get("grpc-status")
                .is_some_and(|code| code.as_bytes() == UNAVAILABLE);
        let is_limited = status == StatusCode::TOO_MANY_REQUESTS
            && headers.contains_key(RETRY_AFTER)
            || self.protocol == Protocol::Grpc
                && headers.contains_key(PUSHBACK)
                && headers
                    .get("grpc-status")
                    .is_some_and(|code| code.as_bytes() == RESOURCE_EXHAUSTED);
        is_unavailable
            || is_limited
            || matches!(
                status,
                StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            )
    }
}

impl<B, R> RetryPolicy<Request<B>, Response<R>> for HttpRetry {
    fn is_idempotent(&self, request: &Request<B>) -> bool {
        self.is_idempotent(request.method())
    }

    #[inline]
    fn retry(&self, request: &Request<B>, answer: Result<&Response<R>, &BoxError>) -> Retry {
        let is_idempotent = |request: &Request<B>| self.is_idempotent(request.method());
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                let errors = Idempotent::when(is_idempotent).connect_errors(self.connect.clone());
                return errors.retry(request, Err::<&(), _>(error));
            }
        };
        let headers = response.headers();
        if !self.failed(response.status(), headers) || !is_idempotent(request) {
            return Retry::No;
        }
        match headers.get(PUSHBACK) {
            // A value that is not a number, which includes a negative one, forbids retries.
            Some(pause) => pause
                .to_str()
                .ok()
                .and_then(|pause| pause.parse().ok())
                .map_or(Retry::Forbidden, |ms| {
                    Retry::After(Duration::from_millis(ms))
                }),
            None => {
                let pause = retry_after(headers, SystemTime::now());
                pause.map_or(Retry::Yes, Retry::Elsewhere)
            }
        }
    }

    fn reach(&self, error: &BoxError) -> Reach {
        self.connect.reach_of(error)
    }

    #[inline]
    fn rest(&self, response: &Response<R>) -> Option<Duration> {
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return None;
        }
        retry_after(response.headers(), SystemTime::now())
    }

    fn reason(&self, response: &Response<R>) -> Cow<'static, str> {
        match response.headers().get("grpc-status") {
            Some(code) => format!("gRPC status {}", String::from_utf8_lossy(code.as_bytes())),
            None => format!("status {}", response.status()),
        }
        .into()
    }
}

const UNAVAILABLE: &[u8] = b"14";
const RESOURCE_EXHAUSTED: &[u8] = b"8";
const PUSHBACK: &str = "grpc-retry-pushback-ms";
