use std::cmp::Ordering;

use super::{
    ages::AgesReading,
    gauge::Gauge,
    level::{EwmaSettings, LevelReading},
};
use crate::{
    clock::{self, PickClock},
    metric::Cost,
};

/// A reading of [`PeakEwma`](super::PeakEwma), whose value depends on the time of the comparison.
///
/// A comparison without a [`PickClock`] reads the clock.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwmaLoad {
    ages: AgesReading,
    level: LevelReading,
    settings: EwmaSettings,
}

impl PeakEwmaLoad {
    #[inline]
    pub(super) fn read(gauge: &Gauge) -> Self {
        Self {
            ages: gauge.ages.read(),
            level: gauge.level.read(),
            settings: gauge.settings(),
        }
    }

    /// Returns the latency that a request is expected to have, in ns.
    #[inline]
    pub(super) fn estimate(self, now: u64) -> u64 {
        if self.ages.requests == 0 {
            self.level.faded(now, self.settings)
        } else {
            let age = now.saturating_sub(self.ages.oldest);
            self.level.peak().max(age)
        }
    }

    #[inline]
    fn cost_when(self, now: u64) -> f64 {
        // At least a nanosecond, so that requests in flight count even if the answers were that
        // fast. (A signed conversion is one instruction, an unsigned one is five.)
        self.estimate(now).max(1) as i64 as f64 * (self.ages.requests + 1) as i64 as f64
    }
}

impl Cost for PeakEwmaLoad {
    const TIMED: bool = true;

    fn cost(&self) -> f64 {
        self.cost_when(clock::now())
    }

    #[inline]
    fn cost_at(&self, clock: &PickClock) -> f64 {
        self.cost_when(clock.known())
    }

    #[inline]
    fn advance_clock(&self, clock: &PickClock) {
        clock.advance_to(self.ages.youngest);
        clock.advance_to(self.level.latest());
    }
}

impl PartialOrd for PeakEwmaLoad {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let now = clock::now();
        self.cost_when(now).partial_cmp(&other.cost_when(now))
    }
}

impl PartialEq for PeakEwmaLoad {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn gauge() -> Gauge {
        let [decay, penalty] = [10, 5].map(Duration::from_secs);
        Gauge::new(
            EwmaSettings::new(decay, penalty),
            Duration::from_millis(30),
            0,
        )
    }

    /// The thread has not picked before and knows nothing of the time. The events at one endpoint
    /// tell it how old a request at the other one is.
    #[test]
    fn a_pick_knows_the_time_of_what_it_compares() {
        let (hangs, answers) = (gauge(), gauge());
        hangs.ages.enter(SECOND, || 0).unwrap();
        answers
            .level
            .succeed(SECOND / 100, 9 * SECOND, answers.settings());
        for order in [[&hangs, &answers], [&answers, &hangs]] {
            let loads = order.map(PeakEwmaLoad::read);
            let clock = PickClock::new();
            loads.iter().for_each(|load| load.advance_clock(&clock));
            assert_eq!(clock.known(), 9 * SECOND);
            let cost = |gauge| PeakEwmaLoad::read(gauge).cost_at(&clock);
            let [hangs, answers] = [&hangs, &answers].map(cost);
            assert!(hangs >= 2.0 * 8e9, "{hangs}");
            assert!(answers < 0.1 * 1e9, "{answers}");
        }
        let heard = |gauge| {
            let clock = PickClock::new();
            PeakEwmaLoad::read(gauge).advance_clock(&clock);
            clock.known()
        };
        answers.level.cancel(1, 10 * SECOND, answers.settings());
        assert_eq!(heard(&answers), 10 * SECOND);
        answers.ages.enter(20 * SECOND, || 0).unwrap();
        assert!(heard(&answers) > 20 * SECOND - 2000);
    }
}
