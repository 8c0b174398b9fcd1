use std::{error::Error, fmt, time::Duration};

/// Reports that a source has not answered in time.
#[derive(Clone, Debug)]
pub struct NoAnswer {
    source: String,
    waited: Option<Duration>,
    failure: Option<String>,
}

/// Reports that a source can't be started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// There is no tokio runtime here, or it has no timers (`enable_time`).
    NoRuntime,
    /// A setting of the source has a value that can't be used.
    #[non_exhaustive]
    BadSetting {
        /// The source, as it is called.
        of: String,
        /// What is wrong with which setting.
        problem: String,
    },
}

impl StartError {
    #[cfg(any(
        feature = "cloud-map",
        feature = "consul",
        feature = "dns",
        feature = "kubernetes"
    ))]
    pub(in crate::discover) fn bad_setting(of: &impl fmt::Display, problem: String) -> Self {
        let of = of.to_string();
        Self::BadSetting { of, problem }
    }
}

impl NoAnswer {
    /// `waited` is `None` if the source has ended.
    pub(super) fn new(source: &str, waited: Option<Duration>, failure: Option<String>) -> Self {
        Self {
            source: source.to_owned(),
            waited,
            failure,
        }
    }

    /// Returns what the source said when it failed last, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Returns whether the source has ended without an answer.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        self.waited.is_none()
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = &self.source;
        match self.waited {
            Some(waited) => write!(f, "{source} has not answered within {waited:?}")?,
            None => write!(f, "{source} has ended without an answer")?,
        }
        match &self.failure {
            Some(failure) => write!(f, ": {failure}"),
            None => Ok(()),
        }
    }
}

impl Error for NoAnswer {}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRuntime => f.write_str("a source needs a tokio runtime with timers"),
            Self::BadSetting { of, problem } => write!(f, "{of}: {problem}"),
        }
    }
}

impl Error for StartError {}
