use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::slow_start::SlowStart;
use crate::member::Member;

/// How far the endpoints of a balancer have warmed up.
#[derive(Debug, Default)]
pub(super) struct WarmUp {
    members: BTreeMap<u64, Warmth>,
    /// When the first member of a new set joined. Those that join soon after are of the same set.
    new_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Warmth {
    state: State,
    was_available: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Joined as part of a set that was new as a whole, and has not been available yet.
    First,
    /// Joined others, and has not been available yet.
    #[default]
    Cold,
    Warming {
        since: Instant,
    },
    Warm,
}

impl WarmUp {
    /// Sets the members' shares to how far they have warmed up. Returns when to do so again, if one
    /// still warms up.
    ///
    /// An endpoint warms up when it joins others that are available, and when it becomes available
    /// again.
    pub(super) fn warm_up<A, S>(
        &mut self,
        slow_start: &SlowStart,
        members: &mut [Member<A, S>],
        now: Instant,
    ) -> Option<Duration> {
        let mut before = std::mem::take(&mut self.members);
        // In a set that is new as a whole no endpoint is warm, and no other one could take the
        // requests. So such a set starts warm, whenever its endpoints become available.
        if !before.values().any(|warmth| warmth.was_available) {
            self.new_since = (!members.is_empty()).then_some(now);
        }
        let is_new = self.new_since.is_some_and(|since| {
            now.saturating_duration_since(since) <= slow_start.settles_within()
        });
        let state = if is_new { State::First } else { State::Cold };
        let mut factors = Vec::with_capacity(members.len());
        for member in &*members {
            let mut warmth = before.remove(&member.id).unwrap_or(Warmth {
                state,
                was_available: false,
            });
            factors.push(warmth.follow(slow_start, member.candidate, now));
            self.members.insert(member.id, warmth);
        }
        if factors.iter().all(Option::is_none) {
            return None;
        }
        let heaviest = members.iter().map(|member| member.weight).max()?;
        // Shares are whole numbers in proportion to the weights, as fine as fits.
        let scale = (u32::MAX / heaviest.max(1)).min(FINEST);
        for (member, factor) in members.iter_mut().zip(factors) {
            let share = f64::from(member.weight) * f64::from(scale) * factor.unwrap_or(1.0);
            member.share = (share.round() as u32).max(u32::from(member.weight > 0));
        }
        Some((slow_start.window() / STEPS).clamp(Duration::from_millis(10), Duration::from_secs(1)))
    }
}

impl Warmth {
    /// Returns the part of its weight that the endpoint gets now; `None` if that is all of it.
    fn follow(&mut self, slow_start: &SlowStart, is_available: bool, now: Instant) -> Option<f64> {
        if is_available && !self.was_available {
            self.state = match self.state {
                State::First => State::Warm,
                _ => State::Warming { since: now },
            };
        }
        self.was_available = is_available;
        let State::Warming { since } = self.state else {
            return None;
        };
        let factor = slow_start.factor(now.saturating_duration_since(since));
        if factor.is_none() {
            self.state = State::Warm;
        }
        factor
    }
}

/// Fine enough for shares of a thousandth. Sums stay far below 64 bits.
const FINEST: u32 = 1 << 16;

/// Shares grow in this many steps within the window, at intervals of 10 ms to 1 s.
const STEPS: u32 = 64;
