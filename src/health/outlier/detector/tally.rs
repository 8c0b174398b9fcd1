use std::time::Duration;

/// The counts of one endpoint in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::health::outlier) struct Tally {
    pub(in crate::health::outlier) successes: u64,
    pub(in crate::health::outlier) failures: u64,
    /// How many requests were timed; `time` is the sum of their latencies.
    pub(in crate::health::outlier) timed: u64,
    pub(in crate::health::outlier) time: Duration,
}

impl Tally {
    pub(super) const fn requests(&self) -> u64 {
        self.successes + self.failures
    }

    /// Returns the share of successes; NaN where there were no requests.
    pub(super) fn success_rate(&self) -> f64 {
        self.successes as f64 / self.requests() as f64
    }
}

/// Lists the endpoints that have a figure; lists none if fewer than `min_endpoints` have one.
pub(super) fn enough(
    tallies: &[Tally],
    min_endpoints: usize,
    figure: impl Fn(&Tally) -> Option<f64>,
) -> Vec<(usize, f64)> {
    let figures = tallies.iter().enumerate();
    let figures: Vec<_> = figures
        .filter_map(|(endpoint, tally)| Some((endpoint, figure(tally)?)))
        .collect();
    if figures.len() < min_endpoints {
        Vec::new()
    } else {
        figures
    }
}

pub(super) fn worst_first(
    mut figures: Vec<(usize, f64)>,
    badness: impl Fn(&(usize, f64)) -> f64,
    stands_out: impl Fn(f64) -> bool,
) -> impl Iterator<Item = (usize, f64)> {
    figures.retain(|&(_, figure)| stands_out(figure));
    figures.sort_by(|a, b| badness(a).total_cmp(&badness(b)));
    figures.into_iter()
}
