use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use http::{HeaderValue, Request, Response, header::SET_COOKIE};
use pin_project_lite::pin_project;
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;
use tower::{
    Layer, Service,
    discover::{Change, Discover},
    load::Load,
};

use super::key::cookie_values;
use crate::{
    endpoint::{Address, Endpoint},
    metric::{InFlight, TotalInFlight},
    policy::{Candidates, Choice, Member, PickContext, Policy},
};

/// Keeps sessions with state at the endpoint that answered them first, by a cookie that the balancer sets.
///
/// Two parts of one: this layer, below the balancer, sets the cookie on a response where the request had none for that
/// endpoint; [`policy`](Self::policy) follows it while the endpoint is available, and leaves all other requests to the policy
/// that it wraps. When an endpoint has gone, its sessions go where that policy sends them, and stay there.
///
/// The cookie is a keyed hash (SipHash-2-4, 128 bits) of the endpoint's address: nobody without the key can
/// make one, or learn an address from it, and one that fits no endpoint is ignored. Every process with the
/// same key and name follows the same cookies, after a restart too.
///
/// ```
/// # use std::convert::Infallible;
/// # use ::http::{Request, Response};
/// # use tower::{ServiceBuilder, ServiceExt, service_fn};
/// # use tower_lb::{BalanceLayer, Endpoint, P2c, PendingRequestsLayer, each, fixed, http::SessionLayer};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// # let connect = |_: &Endpoint<&'static str>| {
/// #     service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) })
/// # };
/// # let secret = [7; 16];
/// let sessions = SessionLayer::new("lb", secret);
/// let client = ServiceBuilder::new()
///     .layer(BalanceLayer::new(sessions.policy(P2c::default())))
///     .layer(sessions)
///     .layer(each(PendingRequestsLayer::default()))
///     .layer(fixed(["a", "b"]))
///     .service(connect);
///
/// let first = client.clone().oneshot(Request::new(())).await?;
/// let cookie = first.headers()["set-cookie"].to_str()?;
/// assert!(cookie.starts_with("lb="));
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
///
/// An answer of 5xx sets no cookie, for it began no session. A request that [failover](crate::retry) has sent elsewhere
/// takes its session along, to the endpoint that answered.
///
/// The cookie says nothing of who the user is; it is no login.
#[derive(Clone)]
pub struct SessionLayer {
    shared: Arc<Settings>,
}

#[derive(Clone)]
struct Settings {
    name: String,
    key: [u8; 16],
    path: String,
    max_age: Option<Duration>,
    transport: Transport,
}

/// Which connections a browser sends the cookie over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Any,
    Secure,
}

/// Follows the cookies of a [`SessionLayer`], and asks another policy for the rest.
#[derive(Clone)]
pub struct Sticky<P> {
    policy: P,
    shared: Arc<Settings>,
}

/// The table of [`Sticky`].
pub struct StickyTable<T> {
    inner: T,
    positions: HashMap<Token, u32>,
}

/// What an endpoint is known by in cookies.
type Token = [u8; 32];

/// A service that sets cookies for its endpoint; see [`SessionLayer`].
#[derive(Clone)]
pub struct Session<S> {
    service: S,
    shared: Arc<Settings>,
    token: Token,
}

pin_project! {
    /// Discovery whose services set cookies; made by [`SessionLayer`].
    pub struct SessionDiscover<D> {
        #[pin]
        discover: D,
        shared: Arc<Settings>,
    }
}

pin_project! {
    /// The response future of a [`Session`].
    pub struct SessionFuture<F> {
        #[pin]
        future: F,
        // `None` if the request has the right one.
        cookie: Option<HeaderValue>,
    }
}

impl SessionLayer {
    /// Names the cookie, and sets the key that nobody else may know.
    ///
    /// # Panics
    ///
    /// If the name is none that a cookie can have: letters, digits and ``!#$%&'*+-.^_`|~``.
    #[must_use]
    #[track_caller]
    pub fn new(name: impl Into<String>, key: [u8; 16]) -> Self {
        let name = name.into();
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(
            !name.is_empty() && name.bytes().all(is_token),
            "{name:?} is no name of a cookie"
        );
        Self {
            shared: Arc::new(Settings {
                name,
                key,
                path: "/".to_owned(),
                max_age: None,
                transport: Transport::Any,
            }),
        }
    }

    /// Sets the path that a browser sends the cookie for. Default `/`.
    ///
    /// # Panics
    ///
    /// If it does not begin with a slash, or has a control character or a semicolon.
    #[must_use]
    #[track_caller]
    pub fn path(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        let is_well = path
            .bytes()
            .all(|byte| (b' '..0x7f).contains(&byte) && byte != b';');
        assert!(
            path.starts_with('/') && is_well,
            "{path:?} is no path of a cookie"
        );
        Arc::make_mut(&mut self.shared).path = path;
        self
    }

    /// Sets how long a browser keeps the cookie, from when the session began. Default: until the browser is closed.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        Arc::make_mut(&mut self.shared).max_age = Some(max_age);
        self
    }

    /// Has browsers send the cookie over HTTPS alone. Default: over HTTP too. Names with `__Host-` or `__Secure-` need it.
    #[must_use]
    pub fn secure(mut self) -> Self {
        Arc::make_mut(&mut self.shared).transport = Transport::Secure;
        self
    }

    /// Wraps a policy so that it follows the cookies.
    #[must_use]
    pub fn policy<P>(&self, policy: P) -> Sticky<P> {
        Sticky {
            policy,
            shared: self.shared.clone(),
        }
    }
}

impl Settings {
    /// Returns what the endpoint is known by: 128 bits of a keyed hash of its address, as hexadecimal digits.
    fn token<A: Address>(&self, endpoint: &Endpoint<A>) -> Token {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(endpoint.to_string().as_bytes());
        let mut token = [0; 32];
        let hash = hasher.finish128().as_u128();
        for (i, digit) in token.iter_mut().enumerate() {
            let nibble = (hash >> (124 - 4 * i)) as u8 & 0xf;
            *digit = b"0123456789abcdef"[usize::from(nibble)];
        }
        token
    }

    /// Returns the tokens that the request has. Of several cookies any may be ours: others of the name may come from another path,
    /// domain or key.
    fn tokens_of<'a, B>(&'a self, request: &'a Request<B>) -> impl Iterator<Item = Token> {
        let values = cookie_values(request, self.name.as_bytes());
        values.filter_map(|value| value.try_into().ok())
    }

    fn set_cookie(&self, token: &Token) -> Option<HeaderValue> {
        let token = std::str::from_utf8(token).ok()?;
        let Self { name, path, .. } = self;
        let mut cookie = format!("{name}={token}; Path={path}; HttpOnly; SameSite=Lax");
        if let Some(max_age) = self.max_age {
            cookie += &format!("; Max-Age={}", max_age.as_secs());
        }
        if self.transport == Transport::Secure {
            cookie += "; Secure";
        }
        HeaderValue::try_from(cookie).ok()
    }
}

impl<P, A, S, B> Policy<A, S, Request<B>> for Sticky<P>
where
    P: Policy<A, S, Request<B>>,
    A: Address,
{
    type Table = StickyTable<P::Table>;

    fn table(&self, members: &[Member<A, S>], previous: Option<&Self::Table>) -> Self::Table {
        let inner = self
            .policy
            .table(members, previous.map(|table| &table.inner));
        let tokens = members
            .iter()
            .map(|member| self.shared.token(member.endpoint()));
        StickyTable {
            inner,
            positions: tokens.zip(0..).collect(),
        }
    }

    fn pick(
        &self,
        table: &Self::Table,
        candidates: Candidates<'_, A, S>,
        cx: &mut PickContext<'_, Request<B>>,
    ) -> Choice {
        let Some(request) = cx.request() else {
            return Choice::NeedsRequest;
        };
        let positions = self.shared.tokens_of(request);
        let mut positions = positions.filter_map(|token| table.positions.get(&token));
        match positions.find(|&&position| candidates.contains(position as usize)) {
            Some(&position) => Choice::Member(position as usize),
            None => self.policy.pick(&table.inner, candidates, cx),
        }
    }

    fn seed(&self) -> Option<u64> {
        self.policy.seed()
    }
}

impl<D, A> Layer<D> for SessionLayer
where
    D: Discover<Key = Endpoint<A>>,
{
    type Service = SessionDiscover<D>;

    fn layer(&self, discover: D) -> Self::Service {
        SessionDiscover {
            discover,
            shared: self.shared.clone(),
        }
    }
}

impl<D, A, S> Stream for SessionDiscover<D>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
{
    type Item = Result<Change<Endpoint<A>, Session<S>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        let change = ready!(this.discover.try_poll_next(cx)?);
        Poll::Ready(change.map(|change| {
            Ok(match change {
                Change::Insert(endpoint, service) => {
                    let service = Session {
                        service,
                        token: this.shared.token(&endpoint),
                        shared: this.shared.clone(),
                    };
                    Change::Insert(endpoint, service)
                }
                Change::Remove(endpoint) => Change::Remove(endpoint),
            })
        }))
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

impl<S: Load> Load for Session<S> {
    type Metric = S::Metric;

    fn load(&self) -> S::Metric {
        self.service.load()
    }
}

impl<S: InFlight> InFlight for Session<S> {
    fn in_flight(&self) -> usize {
        self.service.in_flight()
    }
}

impl<S: TotalInFlight> TotalInFlight for Session<S> {
    fn total_in_flight(&self) -> usize {
        self.service.total_in_flight()
    }
}

// None of these shows the key.

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl<P: fmt::Debug> fmt::Debug for Sticky<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky")
            .field("policy", &self.policy)
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl<T: fmt::Debug> fmt::Debug for StickyTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StickyTable")
            .field("inner", &self.inner)
            .field("endpoints", &self.positions.len())
            .finish_non_exhaustive()
    }
}

impl<S: fmt::Debug> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

impl<D: fmt::Debug> fmt::Debug for SessionDiscover<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionDiscover")
            .field("discover", &self.discover)
            .finish_non_exhaustive()
    }
}

impl<F> fmt::Debug for SessionFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionFuture").finish_non_exhaustive()
    }
}
