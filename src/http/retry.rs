use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, Method, Request, Response, StatusCode, header::RETRY_AFTER};
use tower::BoxError;

use super::retry_after;
use crate::retry::{ConnectErrors, Idempotent, Retry, RetryPolicy};

/// Tries HTTP requests again: what failed if its method is idempotent, and errors of connecting for all.
///
/// | what happened | GET, HEAD, OPTIONS, TRACE, PUT, DELETE | any other method |
/// |---|---|---|
/// | connecting failed; no endpoint became ready | yes | yes |
/// | another error, or the try's own timeout | yes | no |
/// | 502, 503, 504; 429 with `Retry-After` | yes, after `Retry-After` if there is one | no |
/// | any other status | no | no |
/// | the header `grpc-retry-pushback-ms` | after so long; not at all if it is no number | the same, where it would be tried again |
///
/// With [`grpc`](Self::grpc), an answer UNAVAILABLE is tried again too, for the methods of gRPC are all POST: take it where all
/// methods that are called may be executed twice.
///
/// Source: RFC 9110, sections 9.2.2 and 10.2.3; [gRFC A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md).
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
    /// Tries again as the table says.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            connect: ConnectErrors::new(),
            protocol: Protocol::Http,
        }
    }

    /// Takes every request for idempotent, and the status UNAVAILABLE in the headers for a failure.
    #[must_use]
    pub const fn grpc(mut self) -> Self {
        self.protocol = Protocol::Grpc;
        self
    }

    /// Sets the errors after which any request is sent again.
    #[must_use]
    pub fn connect_errors(mut self, connect: ConnectErrors) -> Self {
        self.connect = connect;
        self
    }

    fn is_idempotent(&self, method: &Method) -> bool {
        self.protocol == Protocol::Grpc || method.is_idempotent()
    }

    /// Returns whether the answer is a failure that another endpoint may not have.
    fn failed(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let is_unavailable = self.protocol == Protocol::Grpc
            && headers
                .get("grpc-status")
                .is_some_and(|code| code.as_bytes() == UNAVAILABLE);
        let is_limited =
            status == StatusCode::TOO_MANY_REQUESTS && headers.contains_key(RETRY_AFTER);
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
        match headers.get("grpc-retry-pushback-ms") {
            // What is no number, negative ones among them, says: not again.
            Some(pause) => pause
                .to_str()
                .ok()
                .and_then(|pause| pause.parse().ok())
                .map_or(Retry::Never, |ms| Retry::After(Duration::from_millis(ms))),
            None => {
                let pause = retry_after(headers, SystemTime::now());
                pause.map_or(Retry::Yes, Retry::After)
            }
        }
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
