use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, header::SET_COOKIE};
use pin_project_lite::pin_project;
use tower::Service;

use super::cookie::{CookieSettings, Token};
use crate::metric::forward_metrics;

/// A service that sets cookies for its endpoint; see [`SessionLayer`](super::SessionLayer).
#[derive(Clone)]
pub struct Session<S> {
    pub(super) service: S,
    pub(super) shared: Arc<CookieSettings>,
    pub(super) token: Token,
}

pin_project! {
    /// The response future of a [`Session`].
    pub struct SessionFuture<F> {
        #[pin]
        future: F,
        // `None` if the request has the right cookie already.
        cookie: Option<HeaderValue>,
    }
}

impl<S, B, R> Service<Request<B>> for Session<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = SessionFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_ours = |token| token == self.token;
        let cookie = match self.shared.tokens_of(&request).any(is_ours) {
            true => None,
            false => self.shared.set_cookie(&self.token),
        };
        SessionFuture {
            future: self.service.call(request),
            cookie,
        }
    }
}

impl<F, R, E> Future for SessionFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut answer = ready!(this.future.poll(cx));
        if let (Ok(response), Some(cookie)) = (&mut answer, this.cookie.take()) {
            if !response.status().is_server_error() {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
        }
        Poll::Ready(answer)
    }
}

forward_metrics!([S] Session<S>: Load, InFlight, TotalInFlight);

impl<S: fmt::Debug> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for SessionFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionFuture").finish_non_exhaustive()
    }
}
