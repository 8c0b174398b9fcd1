use std::{borrow::Cow, time::Duration};

use tower::BoxError;

use crate::error::{
    AllTried, LimitReached, MissingKey, NoEndpoints, NotChosen, Throttled, Unavailable,
};

/// Decides which requests are sent again, and after which answers.
///
/// Ready-made policies are [`ConnectErrors`](super::ConnectErrors), safe for every request, and
/// [`Idempotent`](super::Idempotent), for requests that may be executed twice. A policy of your own
/// sees the request and the answer:
///
/// ```
/// use std::time::Duration;
/// use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
/// use tower_lb::{
///     BalanceLayer, Endpoint, FailoverLayer, P2c, PendingRequestsLayer, each,
///     failover::{Retry, RetryPolicy},
///     fixed,
/// };
///
/// struct Answer { busy_for: Option<Duration> }
///
/// /// Sends again what a server was too busy for, when that server says.
/// #[derive(Clone, Debug)]
/// struct WhenBusy;
///
/// impl<Req> RetryPolicy<Req, Answer> for WhenBusy {
///     fn is_idempotent(&self, _: &Req) -> bool {
///         false
///     }
///
///     fn retry(&self, _: &Req, answer: Result<&Answer, &BoxError>) -> Retry {
///         match answer {
///             Ok(Answer { busy_for: Some(pause) }) => Retry::After(*pause),
///             _ => Retry::No,
///         }
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
/// let client = ServiceBuilder::new()
///     .layer(FailoverLayer::new(WhenBusy))
///     .layer(BalanceLayer::new(P2c::default()))
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(fixed(["busy", "idle"]))
///     .service(|endpoint: &Endpoint<&'static str>| {
///         let is_busy = *endpoint.address() == "busy";
///         let busy_for = is_busy.then_some(Duration::from_millis(5));
///         service_fn(move |()| async move { Ok::<_, std::io::Error>(Answer { busy_for }) })
///     });
/// assert!(client.oneshot(()).await?.busy_for.is_none());
/// # Ok::<_, BoxError>(()) })?;
/// # Ok::<_, BoxError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not decide what is sent again",
    label = "no retry policy for these requests and answers",
    note = "take `ConnectErrors::default()`, `Idempotent::when(|request: &Request| ..)`, or `HttpRetry` for `http::Request`s"
)]
pub trait RetryPolicy<Req, Res> {
    /// Returns whether the request may be executed more than once. Only such requests are hedged.
    fn is_idempotent(&self, request: &Req) -> bool;

    /// Returns what to do about an answer.
    ///
    /// `request` is the copy that would be sent again. Must be cheap, because it runs for every
    /// request.
    fn retry(&self, request: &Req, answer: Result<&Res, &BoxError>) -> Retry;

    /// Returns why an answer that is no error was tried again.
    ///
    /// The error that lists the tries contains this reason.
    fn reason(&self, response: &Res) -> Cow<'static, str> {
        let _ = response;
        "answered, but not as wanted".into()
    }

    /// Returns how far a request came that ended with this error. Default: to a server.
    ///
    /// The answer matters only for errors that are tried again.
    fn reach(&self, error: &BoxError) -> Reach {
        let _ = error;
        Reach::Server
    }

    /// Returns for how long the server asks to get no request at all. Default: it does not ask.
    ///
    /// The endpoint is then ejected for this time, plus up to half of it at random, but for a
    /// minute at most, and not if no other one is available. Must be cheap, because it runs for
    /// every answer.
    #[inline]
    fn rest(&self, response: &Res) -> Option<Duration> {
        let _ = response;
        None
    }
}

/// How far a request came that ended with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reach {
    /// A server may have received it.
    Server,
    /// It was not sent, for example because the connection was refused.
    ///
    /// A try on another endpoint follows without a pause: no server has been busy with it.
    Unsent,
    /// A server received it, and says that it did not begin to process it.
    ///
    /// A try on another endpoint follows without a pause. The first one of a request takes neither
    /// an attempt nor budget (gRFC A6, transparent retries).
    Unprocessed,
}

/// What to do about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// Give it to the caller: it is fine, or another endpoint would do no better.
    No,
    /// Give it to the caller: it is a failure, but the server asks for no further try.
    Forbidden,
    /// Send the request to another endpoint, after the usual pause.
    Yes,
    /// Send the request to another endpoint, after the usual pause. If no other one is available,
    /// send it to the same one, but only after this time and up to half of it at random.
    Elsewhere(Duration),
    /// Send the request to another endpoint after exactly this pause, which the server asked for
    /// (gRPC's pushback).
    After(Duration),
}

/// Returns whether the request was rejected locally, as another try would be.
pub(crate) fn is_turned_away(error: &BoxError) -> bool {
    error.is::<NoEndpoints>()
        || error.is::<Unavailable>()
        || error.is::<NotChosen>()
        || error.is::<MissingKey>()
        || error.is::<AllTried>()
        || error.is::<Throttled>()
        || error.is::<LimitReached>()
}
