//! Who stands out? Pure judgements over what was counted in one interval.

use std::{fmt, time::Duration};

/// What one endpoint has shown in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) successes: u64,
    pub(super) failures: u64,
    /// Of successes that were timed.
    pub(super) timed: u64,
    pub(super) time: Duration,
}

/// Why an endpoint was ejected, with the figures that it was judged by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reason {
    ConsecutiveFailures(u32),
    /// Shares from 0 to 1.
    SuccessRate {
        rate: f64,
        threshold: f64,
    },
    FailurePercentage(f64),
    SlowLatency {
        mean: Duration,
        threshold: Duration,
    },
    /// A probe failed, or did not end, when an earlier ejection was over.
    Probe,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(failures) => write!(f, "{failures} failures in a row"),
            Self::SuccessRate { rate, threshold } => {
                write!(f, "success rate {rate:.3} below {threshold:.3}")
            }
            Self::FailurePercentage(rate) => write!(f, "failure rate {rate:.3}"),
            Self::SlowLatency { mean, threshold } => {
                write!(f, "mean latency {mean:.1?} above {threshold:.1?}")
            }
            Self::Probe => f.write_str("a probe failed"),
        }
    }
}

/// Ejects endpoints whose share of successes is far below that of the others.
///
/// Far below is: less than `mean - sigmas * standard deviation` of all endpoints with enough requests, and less
/// than `mean - floor`. The first alone would eject five to nine healthy endpoints in a hundred in each interval, since
/// chance alone makes some the worst.
///
/// Of `n` endpoints of which `k` are dead, it can see them only if `n` is at least 5, 10, 14, 19 for `k` = 1, 2, 3, 4:
/// the dead raise the deviation themselves. The other detectors stand beside it for that.
///
/// Source: Envoy, outlier detection; gRFC A50. The floor is ours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    sigmas: f64,
    floor: f64,
    min_hosts: usize,
    min_requests: u64,
}

/// Ejects endpoints whose share of failures is at least so large.
///
/// Source: Envoy, outlier detection; gRFC A50.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FailurePercentage {
    threshold: f64,
    min_hosts: usize,
    min_requests: u64,
}

/// Ejects endpoints whose mean latency is so many times the median of all endpoints' means.
///
/// For fleets of equal servers only: it takes a slower zone for a fault. A latency is that to the response, or to the first data where
/// [completion](super::OutlierLayer::completion) is by bodies. Times the first 64 successes of an interval, and one
/// in 16 of the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowLatency {
    factor: f64,
    min_hosts: usize,
    min_requests: u64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            sigmas: 1.9,
            floor: 0.05,
            min_hosts: 5,
            min_requests: 100,
        }
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self {
            threshold: 0.85,
            min_hosts: 5,
            min_requests: 50,
        }
    }
}

impl Default for SlowLatency {
    fn default() -> Self {
        Self {
            factor: 3.0,
            min_hosts: 5,
            min_requests: 50,
        }
    }
}

/// The detectors that judge by the interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detectors {
    pub(super) success_rate: Option<SuccessRate>,
    pub(super) failure_percentage: Option<FailurePercentage>,
    pub(super) slow_latency: Option<SlowLatency>,
}

/// One endpoint's verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outlier {
    /// Its place among the tallies.
    pub(super) host: usize,
    pub(super) reason: Reason,
}

impl Detectors {
    /// Returns whether there is anything to count for.
    pub(super) const fn need_tallies(&self) -> bool {
        self.success_rate.is_some()
            || self.failure_percentage.is_some()
            || self.slow_latency.is_some()
    }

    /// Returns who stands out, each once: the surest detector's first, and of one detector the worst first.
    pub(super) fn judge(&self, tallies: &[Tally]) -> Vec<Outlier> {
        let mut outliers = Vec::new();
        let verdicts = [
            self.failure_percentage
                .map(|detector| detector.judge(tallies)),
            self.success_rate.map(|detector| detector.judge(tallies)),
            self.slow_latency.map(|detector| detector.judge(tallies)),
        ];
        for outlier in verdicts.into_iter().flatten().flatten() {
            if outliers
                .iter()
                .all(|known: &Outlier| known.host != outlier.host)
            {
                outliers.push(outlier);
            }
        }
        outliers
    }
}

impl Tally {
    const fn requests(&self) -> u64 {
        self.successes + self.failures
    }

    /// Not a number where there were no requests.
    fn success_rate(&self) -> f64 {
        self.successes as f64 / self.requests() as f64
    }
}

impl SuccessRate {
    /// Sets how many standard deviations below the mean are too many. Default 1.9; more eject fewer.
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

    /// Sets how far below the mean an endpoint must be at least, from 0 to 1. Default .05.
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
    /// Fewer are no fleet to stand out from.
    #[must_use]
    pub const fn min_hosts(mut self, hosts: usize) -> Self {
        self.min_hosts = hosts;
        self
    }

    /// Sets how many requests in an interval are enough. Default 100.
    ///
    /// Of fewer, chance has a large say.
    #[must_use]
    pub const fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    fn judge(&self, tallies: &[Tally]) -> Vec<Outlier> {
        let rates = enough(tallies, self.min_hosts, |tally| {
            let is_enough = tally.requests() >= self.min_requests.max(1);
            is_enough.then(|| tally.success_rate())
        });
        let n = rates.len() as f64;
        let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / n;
        // Of the population, as the endpoints are not a sample of others.
        let variance = rates
            .iter()
            .map(|(_, rate)| (rate - mean).powi(2))
            .sum::<f64>()
            / n;
        let threshold = (mean - self.sigmas * variance.sqrt()).min(mean - self.floor);
        worst_first(rates, |&(_, rate)| rate, |rate| rate < threshold)
            .map(|(host, rate)| Outlier {
                host,
                reason: Reason::SuccessRate { rate, threshold },
            })
            .collect()
    }
}

impl FailurePercentage {
    /// Sets the share of failures that is too large, from 0 to 1. Default .85.
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
    /// Fewer are no fleet to stand out from.
    #[must_use]
    pub const fn min_hosts(mut self, hosts: usize) -> Self {
        self.min_hosts = hosts;
        self
    }

    /// Sets how many requests in an interval are enough. Default 50.
    ///
    /// Of fewer, chance has a large say.
    #[must_use]
    pub const fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    fn judge(&self, tallies: &[Tally]) -> Vec<Outlier> {
        let rates = enough(tallies, self.min_hosts, |tally| {
            let is_enough = tally.requests() >= self.min_requests.max(1);
            is_enough.then(|| tally.failures as f64 / tally.requests() as f64)
        });
        worst_first(rates, |&(_, rate)| -rate, |rate| rate >= self.threshold)
            .map(|(host, rate)| Outlier {
                host,
                reason: Reason::FailurePercentage(rate),
            })
            .collect()
    }
}

impl SlowLatency {
    /// Sets how many times the median is too slow. Default 3.
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

    /// Sets how many endpoints must have had enough requests. Default 5.
    ///
    /// Fewer are no fleet to stand out from.
    #[must_use]
    pub const fn min_hosts(mut self, hosts: usize) -> Self {
        self.min_hosts = hosts;
        self
    }

    /// Sets how many successes in an interval are enough. Default 50.
    ///
    /// Of fewer, chance has a large say.
    #[must_use]
    pub const fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    fn judge(&self, tallies: &[Tally]) -> Vec<Outlier> {
        let means = enough(tallies, self.min_hosts, |tally| {
            let is_enough = tally.successes >= self.min_requests && tally.timed > 0;
            is_enough.then(|| tally.time.as_secs_f64() / tally.timed as f64)
        });
        let mut sorted: Vec<f64> = means.iter().map(|(_, mean)| *mean).collect();
        sorted.sort_by(f64::total_cmp);
        // The lower one of two: half of the fleet slow is no standard.
        let Some(median) = sorted.get(sorted.len().saturating_sub(1) / 2) else {
            return Vec::new();
        };
        let threshold = median * self.factor;
        let seconds = |secs| Duration::try_from_secs_f64(secs).unwrap_or(Duration::MAX);
        worst_first(means, |&(_, mean)| -mean, |mean| mean > threshold)
            .map(|(host, mean)| Outlier {
                host,
                reason: Reason::SlowLatency {
                    mean: seconds(mean),
                    threshold: seconds(threshold),
                },
            })
            .collect()
    }
}

/// Lists the endpoints that have a figure, or none of them if those are fewer than `min_hosts`.
fn enough(
    tallies: &[Tally],
    min_hosts: usize,
    figure: impl Fn(&Tally) -> Option<f64>,
) -> Vec<(usize, f64)> {
    let figures = tallies.iter().enumerate();
    let figures: Vec<_> = figures
        .filter_map(|(host, tally)| Some((host, figure(tally)?)))
        .collect();
    if figures.len() < min_hosts {
        Vec::new()
    } else {
        figures
    }
}

fn worst_first(
    mut figures: Vec<(usize, f64)>,
    badness: impl Fn(&(usize, f64)) -> f64,
    stands_out: impl Fn(f64) -> bool,
) -> impl Iterator<Item = (usize, f64)> {
    figures.retain(|&(_, figure)| stands_out(figure));
    figures.sort_by(|a, b| badness(a).total_cmp(&badness(b)));
    figures.into_iter()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn tallies(rates: &[u64], requests: u64) -> Vec<Tally> {
        let tally = |&percent: &u64| Tally {
            successes: requests * percent / 100,
            failures: requests - requests * percent / 100,
            ..Tally::default()
        };
        rates.iter().map(tally).collect()
    }

    fn hosts(outliers: &[Outlier]) -> Vec<usize> {
        outliers.iter().map(|outlier| outlier.host).collect()
    }

    #[test]
    fn the_rate_that_stands_out_is_that_of_the_published_example() {
        let outliers = SuccessRate::default().judge(&tallies(&[50, 100, 100, 100, 100], 100));
        assert_eq!(hosts(&outliers), [0]);
        let Reason::SuccessRate { rate, threshold } = outliers[0].reason else {
            panic!("{outliers:?}");
        };
        // Mean 90, deviation 20.
        assert!(
            (rate - 0.5).abs() < 1e-12 && (threshold - 0.52).abs() < 1e-12,
            "{threshold}"
        );
    }

    /// k dead of n, all others perfect: seen by success rate only from n = 5, 10, 14, 19 on.
    #[test]
    fn so_many_dead_are_seen_among_so_many() {
        for (dead, from) in [(1, 5), (2, 10), (3, 14), (4, 19)] {
            for n in 5..25 {
                let mut rates = vec![100; n];
                rates[..dead].fill(0);
                let seen = SuccessRate::default().judge(&tallies(&rates, 100)).len();
                assert_eq!(seen, if n >= from { dead } else { 0 }, "{dead} of {n}");
                let seen = FailurePercentage::default()
                    .judge(&tallies(&rates, 50))
                    .len();
                assert_eq!(seen, dead, "by failure percentage, {dead} of {n}");
            }
        }
    }

    #[test]
    fn few_requests_and_few_endpoints_are_not_judged() {
        assert!(
            SuccessRate::default()
                .judge(&tallies(&[0, 100, 100, 100, 100], 99))
                .is_empty()
        );
        assert!(
            SuccessRate::default()
                .judge(&tallies(&[0, 100, 100, 100], 100))
                .is_empty()
        );
        assert!(
            FailurePercentage::default()
                .judge(&tallies(&[0; 5], 49))
                .is_empty()
        );
        assert!(
            FailurePercentage::default()
                .judge(&tallies(&[0; 4], 50))
                .is_empty()
        );
        assert!(SuccessRate::default().judge(&[]).is_empty());
        let none = SuccessRate::default().min_hosts(0).min_requests(0);
        assert!(none.judge(&[Tally::default(); 3]).is_empty());
    }

    #[test]
    fn a_failure_percentage_at_the_threshold_is_too_large() {
        let outliers = FailurePercentage::default().judge(&tallies(&[15, 16, 0, 100, 100], 100));
        assert_eq!(hosts(&outliers), [2, 0], "the worst first");
    }

    #[test]
    fn a_mean_beyond_so_many_medians_is_slow() {
        let timed = |millis: u64| Tally {
            successes: 50,
            timed: 10,
            time: Duration::from_millis(millis * 10),
            ..Tally::default()
        };
        let judge = |means: &[u64]| {
            let tallies: Vec<_> = means.iter().map(|&mean| timed(mean)).collect();
            hosts(&SlowLatency::default().judge(&tallies))
        };
        assert_eq!(judge(&[10, 10, 10, 30, 31]), [4]);
        assert_eq!(judge(&[10, 10, 50, 40, 10]), [2, 3]);
        // Of an even number, the lower median: the slow half does not pass for normal.
        assert_eq!(judge(&[10, 10, 10, 90, 90, 90]).len(), 3);
        assert!(judge(&[10, 10, 10, 90]).is_empty());
    }

    #[test]
    fn healthy_fleets_are_left_alone() {
        let seed = 1;
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        for rate in [0.99, 0.999] {
            let (mut ejected, mut by_the_stock_rule) = (0, 0);
            let sweeps = 2_000;
            for _ in 0..sweeps {
                let tallies: Vec<_> = (0..50)
                    .map(|_| {
                        let successes = (0..100).filter(|_| rng.random_bool(rate)).count() as u64;
                        Tally {
                            successes,
                            failures: 100 - successes,
                            ..Tally::default()
                        }
                    })
                    .collect();
                ejected += SuccessRate::default().judge(&tallies).len();
                let stock = SuccessRate {
                    floor: 0.0,
                    ..SuccessRate::default()
                };
                by_the_stock_rule += stock.judge(&tallies).len();
            }
            let share = |n: usize| n as f64 / (50 * sweeps) as f64;
            println!(
                "success {rate}: ejected {:.5} of host-sweeps, {:.3} by the stock rule",
                share(ejected),
                share(by_the_stock_rule)
            );
            assert!(share(ejected) <= 0.001);
            assert!(share(by_the_stock_rule) > 0.04);
        }
    }
}
