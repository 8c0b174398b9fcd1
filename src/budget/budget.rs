use std::{fmt, sync::Arc, time::Duration};

use super::{
    tokens::{SLOTS, TOKEN, Tokens},
    window::Window,
};
use crate::{clock, thread_number::thread_number};

/// Allows retries for a share of the requests, plus a minimum per second.
///
/// Each first try deposits `ratio` of a retry, and each retry withdraws one. In addition, `minimum`
/// retries a second are allowed, for clients that send little. A deposit or withdrawal counts for
/// `ttl`, or up to a tenth less. So any `ttl` has at most `ratio` x requests + `minimum` x `ttl`
/// retries, whatever fails. The ratio is exact: 0.3 allows three retries for ten requests.
///
/// Clones share one budget. Give a clone to all layers that send the same clients' requests a
/// second time, so that together they stay within it. If such layers stand on top of each other,
/// give all but one a [`drawing`](Self::drawing) clone. Otherwise a request deposits twice.
///
/// Defaults, the same as Finagle's: `ttl` 10 s, `minimum` 10 a second, `ratio` 0.2. With these, a
/// service that has broken down gets a fifth more traffic from its clients, not three times as
/// much.
///
/// Lock-free. A deposit is usually one store. A withdrawal is one or two atomic operations and
/// usually a reading of the clock. Each thread keeps its latest deposits, at most one retry's
/// worth, to itself for up to a tenth of the `ttl`. So another thread may find that much less. The
/// bound above still holds, except for one retry per thread after an idle time.
///
/// A budget takes 8 KiB, because each thread's deposits are kept apart.
///
/// tower's `Retry` can use it: it implements [`tower::retry::budget::Budget`].
///
/// ```
/// use tower_lb::{Budget, ConnectErrors, FailoverLayer};
///
/// let budget = Budget::builder().ratio(0.1).minimum(1).build();
/// let layer = FailoverLayer::new(ConnectErrors::default()).budget(budget.clone());
/// # let _ = layer;
/// assert!(budget.withdraw());
/// ```
///
/// Source: Finagle's `RetryBudget`.
#[derive(Clone)]
pub struct Budget {
    shared: Arc<BudgetState>,
    deposits: Deposits,
}

struct BudgetState {
    settings: BudgetBuilder,
    tokens: Tokens,
    /// How many hedges have been paid within the ttl.
    hedges: Window,
}

/// Configures a [`Budget`]; made by [`Budget::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder makes nothing until it is built"]
pub struct BudgetBuilder {
    ttl: Duration,
    minimum: u32,
    ratio: f64,
}

/// Whether a deposit through this handle counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deposits {
    Counted,
    Ignored,
}

impl Budget {
    /// Creates a budget with the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder that starts with the defaults.
    pub const fn builder() -> BudgetBuilder {
        BudgetBuilder {
            ttl: Duration::from_secs(10),
            minimum: 10,
            ratio: 0.2,
        }
    }

    /// Returns a clone that ignores deposits.
    ///
    /// It is for a second layer that the same requests pass.
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
        if self.deposits == Deposits::Counted {
            let thread = thread_number();
            self.shared.tokens.deposit(thread, clock::now_from);
        }
    }

    /// Withdraws one retry if it is allowed, and returns whether it is.
    #[inline]
    #[must_use = "a retry that was paid for should be made"]
    pub fn withdraw(&self) -> bool {
        self.shared
            .tokens
            .withdraw(thread_number(), clock::now_from)
    }

    /// Withdraws one hedge if that leaves retries at least as much as hedges have had.
    ///
    /// A hedge makes a slow answer faster. A retry that is not allowed is an error, so retries come
    /// first.
    pub(crate) fn hedge(&self) -> bool {
        let hedges = &self.shared.hedges;
        hedges.expire(clock::now_from, || [0]);
        let with_this_one = (hedges.total() + 1) as f64;
        let is_paid = self.balance() - 1.0 >= with_this_one && self.withdraw();
        if is_paid {
            hedges.add(1);
        }
        is_paid
    }

    /// Gives back the withdrawal for a hedge that was not sent.
    pub(crate) fn give_hedge_back(&self) {
        self.shared.hedges.add(-1);
        self.give_back();
    }

    /// Gives back the withdrawal for a retry that was not made.
    pub(crate) fn give_back(&self) {
        self.shared.tokens.give_back();
    }

    /// Returns how many retries are allowed now, to all threads together.
    #[must_use]
    pub fn balance(&self) -> f64 {
        self.shared.tokens.balance(clock::now_from) as f64 / TOKEN as f64
    }
}

impl BudgetBuilder {
    /// Sets how long a deposit or withdrawal counts. Default 10 s.
    ///
    /// With a longer time, more retries can be saved up for a bad moment.
    ///
    /// # Panics
    ///
    /// If it is shorter than a millisecond or longer than a minute.
    #[track_caller]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        assert!(
            (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl),
            "the ttl must be between a millisecond and a minute"
        );
        self.ttl = ttl;
        self
    }

    /// Sets how many retries a second are allowed without any deposit. Default 10.
    pub const fn minimum(mut self, per_second: u32) -> Self {
        self.minimum = per_second;
        self
    }

    /// Sets how many retries each request allows, to a millionth. Default 0.2.
    ///
    /// # Panics
    ///
    /// If it is not between 0 and 100.
    #[track_caller]
    pub fn ratio(mut self, ratio: f64) -> Self {
        assert!(
            (0.0..=100.0).contains(&ratio),
            "the ratio must be between 0 and 100"
        );
        self.ratio = ratio;
        self
    }

    /// Builds the budget.
    #[must_use]
    pub fn build(self) -> Budget {
        let reserve = f64::from(self.minimum) * self.ttl.as_secs_f64();
        self.with_reserve(reserve)
    }

    /// Builds the budget with so many retries for each `ttl`, whatever the minimum.
    pub(crate) fn with_reserve(self, reserve: f64) -> Budget {
        // At most a thirtieth of what an `i64` holds, at the largest minimum and the longest ttl.
        let reserve = (reserve * TOKEN as f64) as i64;
        let deposit = (self.ratio * TOKEN as f64).round() as i64;
        let (ttl_nanos, now) = (self.ttl.as_nanos() as u64, clock::now());
        Budget {
            shared: Arc::new(BudgetState {
                settings: self,
                tokens: Tokens::new(reserve, deposit, ttl_nanos, now),
                hedges: Window::new([0], ttl_nanos, SLOTS, now),
            }),
            deposits: Deposits::Counted,
        }
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
        let BudgetBuilder {
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

const SHORTEST_TTL: Duration = Duration::from_millis(1);
const LONGEST_TTL: Duration = Duration::from_secs(60);
