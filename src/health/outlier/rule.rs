use std::time::Duration;

/// Decides how long endpoints are ejected and how many may be ejected at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct EjectionRule {
    pub(super) base: Duration,
    pub(super) longest: Duration,
    pub(super) jitter: Duration,
    pub(super) max_ejected: f64,
    pub(super) probes: u32,
}

impl EjectionRule {
    /// Returns how many of `endpoints` may be ejected at once.
    ///
    /// This is the share, rounded down: at least one where there are two or more endpoints, and
    /// never all of them.
    pub(super) fn most_ejected(&self, endpoints: usize) -> usize {
        // The small addend undoes rounding errors: a third of three endpoints must be one.
        let share = (endpoints as f64 * self.max_ejected + 1e-9) as usize;
        share.max(1).min(endpoints.saturating_sub(1))
    }

    /// Returns the length of an ejection that follows `times` others.
    ///
    /// This is `base * (times + 1)`, at most `longest`.
    ///
    /// Source: Envoy, outlier detection; gRFC A50.
    pub(super) fn length(&self, times: u32) -> Duration {
        let length = self.base.checked_mul(times.saturating_add(1));
        length.map_or(self.longest, |length| length.min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(max_ejected: f64) -> EjectionRule {
        EjectionRule {
            base: Duration::from_secs(30),
            longest: Duration::from_secs(300),
            jitter: Duration::ZERO,
            max_ejected,
            probes: 1,
        }
    }

    #[test]
    fn so_many_may_be_ejected_at_once() {
        let table = [
            (0, [0, 0, 0, 0]),
            (1, [0, 0, 0, 0]),
            (2, [1, 1, 1, 1]),
            (3, [1, 1, 1, 2]),
            (5, [1, 1, 2, 4]),
            (10, [1, 3, 5, 9]),
            (11, [1, 3, 5, 10]),
            (20, [2, 6, 10, 19]),
            (25, [2, 7, 12, 24]),
        ];
        for (endpoints, most) in table {
            let shares = [0.1, 0.3, 0.5, 1.0].map(|share| rule(share).most_ejected(endpoints));
            assert_eq!(shares, most, "of {endpoints}");
        }
    }
}
