//! Where seeds come from that nobody gave, and times that differ a little.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use rand::{RngExt, rngs::SmallRng};

/// Returns 64 bits that differ from call to call and from process to process.
pub(crate) fn entropy() -> u64 {
    // std seeds the first state of a thread from the system and counts on from there.
    RandomState::new().hash_one(0)
}

/// Returns any part of a duration, none to all of it.
pub(crate) fn random_part(of: Duration, rng: &mut SmallRng) -> Duration {
    let secs = of.as_secs_f64() * rng.random::<f64>();
    // The longest duration is rounded up to what is none.
    Duration::try_from_secs_f64(secs).unwrap_or(of)
}
