use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tower::BoxError;

use super::{backoff::Backoff, error::TryTimedOut};
use crate::{budget::Allowance, random::Rng};

/// The state that the handles of one failover service and its requests share.
pub(super) struct FailoverState<S, P, Copier> {
    /// Cloned for each further try.
    pub(super) service: S,
    pub(super) policy: P,
    pub(super) copy: Copier,
    pub(super) settings: FailoverSettings,
    pub(super) allowance: Allowance,
    seed: u64,
    draws: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FailoverSettings {
    pub(super) attempts: u32,
    pub(super) try_timeout: Option<Duration>,
    pub(super) longest_pushback: Duration,
    pub(super) backoff: Backoff,
}

impl<S, P, Copier> FailoverState<S, P, Copier> {
    pub(super) const fn new(
        service: S,
        policy: P,
        copy: Copier,
        settings: FailoverSettings,
        allowance: Allowance,
        seed: u64,
    ) -> Self {
        Self {
            service,
            policy,
            copy,
            settings,
            allowance,
            seed,
            draws: AtomicU64::new(0),
        }
    }

    /// Returns the error of a try that was given up.
    pub(super) fn timed_out(&self) -> BoxError {
        TryTimedOut::new(self.settings.try_timeout.unwrap_or_default()).into()
    }

    /// Returns the pause before retry number `retry`.
    pub(super) fn pause(&self, retry: u32) -> Duration {
        self.settings.backoff.pause(retry, self.draw().next())
    }

    /// Returns a source of random numbers of its own.
    pub(super) fn draw(&self) -> Rng {
        // Relaxed: the numbers only need to differ.
        Rng::new(self.seed, self.draws.fetch_add(1, Relaxed))
    }
}
