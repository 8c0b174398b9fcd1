use super::{
    Reason, Tally, Verdict,
    tally::{enough, worst_first},
};

/// Ejects endpoints whose failure rate is at least the threshold.
///
/// Source: Envoy, outlier detection; gRFC A50.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailureRate {
    threshold: f64,
    min_endpoints: usize,
    min_requests: u64,
}

impl Default for FailureRate {
    fn default() -> Self {
        Self {
            threshold: 0.85,
            min_endpoints: 5,
            min_requests: 50,
        }
    }
}

impl FailureRate {
    /// Sets the failure rate, from 0 to 1, from which endpoints are ejected. Default .85.
    ///
    /// # Panics
    ///
    /// If it is not in 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn threshold(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "a share is in 0 to 1, not {share}"
        );
        self.threshold = share;
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

    /// Sets how many requests an endpoint needs in an interval to be judged. Default 50.
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
            is_enough.then(|| tally.failures as f64 / tally.requests() as f64)
        });
        worst_first(rates, |&(_, rate)| -rate, |rate| rate >= self.threshold)
            .map(|(endpoint, rate)| Verdict {
                endpoint,
                reason: Reason::FailureRate(rate),
            })
            .collect()
    }
}
