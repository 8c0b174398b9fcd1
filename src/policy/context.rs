use std::fmt;

use crate::random::Rng;

/// Gives a pick the request, if it is known, and the handle's own random stream.
pub struct PickContext<'a, Req> {
    request: Option<&'a Req>,
    rng: &'a mut Rng,
}

impl<'a, Req> PickContext<'a, Req> {
    pub(crate) const fn new(request: Option<&'a Req>, rng: &'a mut Rng) -> Self {
        Self { request, rng }
    }

    /// Returns the request.
    ///
    /// `None` while it is not known, see [`Choice::NeedsRequest`](crate::Choice).
    #[must_use]
    pub const fn request(&self) -> Option<&'a Req> {
        self.request
    }

    /// Draws 64 random bits from the handle's own stream.
    pub fn random(&mut self) -> u64 {
        self.rng.next()
    }

    /// Draws a number below `n`, or 0 if `n` is 0. The bias is at most `n` / 2^32.
    pub fn below(&mut self, n: u32) -> u32 {
        self.rng.below(n)
    }

    /// Draws a number below `n`, or 0 if `n` is 0. The bias is at most `n` / 2^64.
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
