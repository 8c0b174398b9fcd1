use std::{fmt, time::Duration};

/// Tells why an endpoint was ejected, with the figures behind the verdict.
///
/// Its text is in the `warn` event "ejected", and in [`Endpoint::ejection`](crate::Endpoint::ejection)
/// while the ejection lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::health::outlier) enum Reason {
    ConsecutiveFailures(u32),
    /// Both are shares from 0 to 1.
    SuccessRate {
        rate: f64,
        threshold: f64,
    },
    FailureRate(f64),
    SlowLatency {
        mean: Duration,
        threshold: Duration,
    },
    /// After an earlier ejection had ended, a probe failed or never ended.
    Probe,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures(failures) => write!(f, "{failures} failures in a row"),
            Self::SuccessRate { rate, threshold } => {
                write!(f, "success rate {rate:.3} below {threshold:.3}")
            }
            Self::FailureRate(rate) => write!(f, "failure rate {rate:.3}"),
            Self::SlowLatency { mean, threshold } => {
                write!(f, "mean latency {mean:.1?} above {threshold:.1?}")
            }
            Self::Probe => f.write_str("a probe failed"),
        }
    }
}

/// A detector's decision to eject one endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::health::outlier) struct Verdict {
    /// The endpoint's index in the tallies.
    pub(in crate::health::outlier) endpoint: usize,
    pub(in crate::health::outlier) reason: Reason,
}
