use crossbeam_utils::CachePadded;

use super::window::{NowFrom, Window};
use crate::atomic::{AtomicI64, Relaxed};

/// The tokens of a budget: deposited in parts, withdrawn whole, and expired when they are old.
///
/// Each of the first [`PURSES`] threads has a purse, and only that thread puts its deposits in. A
/// purse holds up to one token. When a deposit would exceed that, everything goes to `all`, where
/// any thread may take it. So threads do not contend as long as each one withdraws what it has
/// deposited. Until a slot of the window ends, the content of a purse is for its thread alone. Then
/// it moves to `all`.
pub(super) struct Tokens {
    all: Window,
    purses: Box<[CachePadded<Purse>]>,
    deposit: i64,
}

/// What was put in, and how much of it was taken out: two counters that only grow.
///
/// Only one thread ever puts in. So putting in needs a store, and no atomic read-modify-write.
struct Purse {
    put: AtomicI64,
    taken: AtomicI64,
}

impl Tokens {
    /// Starts with `reserve` parts that do not expire. Each deposit adds `deposit` parts; a token
    /// has [`TOKEN`] parts.
    pub(super) fn new(reserve: i64, deposit: i64, ttl_nanos: u64, now: u64) -> Self {
        Self {
            all: Window::new([reserve], ttl_nanos, SLOTS, now),
            purses: (0..PURSES)
                .map(|_| CachePadded::new(Purse::new()))
                .collect(),
            deposit,
        }
    }

    /// Deposits once. Reads the clock only when the purse would hold more than a token.
    ///
    /// So up to a token per thread may be counted in a slot that is too early. `thread` is the
    /// caller's number, which no other thread has.
    #[inline]
    pub(super) fn deposit(&self, thread: usize, now_from: impl NowFrom) {
        let parts = self.deposit;
        match self.purses.get(thread) {
            Some(purse) if purse.parts() + parts <= TOKEN => purse.put(parts),
            purse => self.deposit_for_all(purse, parts, now_from),
        }
    }

    /// Takes a token. Reads the clock unless the purse holds a whole one.
    /// // loom: `loom_no_token_is_taken_twice`
    #[inline]
    pub(super) fn withdraw(&self, thread: usize, now_from: impl NowFrom) -> bool {
        let purse = self.purses.get(thread).map(|purse| &**purse);
        let mut parts = purse.map_or(0, Purse::parts);
        // After a long time the token may have expired. That is accepted: a budget is exact to one
        // token per thread.
        if parts >= TOKEN && purse.is_some_and(Purse::take) {
            return true;
        }
        self.expire(now_from);
        if let Some(purse) = purse {
            // The expiry may have moved the purse's content to `all`.
            parts = purse.parts();
            if self.all.total() < TOKEN && parts > 0 && self.all.total() + parts >= TOKEN {
                self.all.add(purse.take_all());
            }
        }
        self.all.total() >= TOKEN && self.all.take(TOKEN)
    }

    pub(super) fn give_back(&self) {
        self.all.add(TOKEN);
    }

    /// Returns the balance, in parts of tokens.
    pub(super) fn balance(&self, now_from: impl NowFrom) -> i64 {
        self.expire(now_from);
        let purses = self.purses.iter().map(|purse| purse.parts());
        self.all.total() + purses.sum::<i64>()
    }

    #[cold]
    #[inline(never)]
    fn deposit_for_all(
        &self,
        purse: Option<&CachePadded<Purse>>,
        parts: i64,
        now_from: impl NowFrom,
    ) {
        self.expire(now_from);
        let before = purse.map_or(0, |purse| purse.take_all());
        self.all.add(before + parts);
    }

    #[inline]
    fn expire(&self, now_from: impl NowFrom) {
        self.all.expire(now_from, || {
            let purses = self.purses.iter();
            [purses.map(|purse| purse.take_all()).sum()]
        });
    }
}

// Relaxed throughout: each number counts by itself, and publishes nothing.
impl Purse {
    fn new() -> Self {
        Self {
            put: AtomicI64::new(0),
            taken: AtomicI64::new(0),
        }
    }

    /// Returns the parts in the purse, as far as this thread sees them.
    ///
    /// The purse's own thread never sees too little, because only it puts in. It may see too much
    /// when another thread has just emptied the purse. Other threads may see either. So a taker
    /// must check again by `fetch_update`.
    #[inline]
    fn parts(&self) -> i64 {
        let taken = self.taken.load(Relaxed);
        self.put.load(Relaxed) - taken
    }

    /// Puts parts in. Only the purse's own thread may call it.
    #[inline]
    fn put(&self, parts: i64) {
        let put = self.put.load(Relaxed);
        self.put.store(put + parts, Relaxed);
    }

    /// Takes a token out, if there is one.
    #[inline]
    fn take(&self) -> bool {
        let put = self.put.load(Relaxed);
        let taken = self.taken.fetch_update(Relaxed, Relaxed, |taken| {
            (put - taken >= TOKEN).then(|| taken + TOKEN)
        });
        taken.is_ok()
    }

    /// Takes out everything that this thread sees in it.
    fn take_all(&self) -> i64 {
        let put = self.put.load(Relaxed);
        let taken = self
            .taken
            .fetch_update(Relaxed, Relaxed, |taken| (taken < put).then_some(put));
        taken.map_or(0, |taken| put - taken)
    }
}

/// One token, in parts.
pub(super) const TOKEN: i64 = 1_000_000;

/// An amount counts for nine tenths of the ttl at least.
pub(super) const SLOTS: usize = 10;

/// As many threads as send at once on all but the largest machines. Any others deposit to `all`.
#[cfg(not(all(test, tower_lb_loom)))]
const PURSES: usize = 64;
#[cfg(all(test, tower_lb_loom))]
const PURSES: usize = 2;
