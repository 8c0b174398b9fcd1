//! Random numbers, seeds for handles without a given seed, and jitter.
//!
//! A run is seeded by the `seeded` of each part that draws: the policy's (which seeds all handles
//! of a balancer), and those of `FailoverLayer`, `OutlierLayer`, `HealthCheckLayer` and
//! `AdaptiveThrottleLayer`. A part without one draws its seed here.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use rand::{Rng as _, RngExt, SeedableRng, rngs::SmallRng};

/// Returns 64 bits that differ from call to call and from process to process.
pub(crate) fn entropy() -> u64 {
    // std seeds a thread's first state from the system, and increments it for each further state.
    of_process(&RandomState::new(), std::process::id())
}

/// Returns what a process draws from a state, which a fork has copied into its children.
fn of_process(state: &RandomState, process: u32) -> u64 {
    state.hash_one(process)
}

/// Returns a random part of a duration, from nothing to all of it.
pub(crate) fn random_part(of: Duration, rng: &mut SmallRng) -> Duration {
    let secs = of.as_secs_f64() * rng.random::<f64>();
    // As a float, the longest duration is rounded up to one that is too long for a `Duration`.
    Duration::try_from_secs_f64(secs).unwrap_or(of)
}

/// The random number stream of one handle.
#[derive(Debug)]
pub(crate) struct Rng(SmallRng);

impl Rng {
    /// Starts stream number `stream` of the streams that belong to `seed`.
    #[inline]
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        // The multiplier is odd, so different streams of one seed never start alike.
        Self(SmallRng::seed_from_u64(
            seed.wrapping_add(stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        ))
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Draws a number from 0 up to, but not including, 1.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0.random()
    }

    /// Draws a number below `n`, by multiplication: the high half of `bits * n`.
    ///
    /// Source: Lemire 2019, without the rejection step. Leaving it out causes a bias of `n` / 2^32.
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn children_of_a_fork_draw_different_numbers() {
        let copied = RandomState::new();
        let drawn: HashSet<_> = (1..=1000).map(|id| of_process(&copied, id)).collect();
        assert_eq!(drawn.len(), 1000);
        assert_eq!(of_process(&copied, 7), of_process(&copied, 7));
    }
}
