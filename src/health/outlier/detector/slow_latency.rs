use std::time::Duration;

use super::{
    Reason, Tally, Verdict,
    tally::{enough, worst_first},
};

/// Ejects endpoints whose mean latency is a multiple of the median of all endpoints' means.
///
/// Only for endpoints that are equally fast: it takes a slower zone for a fault.
///
/// The latency is the time to the head of the response. Where the head is
/// [`Undecided`](crate::Outcome::Undecided) and [completion](crate::OutlierLayer::completion) is by
/// bodies, it is the time to the first data.
///
/// Times the first 64 successes of an interval and one in 16 of the others; all of them where
/// [`cancelled_after`](crate::OutlierLayer::cancelled_after) is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowLatency {
    factor: f64,
    min_endpoints: usize,
    min_requests: u64,
}

impl Default for SlowLatency {
    fn default() -> Self {
        Self {
            factor: 3.0,
            min_endpoints: 5,
            min_requests: 50,
        }
    }
}

impl SlowLatency {
    /// Sets the multiple of the median above which a mean is too slow. Default 3.
    ///
    /// # Panics
    ///
    /// If it is below 1 or not a number.
    #[must_use]
    #[track_caller]
    pub fn factor(mut self, factor: f64) -> Self {
        assert!(
            factor >= 1.0,
            "slow is more than the median, not {factor} of it"
        );
        self.factor = factor;
        self
    }

    /// Sets how many endpoints must have had enough successes. Default 5.
    ///
    /// With fewer, too little is known of what is normal.
    #[must_use]
    pub const fn min_endpoints(mut self, endpoints: usize) -> Self {
        self.min_endpoints = endpoints;
        self
    }

    /// Sets how many successes an endpoint needs in an interval to be judged. Default 50.
    ///
    /// With fewer, the figure depends too much on chance.
    #[must_use]
    pub const fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    pub(super) fn judge(&self, tallies: &[Tally]) -> Vec<Verdict> {
        let means = enough(tallies, self.min_endpoints, |tally| {
            let is_enough = tally.successes >= self.min_requests && tally.timed > 0;
            is_enough.then(|| tally.time.as_secs_f64() / tally.timed as f64)
        });
        let mut sorted: Vec<f64> = means.iter().map(|(_, mean)| *mean).collect();
        sorted.sort_by(f64::total_cmp);
        // Of an even number, the lower of the two middle means: if half of the endpoints are slow,
        // the slow half must not set the standard.
        let Some(median) = sorted.get(sorted.len().saturating_sub(1) / 2) else {
            return Vec::new();
        };
        let threshold = median * self.factor;
        let seconds = |secs| Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX);
        worst_first(means, |&(_, mean)| -mean, |mean| mean > threshold)
            .map(|(endpoint, mean)| Verdict {
                endpoint,
                reason: Reason::SlowLatency {
                    mean: seconds(mean),
                    threshold: seconds(threshold),
                },
            })
            .collect()
    }
}
