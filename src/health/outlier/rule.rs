use std::time::Duration;

/// How the ejections of an endpoint grow that is ejected again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EjectionGrowth {
    /// Each is twice as long as the one before. This is the default.
    ///
    /// Every ejection counts, also one by a failed probe.
    #[default]
    Doubling,
    /// The second is twice, the third three times as long as the first, and so on.
    ///
    /// Of the ejections in one interval only the first counts, and answers eject an endpoint once
    /// an interval at most. Source: Envoy, outlier detection; gRFC A50. Take a first ejection of 30
    /// s to have the same lengths.
    Linear,
}

/// Decides how long endpoints are ejected and how many may be ejected at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct EjectionRule {
    pub(super) base: Duration,
    pub(super) growth: EjectionGrowth,
    pub(super) longest: Duration,
    /// `None`: a quarter of an ejection that doubles, nothing for the others.
    pub(super) jitter: Option<Duration>,
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

    /// Returns the length of an ejection that follows `times` others: at most `longest`.
    pub(super) fn length(&self, times: u32) -> Duration {
        let factor = match self.growth {
            EjectionGrowth::Doubling => 1_u32.checked_shl(times),
            EjectionGrowth::Linear => times.checked_add(1),
        };
        let length = factor.and_then(|factor| self.base.checked_mul(factor));
        length.map_or(self.longest, |length| length.min(self.longest))
    }

    /// Returns the longest time that is added at random to an ejection of this length.
    pub(super) fn most_jitter(&self, length: Duration) -> Duration {
        self.jitter.unwrap_or(match self.growth {
            EjectionGrowth::Doubling => length / 4,
            EjectionGrowth::Linear => Duration::ZERO,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(max_ejected: f64) -> EjectionRule {
        EjectionRule {
            base: Duration::from_secs(1),
            growth: EjectionGrowth::Doubling,
            longest: Duration::from_secs(300),
            jitter: None,
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

    #[test]
    fn ejections_double_up_to_the_longest() {
        let rule = rule(0.1);
        let secs = [0, 1, 2, 7, 8, 9, 31, 32, u32::MAX].map(|times| rule.length(times).as_secs());
        assert_eq!(secs, [1, 2, 4, 128, 256, 300, 300, 300, 300]);
        assert_eq!(rule.most_jitter(rule.length(2)), rule.base);
    }
}
