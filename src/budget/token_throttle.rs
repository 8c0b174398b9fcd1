use std::{fmt, sync::Arc};

use crate::atomic::{AtomicI64, Relaxed};

/// Allows retries while most requests succeed: gRPC's retry throttling.
///
/// It starts with `max` tokens. Each failure takes one, and each success gives back `ratio` of one.
/// Retries are allowed while more than half of the tokens are left. It needs no clock. A client
/// whose server is gone stops retrying after `max` / 2 failures, however much it sends.
///
/// Clones share the tokens. tower's `Retry` can use it as a budget, too
/// ([`tower::retry::budget::Budget`]): a deposit is a success, and a withdrawal is a failure.
///
/// ```
/// use tower_lb::budget::TokenThrottle;
///
/// let throttle = TokenThrottle::new(10, 0.1);
/// for _ in 0..4 {
///     assert!(throttle.failed());
/// }
/// assert!(!throttle.failed()); // half are left
/// throttle.succeeded();
/// assert!(throttle.allows());  // and a tenth
/// ```
///
/// Source: [gRFC
/// A6](https://github.com/grpc/proposal/blob/master/A6-client-retries.md#throttling-retry-attempts-and-hedged-rpcs).
#[derive(Clone)]
pub struct TokenThrottle {
    tokens: Arc<AtomicI64>,
    max: i64,
    success: i64,
}

impl TokenThrottle {
    /// Creates a throttle with all its tokens.
    ///
    /// `ratio` is rounded to a thousandth, the precision of gRPC.
    ///
    /// # Panics
    ///
    /// If `max` is not between 1 and 1000, or `ratio` is not above 0 and at most 1000.
    #[must_use]
    #[track_caller]
    pub fn new(max: u32, ratio: f64) -> Self {
        assert!(
            (1..=1000).contains(&max),
            "the number of tokens must be between 1 and 1000"
        );
        assert!(
            ratio > 0.0 && ratio <= 1000.0,
            "the ratio must be above 0 and at most 1000"
        );
        let max = i64::from(max) * TOKEN;
        Self {
            tokens: Arc::new(AtomicI64::new(max)),
            max,
            // A ratio below a thousandth counts as one thousandth. With zero, a throttle that has
            // closed would never open again.
            success: ((ratio * TOKEN as f64).round() as i64).max(1),
        }
    }

    /// Counts a failure, and returns whether a retry is allowed after it.
    pub fn failed(&self) -> bool {
        self.update(|tokens| (tokens - TOKEN).max(0)) > self.max / 2
    }

    /// Counts a success.
    #[inline]
    pub fn succeeded(&self) {
        // Usually no token is missing, and there is nothing to write.
        if self.tokens.load(Relaxed) < self.max {
            self.update(|tokens| (tokens + self.success).min(self.max));
        }
    }

    /// Returns whether a retry would be allowed now.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.tokens.load(Relaxed) > self.max / 2
    }

    /// Returns how many tokens are left.
    #[must_use]
    pub fn tokens(&self) -> f64 {
        self.tokens.load(Relaxed) as f64 / TOKEN as f64
    }

    /// Applies the change, and returns the new number. // loom: `loom_tokens_stay_within_bounds`
    fn update(&self, change: impl Fn(i64) -> i64) -> i64 {
        // Relaxed: one number that publishes nothing.
        let before = self
            .tokens
            .fetch_update(Relaxed, Relaxed, |tokens| Some(change(tokens)));
        change(before.unwrap_or_else(|tokens| tokens))
    }
}

impl tower::retry::budget::Budget for TokenThrottle {
    fn deposit(&self) {
        self.succeeded();
    }

    fn withdraw(&self) -> bool {
        self.failed()
    }
}

impl fmt::Debug for TokenThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenThrottle")
            .field("tokens", &self.tokens())
            .field("max", &(self.max / TOKEN))
            .finish_non_exhaustive()
    }
}

const TOKEN: i64 = 1000;
