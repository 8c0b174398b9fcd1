use std::{hash::Hasher, time::Duration};

use http::{HeaderValue, Request};
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::{
    endpoint::{Address, Endpoint},
    http::key::cookie_values,
};

/// The cookie settings of one [`SessionLayer`](super::SessionLayer). Not `Debug`, because they
/// include the key.
#[derive(Clone)]
pub(super) struct CookieSettings {
    pub(super) name: String,
    /// The key that cookies are made with, and the earlier ones that are still followed.
    pub(super) key: [u8; 16],
    pub(super) previous_keys: Vec<[u8; 16]>,
    pub(super) path: String,
    pub(super) max_age: Option<Duration>,
    pub(super) transport: Transport,
    pub(super) same_site: SameSite,
    pub(super) is_partitioned: bool,
}

/// Whether a browser sends the cookie with requests that come from other sites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    /// Only when the user follows a link. This is the default.
    #[default]
    Lax,
    /// Never.
    Strict,
    /// Always, for content that other sites embed. Browsers then want HTTPS.
    None,
}

/// The connections over which a browser sends the cookie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Any,
    Secure,
}

/// The name of an endpoint in cookies.
pub(super) type Token = [u8; 32];

impl CookieSettings {
    /// Returns the endpoint's token: 128 bits of a keyed hash of its address, as hexadecimal
    /// digits.
    pub(super) fn token<A: Address>(&self, endpoint: &Endpoint<A>) -> Token {
        Self::token_by(&self.key, &endpoint.to_string())
    }

    /// Returns the endpoint's tokens by all keys.
    pub(super) fn tokens<A: Address>(&self, endpoint: &Endpoint<A>) -> impl Iterator<Item = Token> {
        let name = endpoint.to_string();
        let keys = std::iter::once(&self.key).chain(&self.previous_keys);
        keys.map(move |key| Self::token_by(key, &name))
    }

    fn token_by(key: &[u8; 16], name: &str) -> Token {
        let mut hasher = SipHasher24::new_with_key(key);
        hasher.write(name.as_bytes());
        let mut token = [0; 32];
        let hash = hasher.finish128().as_u128();
        for (i, digit) in token.iter_mut().enumerate() {
            let nibble = (hash >> (124 - 4 * i)) as u8 & 0xf;
            *digit = b"0123456789abcdef"[usize::from(nibble)];
        }
        token
    }

    /// Returns all values in the request that can be tokens. Any of several cookies may be ours,
    /// because cookies of the same name may come from another path, domain or key.
    pub(super) fn tokens_of<'a, B>(
        &'a self,
        request: &'a Request<B>,
    ) -> impl Iterator<Item = Token> {
        let values = cookie_values(request, self.name.as_bytes());
        values.filter_map(|value| value.try_into().ok())
    }

    pub(super) fn set_cookie(&self, token: &Token) -> Option<HeaderValue> {
        let token = std::str::from_utf8(token).ok()?;
        let Self { name, path, .. } = self;
        let same_site = self.same_site;
        let mut cookie = format!("{name}={token}; Path={path}; HttpOnly; SameSite={same_site:?}");
        if let Some(max_age) = self.max_age {
            cookie += &format!("; Max-Age={}", max_age.as_secs());
        }
        if self.transport == Transport::Secure {
            cookie += "; Secure";
        }
        if self.is_partitioned {
            cookie += "; Partitioned";
        }
        HeaderValue::try_from(cookie).ok()
    }
}
