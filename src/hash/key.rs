use std::fmt;

use twox_hash::XxHash64;

/// Finds the key that a request is spread by.
///
/// [`borrowed`], [`owned`] and [`hashed`] make a key from a closure. A tuple of up to four keys
/// combines them in order. It starts with the hash of the first key that the request has. Each
/// further hash is hashed again, with the result so far as the seed. Keys that the request does not
/// have are skipped. [`rotate_xor`] combines them as Envoy does.
///
/// ```
/// use tower_lb::hash::{RingHash, borrowed, owned};
///
/// struct Request { tenant: u64, session: Option<String> }
///
/// let by_tenant_and_session = RingHash::by_key((
///     owned(|request: &Request| Some(request.tenant.to_le_bytes())),
///     borrowed(|request: &Request| request.session.as_deref().map(str::as_bytes)),
/// ));
/// # let _ = by_tenant_and_session;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` finds no key in requests of type `{Req}`",
    label = "no key for these requests",
    note = "the keys in `http::key` are for `http::Request`s; for others take `hash::borrowed`, `owned` or `hashed` with a closure"
)]
pub trait HashKey<Req>: Send + Sync + 'static {
    /// Returns the hash of the request's key; `None` if the request has none.
    fn hash(&self, request: &Req, seed: u64) -> Option<u64>;
}

/// Selects what happens to a request without a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnMissing {
    /// The request goes to a random endpoint, in proportion to the weights.
    #[default]
    Random,
    /// The call fails with [`MissingKey`](crate::error::MissingKey).
    Reject,
}

/// A key of bytes borrowed from every request, see [`HashPolicy::by`](super::HashPolicy::by).
#[derive(Clone, Copy)]
pub struct Bytes<F>(pub(super) F);

/// A key of bytes borrowed from the request, made by [`borrowed`].
#[derive(Clone, Copy)]
pub struct Borrowed<F>(F);

/// A key of bytes that are produced for each request, made by [`owned`].
#[derive(Clone, Copy)]
pub struct Owned<F>(F);

/// A key that is already a hash, made by [`hashed`].
#[derive(Clone, Copy)]
pub struct Hashed<F>(F);

/// Makes a key from bytes that are borrowed from the request.
///
/// `None` from the closure means that the request has no key. No allocation.
pub const fn borrowed<Req, F>(key: F) -> Borrowed<F>
where
    F: Fn(&Req) -> Option<&[u8]>,
{
    Borrowed(key)
}

/// Makes a key from bytes that the closure produces: a `String`, a `Vec<u8>`, an array.
pub const fn owned<Req, F, B>(key: F) -> Owned<F>
where
    F: Fn(&Req) -> Option<B>,
    B: AsRef<[u8]>,
{
    Owned(key)
}

/// Makes a key from a number that is already a good hash.
///
/// The number is used as it is. It must be spread over all 64 bits: numbers that count up from 0
/// all go to one endpoint. With a [`hash_seed`](super::HashPolicy::hash_seed) it is hashed once
/// more. For a number that is not a hash, use [`owned`] with its `to_le_bytes()`.
pub const fn hashed<Req, F>(key: F) -> Hashed<F>
where
    F: Fn(&Req) -> Option<u64>,
{
    Hashed(key)
}

impl<Req, F> HashKey<Req> for Bytes<F>
where
    F: Fn(&Req) -> &[u8] + Send + Sync + 'static,
{
    #[inline]
    fn hash(&self, request: &Req, seed: u64) -> Option<u64> {
        Some(hash_bytes(self.0(request), seed))
    }
}

impl<Req, F> HashKey<Req> for Borrowed<F>
where
    F: Fn(&Req) -> Option<&[u8]> + Send + Sync + 'static,
{
    #[inline]
    fn hash(&self, request: &Req, seed: u64) -> Option<u64> {
        self.0(request).map(|key| hash_bytes(key, seed))
    }
}

impl<Req, F, B> HashKey<Req> for Owned<F>
where
    F: Fn(&Req) -> Option<B> + Send + Sync + 'static,
    B: AsRef<[u8]>,
{
    #[inline]
    fn hash(&self, request: &Req, seed: u64) -> Option<u64> {
        self.0(request).map(|key| hash_bytes(key.as_ref(), seed))
    }
}

impl<Req, F> HashKey<Req> for Hashed<F>
where
    F: Fn(&Req) -> Option<u64> + Send + Sync + 'static,
{
    #[inline]
    fn hash(&self, request: &Req, seed: u64) -> Option<u64> {
        let key = self.0(request)?;
        Some(if seed == 0 { key } else { rehash(key, seed) })
    }
}

/// Combines a tuple of keys as Envoy does, for clients that must agree with its hash policies.
///
/// The result so far is rotated left by one bit, and the hash of the next key is combined with it
/// by exclusive or. Keys that the request does not have are skipped. Source: Envoy,
/// `HashPolicyImpl::generateHash`.
///
/// ```
/// use tower_lb::hash::{RingHash, borrowed, rotate_xor};
///
/// struct Request { tenant: String, path: String }
///
/// let policy = RingHash::by_key(rotate_xor((
///     borrowed(|request: &Request| Some(request.tenant.as_bytes())),
///     borrowed(|request: &Request| Some(request.path.as_bytes())),
/// )));
/// # let _ = policy;
/// ```
pub const fn rotate_xor<Keys>(keys: Keys) -> RotateXor<Keys> {
    RotateXor(keys)
}

/// Keys that are combined as by Envoy, made by [`rotate_xor`].
#[derive(Clone, Copy, Debug)]
pub struct RotateXor<Keys>(Keys);

macro_rules! combined {
    ($($key:ident)+) => {
        impl<Req, $($key: HashKey<Req>),+> HashKey<Req> for ($($key,)+) {
            #[inline]
            fn hash(&self, request: &Req, seed: u64) -> Option<u64> {
                #[allow(non_snake_case)] // named as their types
                let ($($key,)+) = self;
                let mut all: Option<u64> = None;
                $(
                    if let Some(hash) = $key.hash(request, seed) {
                        all = Some(all.map_or(hash, |before| rehash(hash, before)));
                    }
                )+
                all
            }
        }

        impl<Req, $($key: HashKey<Req>),+> HashKey<Req> for RotateXor<($($key,)+)> {
            #[inline]
            fn hash(&self, request: &Req, seed: u64) -> Option<u64> {
                #[allow(non_snake_case)] // named as their types
                let Self(($($key,)+)) = self;
                let mut all: Option<u64> = None;
                $(
                    if let Some(hash) = $key.hash(request, seed) {
                        all = Some(all.unwrap_or(0).rotate_left(1) ^ hash);
                    }
                )+
                all
            }
        }
    };
}

combined!(A B);
combined!(A B C);
combined!(A B C D);

/// Hashes bytes with XXH64, which is the same on every platform and in every language.
#[inline]
pub(crate) fn hash_bytes(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// Hashes a hash once more, as little-endian bytes on every platform.
#[inline]
pub(super) fn rehash(hash: u64, seed: u64) -> u64 {
    hash_bytes(&hash.to_le_bytes(), seed)
}

macro_rules! opaque_debug {
    ($($key:ident)+) => {$(
        impl<F> fmt::Debug for $key<F> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($key))
            }
        }
    )+};
}

opaque_debug!(Bytes Borrowed Owned Hashed);

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(Option<&'static str>, Option<u64>);

    fn bytes() -> impl HashKey<Request> {
        borrowed(|request: &Request| request.0.map(str::as_bytes))
    }

    fn number() -> impl HashKey<Request> {
        hashed(|request: &Request| request.1)
    }

    #[test]
    fn hashes_are_those_of_other_languages() {
        // The values of the reference implementation with seed 0.
        for (key, hash) in [
            ("", 17_241_709_254_077_376_921),
            ("foo", 3_728_699_739_546_630_719),
            ("bar", 5_234_164_152_756_840_025),
            ("key", 4_933_520_039_084_114_740),
            ("1", 13_237_225_503_670_494_420),
        ] {
            assert_eq!(hash_bytes(key.as_bytes(), 0), hash);
            assert_eq!(bytes().hash(&Request(Some(key), None), 0), Some(hash));
            let owned = owned(|request: &Request| request.0.map(String::from));
            assert_eq!(owned.hash(&Request(Some(key), None), 0), Some(hash));
        }
    }

    #[test]
    fn a_number_is_taken_as_it_is_unless_there_is_a_seed() {
        let request = Request(None, Some(7));
        assert_eq!(number().hash(&request, 0), Some(7));
        // XXH64 of 07 00 00 00 00 00 00 00 with seed 1, whatever the machine's byte order.
        assert_eq!(
            number().hash(&request, 1),
            Some(hash_bytes(&[7, 0, 0, 0, 0, 0, 0, 0], 1))
        );
    }

    #[test]
    fn keys_combine_as_in_envoy() {
        struct Three([Option<&'static str>; 3]);
        let key = |i: usize| borrowed(move |request: &Three| request.0[i].map(str::as_bytes));
        let keys = rotate_xor((key(0), key(1), key(2)));
        let hash = |request| keys.hash(&Three(request), 0);
        assert_eq!(hash([None; 3]), None);
        assert_eq!(
            hash([None, Some("foo"), None]),
            Some(3_728_699_739_546_630_719)
        );
        assert_eq!(
            hash([Some("foo"), None, Some("bar")]),
            Some(3_449_051_153_737_634_343)
        );
        assert_eq!(
            hash([Some("foo"), Some("bar"), Some("key")]),
            Some(2_003_426_553_932_605_306)
        );
        // A key that is named twice does not cancel itself.
        assert_eq!(
            hash([Some("foo"), Some("foo"), None]),
            Some(6_107_164_738_285_588_033)
        );
    }

    #[test]
    fn keys_combine_in_order_and_those_that_miss_are_skipped() {
        let both = (bytes(), number());
        let hash = |request| both.hash(&request, 0);
        let foo = hash_bytes(b"foo", 0);
        assert_eq!(hash(Request(None, None)), None);
        assert_eq!(hash(Request(Some("foo"), None)), Some(foo));
        assert_eq!(hash(Request(None, Some(7))), Some(7));
        // XXH64 of 07 00 00 00 00 00 00 00; the seed is the hash of "foo".
        assert_eq!(
            hash(Request(Some("foo"), Some(7))),
            Some(14_085_261_269_317_427_646)
        );
        let turned =
            |number| (self::number(), bytes()).hash(&Request(Some("foo"), Some(number)), 0);
        assert_eq!(turned(7), Some(rehash(foo, 7)));
        assert_ne!(turned(0), turned(7));
        assert_ne!(turned(0), Some(foo), "a hash of 0 is one, too");
    }
}
