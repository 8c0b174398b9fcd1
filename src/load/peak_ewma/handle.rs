use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tracing::warn;

use super::{ages::Generation, gauge::Gauge};
use crate::{
    clock,
    outcome::{Outcome, Settle},
    undecided::{NOBODY_DECIDES, is_at_head},
};

/// Counts and measures one request in flight until the handle is dropped.
// Two words, which travel in registers. A larger handle is copied on its way through the response
// future, which costs as much as a third reading of the clock.
#[derive(Debug)]
pub struct PeakEwmaHandle {
    gauge: &'static Gauge,
    request: Request,
}

/// When a request was sent, in ns, with its state and generation below.
///
/// From the lowest bit up: three bits of its generation, three of its [`State`], then the time.
#[derive(Clone, Copy, Debug)]
struct Request(u64);

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent = 0,
    Succeeded = 1,
    Failed = 2,
    Neutral = 3,
    /// Answered. It has a bit of its own, to which the decided state is added.
    Undecided = 4,
}

impl Request {
    #[inline]
    fn new(sent_at: u64, generation: Option<Generation>) -> Self {
        let generation = generation.map_or(0, Generation::number);
        Self(sent_at << STATE_BITS << GENERATION_BITS | generation)
    }

    const fn sent_at(self) -> u64 {
        self.0 >> GENERATION_BITS >> STATE_BITS
    }

    const fn generation(self) -> Option<Generation> {
        Generation::from_number(self.0 & ((1 << GENERATION_BITS) - 1))
    }

    const fn settled(self, state: State) -> Self {
        Self(self.0 | (state as u64) << GENERATION_BITS)
    }

    const fn state(self) -> State {
        match self.0 >> GENERATION_BITS & DECIDED {
            0 if self.is_answered() => State::Undecided,
            0 => State::Sent,
            1 => State::Succeeded,
            2 => State::Failed,
            _ => State::Neutral,
        }
    }

    const fn is_answered(self) -> bool {
        self.0 >> GENERATION_BITS & State::Undecided as u64 != 0
    }

    const fn is_decided(self) -> bool {
        self.0 >> GENERATION_BITS & DECIDED != 0
    }
}

impl PeakEwmaHandle {
    #[inline]
    pub(super) fn start(gauge: &'static Gauge) -> Self {
        let sent_at = clock::now_at_event();
        let default = || gauge.settings().default;
        let generation = gauge
            .ages
            .enter(sent_at, || gauge.level.log2_quarter(default));
        gauge.standing.sent(sent_at);
        Self {
            gauge,
            request: Request::new(sent_at, generation),
        }
    }

    /// Records the end of the request.
    // Always inlined, because the handle then stays in its two registers.
    #[inline(always)]
    fn end(&self) {
        // A request that was not counted does not keep its gauge: another endpoint may have taken
        // the gauge meanwhile. So the request measures nothing.
        let Some(generation) = self.request.generation() else {
            return;
        };
        let now = clock::now_at_event();
        let took = now.saturating_sub(self.request.sent_at());
        let Gauge {
            level, standing, ..
        } = self.gauge;
        let settings = || self.gauge.settings();
        match self.request.state() {
            State::Succeeded => level.succeed(took, now, settings(), standing),
            State::Failed => {
                level.end_row();
                standing.fail(now);
            }
            State::Sent => {
                level.cancel(took, now, settings());
                standing.end_undecided();
            }
            State::Neutral if self.request.is_answered() => {
                level.stay(now, settings());
                standing.answer();
            }
            State::Neutral => standing.end_undecided(),
            State::Undecided => {
                standing.end_undecided();
                warn_if_at_head();
            }
        }
        // Leave last: as soon as the request has left, another service may take the gauge.
        self.gauge.ages.leave(generation);
    }
}

impl Settle for PeakEwmaHandle {
    #[inline]
    fn settle(&mut self, outcome: Outcome) {
        if self.request.is_decided() {
            return;
        }
        self.request = self.request.settled(match outcome {
            Outcome::Success => State::Succeeded,
            Outcome::Failure => State::Failed,
            Outcome::Neutral => State::Neutral,
            Outcome::Undecided => State::Undecided,
        });
    }
}

impl Drop for PeakEwmaHandle {
    #[inline]
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells once that no answer's outcome is ever decided, unless a body was just dropped early.
#[cold]
fn warn_if_at_head() {
    static HAS_WARNED: AtomicBool = AtomicBool::new(false);
    if is_at_head() && !HAS_WARNED.swap(true, Relaxed) {
        warn!("{NOBODY_DECIDES}");
    }
}

const STATE_BITS: u32 = 3;
const DECIDED: u64 = 3;
const GENERATION_BITS: u32 = 3;
