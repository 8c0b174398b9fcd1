use std::cmp::Ordering;

use super::{ages::AgesReading, gauge::Gauge, level::LevelReading, standing::StandingReading};
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
    standing: StandingReading,
    gauge: &'static Gauge,
}

impl PeakEwmaLoad {
    #[inline]
    pub(super) fn read(gauge: &'static Gauge) -> Self {
        Self {
            ages: gauge.ages.read(),
            // Before the level, see `Standing::read`.
            standing: gauge.standing.read(),
            level: gauge.level.read(),
            gauge,
        }
    }

    /// Returns the latency that a request is expected to have, in ns.
    #[inline]
    pub(super) fn estimate(self, now: u64) -> u64 {
        if self.standing.is_usual() {
            estimate(self.level, self.ages, self.gauge, now)
        } else {
            unusual_estimate(self.standing, self.gauge, now)
        }
    }

    #[inline]
    fn cost_when(self, weight: f64, now: u64) -> f64 {
        // One nanosecond more, so that requests in flight count even if the estimate is zero. (A
        // signed conversion is one instruction, an unsigned one is five.)
        let requests = self.ages.requests as i64 as f64;
        (self.estimate(now) as i64 as f64 + 1.0) * (requests / weight + 1.0)
    }
}

#[inline]
fn estimate(level: LevelReading, ages: AgesReading, gauge: &Gauge, now: u64) -> u64 {
    if ages.requests == 0 {
        level.faded(now, gauge.settings())
    } else {
        level.peak().max(now.saturating_sub(ages.oldest))
    }
}

/// Returns the estimate of an endpoint that is new or fails.
// Reads the rest again. Passing it would cost the usual case as well.
#[cold]
#[inline(never)]
fn unusual_estimate(standing: StandingReading, gauge: &Gauge, now: u64) -> u64 {
    let ages = gauge.ages.read();
    if standing.is_untried() && ages.requests == 0 {
        return 0;
    }
    let settings = gauge.settings();
    let level = gauge.level.read().or(settings.default);
    let estimate = estimate(level, ages, gauge, now);
    if standing.is_penalized(now) {
        estimate.max(settings.penalty).max(2 * level.peak())
    } else {
        estimate
    }
}

impl Cost for PeakEwmaLoad {
    const TIMED: bool = true;

    fn cost(&self) -> f64 {
        self.cost_when(1.0, clock::now())
    }

    fn cost_for(&self, weight: f64) -> f64 {
        self.cost_when(weight, clock::now())
    }

    #[inline]
    fn cost_at(&self, weight: f64, clock: &PickClock) -> f64 {
        self.cost_when(weight, clock.known())
    }

    /// Estimates of like servers differ by a quarter most of the time.
    #[inline]
    fn most_equal_to(least: f64) -> f64 {
        1.25 * least
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
        self.cost_when(1.0, now)
            .partial_cmp(&other.cost_when(1.0, now))
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

    use super::{super::level::EwmaSettings, *};

    const SECOND: u64 = 1_000_000_000;

    fn gauge() -> &'static Gauge {
        let [decay, penalty] = [10, 5].map(Duration::from_secs);
        let settings = EwmaSettings::new(decay, penalty, Duration::from_millis(30));
        Box::leak(Box::new(Gauge::new(settings, 0)))
    }

    /// The thread has not picked before and knows nothing of the time. The events at one endpoint
    /// tell it how old a request at the other one is.
    #[test]
    fn a_pick_knows_the_time_of_what_it_compares() {
        let (hangs, answers) = (gauge(), gauge());
        hangs.ages.enter(SECOND, || 0).unwrap();
        answers.level.succeed(
            SECOND / 100,
            9 * SECOND,
            answers.settings(),
            &answers.standing,
        );
        for order in [[hangs, answers], [answers, hangs]] {
            let loads = order.map(PeakEwmaLoad::read);
            let clock = PickClock::new();
            loads.iter().for_each(|load| load.advance_clock(&clock));
            assert_eq!(clock.known(), 9 * SECOND);
            let cost = |gauge| PeakEwmaLoad::read(gauge).cost_at(1.0, &clock);
            let [hangs, answers] = [hangs, answers].map(cost);
            assert!(hangs >= 2.0 * 8e9, "{hangs}");
            assert!(answers < 0.1 * 1e9, "{answers}");
        }
        let heard = |gauge| {
            let clock = PickClock::new();
            PeakEwmaLoad::read(gauge).advance_clock(&clock);
            clock.known()
        };
        answers.level.cancel(1, 10 * SECOND, answers.settings());
        assert_eq!(heard(answers), 10 * SECOND);
        answers.ages.enter(20 * SECOND, || 0).unwrap();
        assert!(heard(answers) > 20 * SECOND - 2000);
    }
}
