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
    pub(super) key: [u8; 16],
    pub(super) path: String,
    pub(super) max_age: Option<Duration>,
    pub(super) transport: Transport,
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
