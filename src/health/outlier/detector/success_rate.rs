use super::{
    Reason, Tally, Verdict,
    tally::{enough, worst_first},
};

/// Ejects endpoints whose success rate is far below that of the others.
///
/// "Far below" means: less than `mean - sigmas * standard deviation` and less than `mean - floor`,
/// over all endpoints with enough requests. The first condition alone would eject five to nine
/// healthy endpoints in a hundred in each interval, because chance alone puts some of them far
/// below the mean.
///
/// When `k` of `n` endpoints are dead, this detector finds them only if `n` is at least 5, 10, 14,
/// 19 for `k` = 1, 2, 3, 4. The dead endpoints themselves raise the deviation. The other detectors
/// cover smaller sets.
///
/// Source: Envoy, outlier detection; gRFC A50. The floor is ours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    pub(super) sigmas: f64,
    floor: f64,
    min_endpoints: usize,
    min_requests: u64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            sigmas: 1.9,
            floor: 0.05,
            min_endpoints: 5,
            min_requests: 100,
        }
    }
}

impl SuccessRate {
    /// Sets how many standard deviations below the mean are too many. Default 1.9.
    ///
    /// A larger number ejects fewer endpoints.
    ///
    /// # Panics
    ///
    /// If it is negative or not a number.
    #[must_use]
    #[track_caller]
    pub fn sigmas(mut self, sigmas: f64) -> Self {
        assert!(sigmas >= 0.0, "deviations are 0 or more, not {sigmas}");
        self.sigmas = sigmas;
        self
    }

    /// Sets the least distance below the mean, from 0 to 1, at which endpoints are ejected. Default
    /// .05.
    ///
    /// 0 is Envoy's and gRPC's rule.
    ///
    /// # Panics
    ///
    /// If it is not in 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn floor(mut self, floor: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&floor),
            "a share is in 0 to 1, not {floor}"
        );
        self.floor = floor;
        self
    }

    /// Sets how many endpoints must have had enough requests. Default 5.
    ///
    /// With fewer, too little is known of what is normal.
    #[must_use]
    pub const fn min_endpoints(mut self, endpoints: usize) -> Self {
        self.min_endpoints = endpoints;
        self
    }

    /// Sets how many requests an endpoint needs in an interval to be judged. Default 100.
    ///
    /// With fewer, the figure depends too much on chance.
    #[must_use]
    pub const fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    pub(super) fn judge(&self, tallies: &[Tally]) -> Vec<Verdict> {
        let rates = enough(tallies, self.min_endpoints, |tally| {
            let is_enough = tally.requests() >= self.min_requests.max(1);
            is_enough.then(|| tally.success_rate())
        });
        let n = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / n;
        // The variance of the population: the endpoints are all there are, not a sample of others.
        let variance = rates
            .iter()
            .map(|(_, rate)| (rate - mean).powi(2))
            .sum::<f64>()
            / n;
        let threshold = (mean - self.sigmas * variance.sqrt()).min(mean - self.floor);
        worst_first(rates, |&(_, rate)| rate, |rate| rate < threshold)
            .map(|(endpoint, rate)| Verdict {
                endpoint,
                reason: Reason::SuccessRate { rate, threshold },
            })
            .collect()
    }
}
