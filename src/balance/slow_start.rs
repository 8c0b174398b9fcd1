use std::time::Duration;

/// Gives an endpoint that has just joined or come back a growing share of the requests.
///
/// Use it for servers that have to fill caches, compile code or open connections first. Within
/// `window` the share grows from `min_share` to all of the endpoint's weight. At `t` after the
/// start it is:
///
/// ```text
/// factor = max((max(t, 1 ms) / window) ^ (1 / aggression), min_share)
/// ```
///
/// Source: Envoy, slow start mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    window: Duration,
    aggression: f64,
    min_share: f64,
    settling: Duration,
}

impl SlowStart {
    /// Creates a slow start that takes `window` to reach the full share.
    ///
    /// The share starts at a tenth and grows linearly.
    #[must_use]
    pub const fn new(window: Duration) -> Self {
        Self {
            window,
            aggression: 1.0,
            min_share: 0.1,
            settling: Duration::from_secs(1),
        }
    }

    /// Sets how fast the share grows at first.
    ///
    /// Default 1: linearly. At 2 the share is half after a quarter of the window.
    ///
    /// # Panics
    ///
    /// If `aggression` is not finite and above 0.
    #[must_use]
    #[track_caller]
    pub fn aggression(mut self, aggression: f64) -> Self {
        assert!(
            aggression > 0.0 && aggression.is_finite(),
            "an aggression is above 0, not {aggression}"
        );
        self.aggression = aggression;
        self
    }

    /// Sets the share at the start. Default .1.
    ///
    /// # Panics
    ///
    /// If `share` is not in 0 to 1.
    #[must_use]
    #[track_caller]
    pub fn min_share(mut self, share: f64) -> Self {
        assert!(
            (0.0..=1.0).contains(&share),
            "a share is in 0 to 1, not {share}"
        );
        self.min_share = share;
        self
    }

    /// Sets how long a set may grow and still count as new as a whole. Default 1 s.
    ///
    /// A registry often names the endpoints of a set one after the other. Those that join within
    /// this time after the first one start as warm as it does. Otherwise the first one would get
    /// most of the requests for the length of the window. With a longer time, an endpoint that
    /// joins soon after the start of the client gets its full share at once.
    #[must_use]
    pub const fn settling(mut self, settling: Duration) -> Self {
        self.settling = settling;
        self
    }

    /// Returns how long a set may grow and still count as new as a whole.
    pub(super) const fn settles_within(&self) -> Duration {
        self.settling
    }

    /// Returns the time until an endpoint gets its full share.
    #[must_use]
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// Returns the part of its weight that an endpoint gets at `since` after its start.
    ///
    /// `None` once that is the whole weight.
    #[must_use]
    pub fn factor(&self, since: Duration) -> Option<f64> {
        if since >= self.window {
            return None;
        }
        let part = since.max(Duration::from_millis(1)).as_secs_f64() / self.window.as_secs_f64();
        Some(
            part.powf(1.0 / self.aggression)
                .max(self.min_share)
                .min(1.0),
        )
    }
}

impl Default for SlowStart {
    fn default() -> Self {
        Self::new(Duration::from_secs(60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(factor: Option<f64>, expected: f64) {
        let factor = factor.unwrap();
        assert!((factor - expected).abs() < 5e-5, "{factor}, not {expected}");
    }

    #[test]
    fn the_share_grows_as_envoys() {
        let steady = SlowStart::default();
        for (secs, factor) in [
            (0, 0.1),
            (5, 0.1),
            (12, 0.2),
            (30, 0.5),
            (45, 0.75),
            (59, 0.9833),
        ] {
            near(steady.factor(Duration::from_secs(secs)), factor);
        }
        let eager = SlowStart::default().aggression(2.0);
        for (secs, factor) in [
            (6, 0.3162),
            (15, 0.5),
            (30, std::f64::consts::FRAC_1_SQRT_2),
        ] {
            near(eager.factor(Duration::from_secs(secs)), factor);
        }
        assert_eq!(steady.factor(Duration::from_secs(60)), None);
    }

    #[test]
    fn the_borders_are_shares_too() {
        assert_eq!(SlowStart::new(Duration::ZERO).factor(Duration::ZERO), None);
        let tiny = SlowStart::new(Duration::from_nanos(1)).min_share(0.0);
        near(tiny.factor(Duration::ZERO), 1.0);
        let huge = SlowStart::new(Duration::MAX).min_share(0.0);
        assert!(huge.factor(Duration::ZERO).unwrap() >= 0.0);
    }
}
