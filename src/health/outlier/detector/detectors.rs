use super::{FailureRate, SlowLatency, SuccessRate, Tally, reason::Verdict};

/// The detectors that judge at the end of each interval.
#[derive(Clone, Copy, Debug)]
pub(in crate::health::outlier) struct Detectors {
    pub(in crate::health::outlier) success_rate: Option<SuccessRate>,
    pub(in crate::health::outlier) failure_rate: Option<FailureRate>,
    pub(in crate::health::outlier) slow_latency: Option<SlowLatency>,
}

impl Detectors {
    /// Returns whether any detector needs tallies.
    pub(in crate::health::outlier) const fn need_tallies(&self) -> bool {
        self.success_rate.is_some() || self.failure_rate.is_some() || self.slow_latency.is_some()
    }

    /// Returns the endpoints that stand out, each of them once.
    ///
    /// The verdicts of the most reliable detector come first. Those of one detector are ordered
    /// from the worst endpoint on. The order matters because the cap may stop later ejections.
    pub(in crate::health::outlier) fn judge(&self, tallies: &[Tally]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let all = [
            self.failure_rate.map(|detector| detector.judge(tallies)),
            self.success_rate.map(|detector| detector.judge(tallies)),
            self.slow_latency.map(|detector| detector.judge(tallies)),
        ];
        for verdict in all.into_iter().flatten().flatten() {
            if verdicts
                .iter()
                .all(|known: &Verdict| known.endpoint != verdict.endpoint)
            {
                verdicts.push(verdict);
            }
        }
        verdicts
    }
}
