use std::fmt;

use rand::{Rng as _, SeedableRng, rngs::SmallRng};

/// What a pick may draw on: the request, where it is known, and the handle's own random stream.
pub struct PickContext<'a, Req> {
    request: Option<&'a Req>,
    rng: &'a mut Rng,
}

impl<'a, Req> PickContext<'a, Req> {
    pub(crate) const fn new(request: Option<&'a Req>, rng: &'a mut Rng) -> Self {
        Self { request, rng }
    }

    /// Returns the request; `None` while it is not known, see [`Choice::NeedsRequest`](crate::Choice).
    #[must_use]
    pub const fn request(&self) -> Option<&'a Req> {
        self.request
    }

    /// Draws 64 random bits from the handle's own stream.
    pub fn random(&mut self) -> u64 {
        self.rng.next()
    }

    /// Draws a number below `n`, or 0 where `n` is 0; even to within `n` / 2^32.
    pub fn below(&mut self, n: u32) -> u32 {
        self.rng.below(n)
    }

    /// Draws a number below `n`, or 0 where `n` is 0; even to within `n` / 2^64.
    #[inline]
    pub(crate) fn below_u64(&mut self, n: u64) -> u64 {
        ((u128::from(self.rng.next()) * u128::from(n)) >> 64) as u64
    }

    pub(crate) const fn rng(&mut self) -> &mut Rng {
        self.rng
    }
}

impl<Req> fmt::Debug for PickContext<'_, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PickContext")
            .field("request", &self.request.map(|_| ".."))
            .finish_non_exhaustive()
    }
}

/// The random stream of one handle.
#[derive(Debug)]
pub(crate) struct Rng(SmallRng);

impl Rng {
    /// Starts stream number `stream` of the family that `seed` names.
    #[inline]
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        // The multiplier is odd, so different streams of a seed never start alike.
        Self(SmallRng::seed_from_u64(
            seed.wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        ))
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws below `n` by multiplication: the high half of `bits * n` (Lemire 2019, without the
    /// rejection step, whose absence shows as a bias of `n` / 2^32).
    #[inline]
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        scale((self.next() >> 32) as u32, n)
    }

    /// Draws an ordered pair of different numbers below `n`; `n` must be at least 2.
    #[inline]
    pub(crate) fn distinct_pair(&mut self, n: u32) -> (u32, u32) {
        let bits = self.next();
        let first = scale((bits >> 32) as u32, n);
        let second = scale(bits as u32, n - 1);
        (first, second + u32::from(second >= first))
    }
}

/// Maps 32 random bits to a number below `n`.
#[inline]
pub(crate) const fn scale(bits: u32, n: u32) -> u32 {
    ((bits as u64 * n as u64) >> 32) as u32
}
