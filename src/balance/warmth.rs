use std::time::Duration;

use tokio::time::Instant;

use crate::{health::SlowStart, policy::Member};

/// How far an endpoint has warmed up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Warmth {
    state: State,
    was_available: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    New,
    Warming {
        since: Instant,
    },
    Warm,
}

/// Sets the members' shares to how far they have warmed up; returns when to do so again, if any has not.
///
/// An endpoint warms up when it joins others that are available, and when it is available again.
pub(super) fn warm_up<'a, A: 'a, S: 'a>(
    slow_start: &SlowStart,
    warmths: impl Iterator<Item = &'a mut Warmth>,
    members: &mut [Member<A, S>],
    now: Instant,
) -> Option<Duration> {
    let mut warmths: Vec<&mut Warmth> = warmths.collect();
    // Of a set that is new as a whole, nobody is warm, and nobody else is there to take the requests.
    let joins_others = warmths.iter().any(|warmth| warmth.was_available);
    let mut factors = Vec::with_capacity(members.len());
    let mut is_anyone_warming = false;
    for (warmth, member) in warmths.iter_mut().zip(&*members) {
        let factor = warmth.follow(slow_start, member.candidate, joins_others, now);
        is_anyone_warming |= factor.is_some();
        factors.push(factor.unwrap_or(1.0));
    }
    if !is_anyone_warming {
        return None;
    }
    let heaviest = members.iter().map(|member| member.weight).max()?;
    // Whole numbers in proportion, as fine as they can be.
    let scale = (u32::MAX / heaviest.max(1)).min(FINEST);
    for (member, factor) in members.iter_mut().zip(factors) {
        let share = f64::from(member.weight) * f64::from(scale) * factor;
        member.share = (share.round() as u32).max(u32::from(member.weight > 0));
    }
    Some((slow_start.window / STEPS).clamp(Duration::from_millis(10), Duration::from_secs(1)))
}

impl Warmth {
    /// Returns the share of its weight that the endpoint has now; `None` if that is all of it.
    fn follow(
        &mut self,
        slow_start: &SlowStart,
        is_available: bool,
        joins_others: bool,
        now: Instant,
    ) -> Option<f64> {
        if is_available && !self.was_available {
            self.state = match self.state {
                State::New if !joins_others => State::Warm,
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

/// Shares of a thousandth are told apart, and sums stay far from the end of 64 bits.
const FINEST: u32 = 1 << 16;

/// A share never grows by more than this part of the window at once, nor more often than there is use.
const STEPS: u32 = 64;
