use std::{fmt, sync::Arc, time::Duration};

use super::{
    thread_number::thread_number,
    tokens::{TOKEN, Tokens},
};
use crate::metric;

/// Allows retries for a share of the requests, and a few besides.
///
/// Each first try deposits `ratio` of a retry, each retry withdraws one, and `minimum` a second are there for those who
/// send little. What is deposited or withdrawn counts for `ttl`, to within its last tenth: so in any `ttl` there
/// are at most `ratio` x requests + `minimum` x `ttl` retries, whatever fails. The ratio is exact: .3 is three retries for
/// ten requests.
///
/// Clones share one budget; hand one to all layers that send the same clients' requests a second time, so that together
/// they stay within it. Of layers on top of each other let all but one take a
/// [`drawing`](Self::drawing) clone, or a request deposits twice.
///
/// Defaults: `ttl` 10 s, `minimum` 10 a second, `ratio` .2, as Finagle's: a service that has broken down gets a fifth more
/// traffic from its clients, and not three times as much.
///
/// Lock-free: a deposit is a store, a withdrawal an atomic operation or two and a reading of the clock. Each thread keeps
/// what it has deposited of late, at most one retry, to itself for up to a tenth of the `ttl`: there may be
/// as much less for another one, and never more than is said above, but for one retry a thread after an idle time.
///
/// A budget takes 8 KiB, for that is kept apart for each thread.
///
/// tower's `Retry` can use it: it implements [`tower::retry::budget::Budget`].
///
/// ```
/// use tower_lb::retry::{Budget, ConnectErrors, FailoverLayer};
///
/// let budget = Budget::default().ratio(0.1).minimum(1);
/// let layer = FailoverLayer::new(ConnectErrors::default()).budget(budget.clone());
/// # let _ = layer;
/// assert!(budget.withdraw());
/// ```
///
/// Source: Finagle's `RetryBudget`.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<Shared>,
    deposits: Deposits,
}

struct Shared {
    settings: Settings,
    tokens: Tokens,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    ttl: Duration,
    minimum: u32,
    ratio: f64,
}

/// Whether a deposit made here counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deposits {
    Counted,
    Ignored,
}

impl Budget {
    /// Starts with the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::with(
            Settings {
                ttl: Duration::from_secs(10),
                minimum: 10,
                ratio: 0.2,
            },
            Deposits::Counted,
        )
    }

    /// Returns a new budget for which a deposit or withdrawal counts so long. Default 10 s.
    ///
    /// A longer one lets more retries be saved up for a bad moment.
    ///
    /// # Panics
    ///
    /// If it is shorter than a millisecond or longer than a minute.
    #[must_use]
    #[track_caller]
    pub fn ttl(self, ttl: Duration) -> Self {
        assert!(
            (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl),
            "the ttl must be between a millisecond and a minute"
        );
        Self::with(
            Settings {
                ttl,
                ..self.shared.settings
            },
            self.deposits,
        )
    }

    /// Returns a new budget that allows so many retries a second whatever was deposited. Default 10.
    #[must_use]
    pub fn minimum(self, per_second: u32) -> Self {
        Self::with(
            Settings {
                minimum: per_second,
                ..self.shared.settings
            },
            self.deposits,
        )
    }

    /// Returns a new budget that allows so many retries for each request. Default .2.
    ///
    /// To a millionth.
    ///
    /// # Panics
    ///
    /// If it is not between 0 and 100.
    #[must_use]
    #[track_caller]
    pub fn ratio(self, ratio: f64) -> Self {
        assert!(
            (0.0..=100.0).contains(&ratio),
            "the ratio must be between 0 and 100"
        );
        Self::with(
            Settings {
                ratio,
                ..self.shared.settings
            },
            self.deposits,
        )
    }

    fn with(settings: Settings, deposits: Deposits) -> Self {
        let Settings {
            ttl,
            minimum,
            ratio,
        } = settings;
        let reserve = f64::from(minimum) * ttl.as_secs_f64() * TOKEN as f64;
        let reserve = reserve.min(LARGEST_RESERVE) as i64;
        let deposit = (ratio * TOKEN as f64).round() as i64;
        let ttl_nanos = ttl.as_nanos() as u64;
        Self {
            shared: Arc::new(Shared {
                settings,
                tokens: Tokens::new(reserve, deposit, ttl_nanos, metric::now()),
            }),
            deposits,
        }
    }

    /// Returns a clone whose deposits are ignored: for a second layer that the same requests pass.
    #[must_use]
    pub fn drawing(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            deposits: Deposits::Ignored,
        }
    }

    /// Counts a first try.
    #[inline]
    pub fn deposit(&self) {
        self.deposit_many(1);
    }

    /// Returns how many deposits may be made late, and as one.
    pub(super) fn batch(&self) -> u32 {
        self.shared.tokens.batch()
    }

    #[inline]
    pub(super) fn deposit_many(&self, times: u32) {
        if self.deposits == Deposits::Counted {
            self.shared
                .tokens
                .deposit(times, thread_number(), metric::now_from);
        }
    }

    /// Asks for one retry, which is paid for if it is allowed.
    #[inline]
    #[must_use = "a retry that was paid for should be made"]
    pub fn withdraw(&self) -> bool {
        self.shared
            .tokens
            .withdraw(thread_number(), metric::now_from)
    }

    /// Gives back what was withdrawn for a retry that was not made.
    pub(super) fn give_back(&self) {
        self.shared.tokens.give_back();
    }

    /// Returns how many retries are allowed at this moment, to all threads together.
    #[must_use]
    pub fn balance(&self) -> f64 {
        self.shared.tokens.balance(metric::now_from) as f64 / TOKEN as f64
    }
}

impl tower::retry::budget::Budget for Budget {
    fn deposit(&self) {
        self.deposit();
    }

    fn withdraw(&self) -> bool {
        self.withdraw()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings {
            ttl,
            minimum,
            ratio,
        } = self.shared.settings;
        f.debug_struct("Budget")
            .field("ttl", &ttl)
            .field("minimum", &minimum)
            .field("ratio", &ratio)
            .field("balance", &self.balance())
            .finish()
    }
}

/// A quarter of what an `i64` holds; another is left for the deposits of a ttl, 12 million a second at the largest ratio.
const LARGEST_RESERVE: f64 = (i64::MAX / 4) as f64;

const SHORTEST_TTL: Duration = Duration::from_millis(1);
const LONGEST_TTL: Duration = Duration::from_secs(60);
