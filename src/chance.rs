//! Where seeds come from that nobody gave.

use std::hash::{BuildHasher, RandomState};

/// Returns 64 bits that differ from call to call and from process to process.
pub(crate) fn entropy() -> u64 {
    // std seeds the first state of a thread from the system and counts on from there.
    RandomState::new().hash_one(0)
}
