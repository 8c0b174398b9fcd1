use std::time::Duration;

use tokio::time::Instant;

/// A server's report of its own load, for [`ReportedWeightsLayer`](super::ReportedWeightsLayer).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// The part of its capacity that the server uses: 1 is all of it, and it may be more.
    pub utilization: f64,
    /// Requests a second.
    pub qps: f64,
    /// Errors a second, of these requests.
    pub eps: f64,
}

/// The settings that turn reports into weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportClocks {
    pub(super) blackout: Duration,
    pub(super) expiry: Duration,
    pub(super) error_penalty: f64,
}

/// The weight that a server's reports give it.
#[derive(Debug, Default)]
pub(super) struct WeightByReports {
    /// When the first and the last report came.
    since: Option<(Instant, Instant)>,
    weight: f64,
}

impl LoadReport {
    /// Reports a utilization at `qps` requests a second, without errors.
    #[must_use]
    pub const fn new(utilization: f64, qps: f64) -> Self {
        Self {
            utilization,
            qps,
            eps: 0.0,
        }
    }

    /// Sets the number of errors a second.
    #[must_use]
    pub const fn eps(mut self, eps: f64) -> Self {
        self.eps = eps;
        self
    }

    /// Returns the requests a second that the server could answer at full load.
    ///
    /// Returns `None` if the report does not tell.
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
        // Negated, so that a NaN returns `None` as well.
        if !(qps > 0.0 && utilization > 0.0) {
            return None;
        }
        let weight = qps / (utilization + eps.max(0.0) / qps * error_penalty);
        // No server answers 1e15 requests a second.
        (weight > 0.0 && weight < 1e15).then_some(weight)
    }
}

impl WeightByReports {
    /// Records a report. Ignores it if it gives no weight.
    pub(super) fn report(&mut self, report: &LoadReport, clocks: &ReportClocks, now: Instant) {
        let Some(weight) = report.weight(clocks.error_penalty) else {
            return;
        };
        self.weight = weight;
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now));
    }

    /// Returns the weight, unless reports are still in the blackout or have expired.
    pub(super) fn get(&mut self, clocks: &ReportClocks, now: Instant) -> Option<f64> {
        let (first, last) = self.since?;
        if now.saturating_duration_since(last) >= clocks.expiry {
            // The next reports begin with a blackout again.
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
            let report = LoadReport::new(utilization, qps).eps(eps);
            assert_eq!(report.weight(penalty), expected, "{report:?}");
        }
    }

    #[test]
    fn reports_count_after_the_blackout_and_until_they_expire() {
        let clocks = ReportClocks {
            blackout: Duration::from_secs(10),
            expiry: Duration::from_secs(180),
            error_penalty: 1.0,
        };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut weight = WeightByReports::default();
        assert_eq!(weight.get(&clocks, at(0)), None);
        weight.report(&LoadReport::new(0.5, 100.0), &clocks, at(0));
        assert_eq!(weight.get(&clocks, at(9_999)), None);
        assert_eq!(weight.get(&clocks, at(10_000)), Some(200.0));
        // A report without a weight changes nothing and does not postpone the expiry.
        weight.report(&LoadReport::default(), &clocks, at(20_000));
        assert_eq!(weight.get(&clocks, at(179_999)), Some(200.0));
        assert_eq!(weight.get(&clocks, at(180_000)), None);
        weight.report(&LoadReport::new(0.5, 50.0), &clocks, at(200_000));
        assert_eq!(weight.get(&clocks, at(209_999)), None, "a blackout again");
        assert_eq!(weight.get(&clocks, at(210_000)), Some(100.0));
        // Without a blackout, and with a clock that goes back.
        let now = ReportClocks {
            blackout: Duration::ZERO,
            ..clocks
        };
        let mut weight = WeightByReports::default();
        weight.report(&LoadReport::new(1.0, 7.0), &now, at(5_000));
        assert_eq!(weight.get(&now, at(0)), Some(7.0));
    }
}
