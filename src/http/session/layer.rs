use std::{fmt, sync::Arc, time::Duration};

use tower::Layer;

use super::{
    cookie::{CookieSettings, SameSite, Transport},
    service::Session,
    sticky::{Home, Sticky},
};
use crate::{
    discover::{
        SealedWrap,
        discovery::{EachDiscover, WrapEach},
    },
    endpoint::{Address, Endpoint},
    upstream::DiscoverEndpoints,
};

/// Keeps stateful sessions at the endpoint that answered first, by a cookie that the balancer sets.
///
/// It has two parts. This layer, below the balancer, sets the cookie on a response if the request
/// had none for that endpoint. [`policy`](Self::policy) follows the cookie while its endpoint is
/// available or drains, and leaves all other requests to the policy that it wraps. When an endpoint
/// is gone, the wrapped policy sends its sessions to other endpoints, and they stay there.
///
/// A client may collect cookies and send all its requests to one endpoint.
/// [`Sticky::bounded`](super::Sticky::bounded) sends what is too much elsewhere.
///
/// The cookie is a keyed hash (SipHash-2-4, 128 bits) of the endpoint's address. Without the key, a
/// client can neither make a cookie nor learn an address from one. A cookie that fits no endpoint
/// is ignored. All processes with the same key and name follow the same cookies, also after a
/// restart.
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
/// A 5xx answer sets no cookie, because it began no session. When [failover](crate::failover) sends
/// a request to another endpoint, the session moves to the endpoint that answered.
///
/// The cookie does not say who the user is: it is not a login.
#[derive(Clone)]
pub struct SessionLayer {
    shared: Arc<CookieSettings>,
    home: Home,
}

impl SessionLayer {
    /// Creates the layer from the cookie's name and a secret key.
    ///
    /// # Panics
    ///
    /// If `name` is empty, or has other characters than ASCII letters, digits and
    /// ``!#$%&'*+-.^_`|~``.
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
            shared: Arc::new(CookieSettings {
                name,
                key,
                path: "/".to_owned(),
                max_age: None,
                previous_keys: Vec::new(),
                transport: Transport::Any,
                same_site: SameSite::Lax,
                is_partitioned: false,
            }),
            home: Home::EvenDraining,
        }
    }

    /// Sets the path that a browser sends the cookie for. Default `/`.
    ///
    /// # Panics
    ///
    /// If it does not begin with a slash, or has a control character, a semicolon or a character
    /// that is not ASCII.
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

    /// Sets how long a browser keeps the cookie, from the start of the session. Default: until the
    /// browser is closed.
    #[must_use]
    pub fn max_age(mut self, max_age: Duration) -> Self {
        Arc::make_mut(&mut self.shared).max_age = Some(max_age);
        self
    }

    /// Makes browsers send the cookie over HTTPS only. Default: over HTTP too.
    ///
    /// Names that begin with `__Host-` or `__Secure-` need it.
    #[must_use]
    pub fn secure(mut self) -> Self {
        Arc::make_mut(&mut self.shared).transport = Transport::Secure;
        self
    }

    /// Sets whether a browser sends the cookie with requests that come from other sites. Default
    /// [`SameSite::Lax`].
    ///
    /// [`SameSite::None`] also makes it [`secure`](Self::secure), as browsers want it.
    #[must_use]
    pub fn same_site(mut self, same_site: SameSite) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.same_site = same_site;
        if same_site == SameSite::None {
            shared.transport = Transport::Secure;
        }
        self
    }

    /// Makes browsers keep one cookie for each site that embeds this one. Default: one for all.
    ///
    /// Browsers that block the cookies of other sites accept such a one, if it is
    /// [`SameSite::None`]. Also makes it [`secure`](Self::secure), as browsers want it.
    #[must_use]
    pub fn partitioned(mut self) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.is_partitioned = true;
        shared.transport = Transport::Secure;
        self
    }

    /// Follows the cookies of an earlier key, too, and replaces them by cookies of the new one.
    ///
    /// To change the key without moving a session: give all processes the new key as a previous
    /// one, then make it the key and the old one a previous one, and remove the old one once the
    /// cookies' [`max_age`](Self::max_age) is over. May be called several times.
    #[must_use]
    pub fn previous_key(mut self, key: [u8; 16]) -> Self {
        Arc::make_mut(&mut self.shared).previous_keys.push(key);
        self
    }

    /// Lets sessions move at once when their endpoint drains. Default: they stay until it is gone.
    ///
    /// No session begins at a draining endpoint in either case. Source: gRFC A55, where this is the
    /// override host status DRAINING.
    #[must_use]
    pub const fn leave_draining(mut self) -> Self {
        self.home = Home::WhileAvailable;
        self
    }

    /// Wraps a policy so that it follows the cookies.
    #[must_use]
    pub fn policy<P>(&self, policy: P) -> Sticky<P> {
        Sticky {
            policy,
            shared: self.shared.clone(),
            home: self.home,
        }
    }
}

impl<D: DiscoverEndpoints> Layer<D> for SessionLayer {
    type Service = EachDiscover<D, Self>;

    fn layer(&self, discover: D) -> Self::Service {
        EachDiscover::new(discover, self.clone())
    }
}

impl SealedWrap for SessionLayer {}

impl<A: Address, S> WrapEach<Endpoint<A>, S> for SessionLayer {
    type Service = Session<S>;

    fn wrap(&self, endpoint: &Endpoint<A>, service: S) -> Session<S> {
        Session {
            service,
            token: self.shared.token(endpoint),
            shared: self.shared.clone(),
        }
    }
}

impl fmt::Debug for SessionLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLayer")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}
