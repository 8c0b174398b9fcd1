//! Keys for the [hash policies](crate::hash): the part of an HTTP request that it is spread by.
//!
//! ```
//! use tower_lb::{RingHash, http::key::{Cookie, Header}};
//!
//! let by_tenant = RingHash::by_key(Header::new("x-tenant"));
//! let by_tenant_and_user = RingHash::by_key((Header::new("x-tenant"), Cookie::new("user")));
//! # let _: (RingHash<_>, RingHash<_>) = (by_tenant, by_tenant_and_user);
//! ```
//!
//! A value is used byte by byte as it was sent: it is neither decoded nor made lower case. Only the
//! spaces around a cookie are trimmed. A request without the value has no key; see
//! [`OnMissing`](crate::hash::OnMissing). No key allocates.

use std::{
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderName, Request, header::COOKIE};

use crate::hash::{HashKey, hash_bytes};

/// Spreads by the value of a header; if there are several, by the first.
#[derive(Clone, Debug)]
pub struct Header(HeaderName);

/// Spreads by the value of a cookie: the first one of its name in any `Cookie` header.
#[derive(Clone, Debug)]
pub struct Cookie(String);

/// Spreads by the path, without the query.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path;

/// Spreads by a parameter of the query: the first one of its name.
///
/// A parameter without `=` has an empty value.
#[derive(Clone, Debug)]
pub struct Query(String);

/// Spreads by the client's IP address, from a [`SocketAddr`] in the request's extensions.
///
/// Your server must put it there. Behind a proxy it may be the address of the proxy. An IPv4
/// address and its IPv6-mapped form give the same key. For an address of another type, use
/// [`Extension`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientIp;

/// Spreads by the key that a closure makes from an extension of type `T`.
pub struct Extension<T, F> {
    key: F,
    _extension: PhantomData<fn(&T)>,
}

impl Header {
    /// Creates the key for the header `name`.
    ///
    /// # Panics
    ///
    /// If `name` is not a valid header name.
    #[must_use]
    #[track_caller]
    pub fn new(name: &str) -> Self {
        let Ok(name) = name.parse() else {
            panic!("{name:?} is no name of a header");
        };
        Self(name)
    }
}

impl Cookie {
    /// Creates the key for the cookie `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

impl Query {
    /// Creates the key for the parameter `name`, spelled as it is sent.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
}

impl<T, K, F> Extension<T, F>
where
    F: Fn(&T) -> K,
    K: AsRef<[u8]>,
{
    /// Creates the key from a closure, which gets the extension.
    #[must_use]
    pub const fn new(key: F) -> Self {
        Self {
            key,
            _extension: PhantomData,
        }
    }
}

impl<B> HashKey<Request<B>> for Header {
    fn hash(&self, request: &Request<B>, seed: u64) -> Option<u64> {
        let value = request.headers().get(&self.0)?;
        Some(hash_bytes(value.as_bytes(), seed))
    }
}

impl<B> HashKey<Request<B>> for Cookie {
    fn hash(&self, request: &Request<B>, seed: u64) -> Option<u64> {
        let value = cookie_values(request, self.0.as_bytes()).next()?;
        Some(hash_bytes(value, seed))
    }
}

impl<B> HashKey<Request<B>> for Path {
    fn hash(&self, request: &Request<B>, seed: u64) -> Option<u64> {
        Some(hash_bytes(request.uri().path().as_bytes(), seed))
    }
}

impl<B> HashKey<Request<B>> for Query {
    fn hash(&self, request: &Request<B>, seed: u64) -> Option<u64> {
        let pairs = request.uri().query()?.split('&');
        let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let (_, value) = pairs.find(|(key, _)| *key == self.0)?;
        Some(hash_bytes(value.as_bytes(), seed))
    }
}

impl<B> HashKey<Request<B>> for ClientIp {
    fn hash(&self, request: &Request<B>, seed: u64) -> Option<u64> {
        let address = request.extensions().get::<SocketAddr>()?;
        Some(match address.ip().to_canonical() {
            IpAddr::V4(ip) => hash_bytes(&ip.octets(), seed),
            IpAddr::V6(ip) => hash_bytes(&ip.octets(), seed),
        })
    }
}

impl<B, T, K, F> HashKey<Request<B>> for Extension<T, F>
where
    T: Send + Sync + 'static,
    K: AsRef<[u8]>,
    F: Fn(&T) -> K + Send + Sync + 'static,
{
    fn hash(&self, request: &Request<B>, seed: u64) -> Option<u64> {
        let key = (self.key)(request.extensions().get()?);
        Some(hash_bytes(key.as_ref(), seed))
    }
}

/// Returns the values of all cookies of this name, in the order in which they were sent.
pub(super) fn cookie_values<'a, B>(
    request: &'a Request<B>,
    name: &'a [u8],
) -> impl Iterator<Item = &'a [u8]> {
    let headers = request.headers().get_all(COOKIE).iter();
    let pairs = headers.flat_map(|header| header.as_bytes().split(|&byte| byte == b';'));
    pairs.filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let (key, value) = pair.split_at_checked(name.len())?;
        // Cookie names are case-sensitive (RFC 6265, section 5.4).
        (key == name).then(|| value.strip_prefix(b"=")).flatten()
    })
}

impl<T, F: Clone> Clone for Extension<T, F> {
    fn clone(&self) -> Self {
        Self {
            key: self.key.clone(),
            _extension: PhantomData,
        }
    }
}

impl<T, F> fmt::Debug for Extension<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extension({})", std::any::type_name::<T>())
    }
}
