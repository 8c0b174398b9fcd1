use super::window::{NowFrom, Window};
use crate::atomic::{AtomicI64, Relaxed};

/// The tokens of a budget: deposited in parts, withdrawn one by one, and gone when they are old.
///
/// Each of the first [`PURSES`] threads has a purse, which no other one puts into, for what it has deposited of late: up to
/// a token; a larger deposit is everybody's at once. So threads that deposit and withdraw do not meet, as long as each withdraws what it
/// has deposited. What is in purses is there for their threads alone, until a slot of the window ends and it becomes everybody's.
pub(super) struct Tokens {
    all: CacheLine<Window>,
    purses: Box<[CacheLine<Purse>]>,
    deposit: i64,
}

/// What was put in, and of that what was taken out: two counters that only grow, so that the one who puts in, always the
/// same thread, needs no atomic operation but a store.
struct Purse {
    put: AtomicI64,
    taken: AtomicI64,
}

/// Keeps what one thread writes apart from what others do.
#[repr(align(128))]
struct CacheLine<T>(T);

impl Tokens {
    /// Starts with `reserve` tokens that do not expire; each deposit is `deposit` parts of [`TOKEN`].
    pub(super) fn new(reserve: i64, deposit: i64, ttl_nanos: u64, now: u64) -> Self {
        Self {
            all: CacheLine(Window::new(reserve, ttl_nanos, now)),
            purses: (0..PURSES).map(|_| CacheLine(Purse::new())).collect(),
            deposit,
        }
    }

    /// The time is asked for when the purse would hold more than a token: as much may be put down to too early a time.
    ///
    /// `thread` is the caller's number, which no other thread has.
    #[inline]
    pub(super) fn deposit(&self, times: u32, thread: usize, now_from: impl NowFrom) {
        let parts = self.deposit * i64::from(times);
        match self.purses.get(thread) {
            Some(CacheLine(purse)) if purse.parts() + parts <= TOKEN => purse.put(parts),
            purse => self.deposit_for_all(purse, parts, now_from),
        }
    }

    /// Takes a token, the time being asked for unless the purse has just one. // loom: `loom_no_token_is_taken_twice`
    #[inline]
    pub(super) fn withdraw(&self, thread: usize, now_from: impl NowFrom) -> bool {
        let purse = self.purses.get(thread).map(|purse| &purse.0);
        let mut parts = purse.map_or(0, Purse::parts);
        // After a long time it may be an old one: one is what a budget is exact to.
        if parts >= TOKEN && purse.is_some_and(Purse::take) {
            return true;
        }
        self.expire(now_from);
        if let Some(purse) = purse {
            // What there was before may be everybody's now.
            parts = purse.parts();
            if self.all.0.total() < TOKEN && parts > 0 && self.all.0.total() + parts >= TOKEN {
                self.all.0.add(purse.take_all());
            }
        }
        self.all.0.total() >= TOKEN && self.all.0.take(TOKEN)
    }

    pub(super) fn give_back(&self) {
        self.all.0.add(TOKEN);
    }

    /// Returns how many deposits may be made late, and as one: less than a token without the last.
    pub(super) fn batch(&self) -> u32 {
        u32::try_from(TOKEN / self.deposit.max(1))
            .map_or(MOST_AT_ONCE, |n| n.clamp(1, MOST_AT_ONCE))
    }

    /// Returns the parts of tokens that there are.
    pub(super) fn balance(&self, now_from: impl NowFrom) -> i64 {
        self.expire(now_from);
        let purses = self.purses.iter().map(|purse| purse.0.parts());
        self.all.0.total() + purses.sum::<i64>()
    }

    #[cold]
    #[inline(never)]
    fn deposit_for_all(
        &self,
        purse: Option<&CacheLine<Purse>>,
        parts: i64,
        now_from: impl NowFrom,
    ) {
        self.expire(now_from);
        let before = purse.map_or(0, |purse| purse.0.take_all());
        self.all.0.add(before + parts);
    }

    #[inline]
    fn expire(&self, now_from: impl NowFrom) {
        self.all.0.expire(now_from, || {
            let purses = self.purses.iter();
            purses.map(|purse| purse.0.take_all()).sum()
        });
    }
}

// Relaxed throughout: numbers of which each counts by itself, and publishes nothing.
impl Purse {
    fn new() -> Self {
        Self {
            put: AtomicI64::new(0),
            taken: AtomicI64::new(0),
        }
    }

    /// Returns what is in it: to its thread never more than that, to others perhaps less.
    #[inline]
    fn parts(&self) -> i64 {
        let taken = self.taken.load(Relaxed);
        self.put.load(Relaxed) - taken
    }

    /// Puts in. By its own thread alone.
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

    /// Takes out all that is seen to be in it.
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

/// More at once save nothing that can be measured.
const MOST_AT_ONCE: u32 = 8;

/// As many threads as send at once on all but the largest machines; the others deposit for all.
#[cfg(not(all(test, tower_lb_loom)))]
const PURSES: usize = 64;
#[cfg(all(test, tower_lb_loom))]
const PURSES: usize = 2;
