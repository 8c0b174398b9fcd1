use std::time::Duration;

use tokio::time::Instant;

use crate::{
    endpoint::{Address, Endpoint},
    tried::{CallExcluding, Tried},
};

/// Leaves an endpoint alone for as long as its server asks, unless no other one is available.
///
/// `random` is from 0 to 1.
#[cold]
pub(super) fn rest<S, Req>(
    service: &S,
    endpoint: &Endpoint<S::Address>,
    rest: Duration,
    random: f64,
) where
    S: CallExcluding<Req>,
    S::Address: Address,
{
    let itself = Tried::new();
    itself.insert(endpoint.clone());
    if rest.is_zero() || !service.has_other(&itself) {
        return;
    }
    let length = spread(rest.min(LONGEST_REST), random);
    endpoint.rest_until(Instant::now() + length);
    // Others may have begun to rest at the same moment. The last one must not.
    if !service.has_other(&itself) {
        endpoint.end_rest();
    }
}

/// Adds a random part of up to half to a time that a server has told all its clients.
pub(super) fn spread(time: Duration, random: f64) -> Duration {
    let secs = time.as_secs_f64() * (1.0 + random / 2.0);
    Duration::try_from_secs_f64(secs).unwrap_or(time)
}

/// With the random part, a minute at most. A server that asks for more is tried again then, because
/// it may be back sooner.
const LONGEST_REST: Duration = Duration::from_secs(40);
