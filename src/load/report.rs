use std::time::Duration;

use tokio::time::Instant;

/// What a server says of its own load: see [`ReportedWeightsLayer`](super::ReportedWeightsLayer).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// How much of what it can do it is doing, 1 being all of it; it may be more.
    pub utilization: f64,
    /// Requests a second.
    pub qps: f64,
    /// Of these, errors a second.
    pub eps: f64,
}

/// When reports count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    pub(super) blackout: Duration,
    pub(super) expiry: Duration,
    pub(super) error_penalty: f64,
}

/// A server's weight by its reports.
#[derive(Debug, Default)]
pub(super) struct WeightByReports {
    /// When reports began, and when the last one came.
    since: Option<(Instant, Instant)>,
    weight: f64,
}

impl Report {
    /// Reports a utilization at so many requests a second, none of which are errors.
    #[must_use]
    pub const fn new(utilization: f64, qps: f64) -> Self {
        Self {
            utilization,
            qps,
            eps: 0.0,
        }
    }

    /// Sets how many errors a second there are.
    #[must_use]
    pub const fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Returns the requests a second that the server would do at full load; `None` if the report says nothing of it.
    ///
    /// ```text
    /// weight = qps / (utilization + eps / qps * error_penalty)
    /// ```
    ///
    /// Source: gRFC A58.
    pub(super) fn weight(&self, error_penalty: f64) -> Option<f64> {
        let Self {
            utilization,
            qps,
            eps,
        } = *self;
        // Negated, so that what is not a number is none either.
        if !(qps > 0.0 && utilization > 0.0) {
            return None;
        }
        let weight = qps / (utilization + eps.max(0.0) / qps * error_penalty);
        // More requests a second than that no server does.
        (weight > 0.0 && weight < 1e15).then_some(weight)
    }
}

impl WeightByReports {
    /// Takes a report; one that says nothing is as none.
    pub(super) fn report(&mut self, report: &Report, clocks: &Clocks, now: Instant) {
        let Some(weight) = report.weight(clocks.error_penalty) else {
            return;
        };
        self.weight = weight;
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now));
    }

    /// Returns the weight, if there are reports that are neither too young nor too old.
    pub(super) fn get(&mut self, clocks: &Clocks, now: Instant) -> Option<f64> {
        let (first, last) = self.since?;
        if now.saturating_duration_since(last) >= clocks.expiry {
            // When they come again, there is a blackout again.
            self.since = None;
            return None;
        }
        let is_old_enough = now.saturating_duration_since(first) >= clocks.blackout;
        is_old_enough.then_some(self.weight)
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_the_rate_at_full_load_less_a_penalty_for_errors() {
        for (utilization, qps, eps, penalty, expected) in [
            (0.5, 100.0, 0.0, 1.0, Some(200.0)),
            (1.0, 100.0, 0.0, 1.0, Some(100.0)),
            (2.0, 100.0, 0.0, 1.0, Some(50.0)),
            (0.5, 100.0, 50.0, 1.0, Some(100.0)),
            (0.5, 100.0, 50.0, 0.0, Some(200.0)),
            (0.5, 100.0, 50.0, 3.0, Some(50.0)),
            (0.5, 100.0, -50.0, 1.0, Some(200.0)),
            (0.0, 100.0, 0.0, 1.0, None),
            (0.5, 0.0, 0.0, 1.0, None),
            (-0.5, 100.0, 0.0, 1.0, None),
            (f64::NAN, 100.0, 0.0, 1.0, None),
            (0.5, f64::INFINITY, 0.0, 1.0, None),
            (0.5, 1e307, 0.0, 1.0, None),
            (0.5, f64::NAN, 0.0, 1.0, None),
            (0.5, 100.0, f64::INFINITY, 1.0, None),
        ] {
            let report = Report::new(utilization, qps).eps(eps);
            assert_eq!(report.weight(penalty), expected, "{report:?}");
        }
    }

    #[test]
    fn reports_count_after_the_blackout_and_until_they_expire() {
        let clocks = Clocks {
            blackout: Duration::from_secs(10),
            expiry: Duration::from_secs(180),
            error_penalty: 1.0,
        };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut weight = WeightByReports::default();
        assert_eq!(weight.get(&clocks, at(0)), None);
        weight.report(&Report::new(0.5, 100.0), &clocks, at(0));
        assert_eq!(weight.get(&clocks, at(9_999)), None);
        assert_eq!(weight.get(&clocks, at(10_000)), Some(200.0));
        // One that says nothing changes nothing, and does not keep it alive.
        weight.report(&Report::default(), &clocks, at(20_000));
        assert_eq!(weight.get(&clocks, at(179_999)), Some(200.0));
        assert_eq!(weight.get(&clocks, at(180_000)), None);
        weight.report(&Report::new(0.5, 50.0), &clocks, at(200_000));
        assert_eq!(weight.get(&clocks, at(209_999)), None, "a blackout again");
        assert_eq!(weight.get(&clocks, at(210_000)), Some(100.0));
        // Without one, and with a clock that goes back.
        let now = Clocks {
            blackout: Duration::ZERO,
            ..clocks
        };
        let mut weight = WeightByReports::default();
        weight.report(&Report::new(1.0, 7.0), &now, at(5_000));
        assert_eq!(weight.get(&now, at(0)), Some(7.0));
    }
}
