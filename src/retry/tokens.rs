use super::{
    atomic::{AtomicI64, Relaxed},
    window::Window,
};

/// The tokens of a budget: deposited in parts, withdrawn one by one, and gone when they are old.
///
/// Each thread has a purse, a counter that no other one writes as a rule, for what it has deposited of late: up to
/// a token, or one deposit if that is more. So threads that deposit and withdraw do not meet, as long as each withdraws what it has deposited.
/// What is in purses is there for their threads alone, until a slot of the window ends and it becomes everybody's.
pub(super) struct Tokens {
    all: CacheLine<Window>,
    purses: [CacheLine<AtomicI64>; PURSES],
    deposit: i64,
}

/// Keeps what one thread writes apart from what others do.
#[repr(align(128))]
struct CacheLine<T>(T);

impl Tokens {
    /// Starts with `reserve` tokens that do not expire; each deposit is `deposit` parts of [`TOKEN`].
    pub(super) fn new(reserve: i64, deposit: i64, ttl_nanos: u64, now: u64) -> Self {
        Self {
            all: CacheLine(Window::new(reserve, ttl_nanos, now)),
            purses: std::array::from_fn(|_| CacheLine(AtomicI64::new(0))),
            deposit,
        }
    }

    /// `now` is asked for when the purse would hold more than a token: as much may be put down to too early a time.
    #[inline]
    pub(super) fn deposit(&self, times: u32, purse: usize, now: impl FnOnce() -> u64) {
        let parts = self.deposit * i64::from(times);
        let purse = self.purse(purse);
        // Relaxed, here and below: numbers of which each counts by itself, and publishes nothing.
        if purse.load(Relaxed) + parts > TOKEN {
            self.empty(purse, parts, now());
        } else {
            purse.fetch_add(parts, Relaxed);
        }
    }

    /// Takes a token, `now` being asked for unless the purse has just one. // loom: `loom_no_token_is_taken_twice`
    #[inline]
    pub(super) fn withdraw(&self, purse: usize, now: impl FnOnce() -> u64) -> bool {
        let purse = self.purse(purse);
        // After a long time it may be an old one: one is what a budget is exact to.
        if purse.load(Relaxed) < 2 * TOKEN && take(purse) {
            return true;
        }
        self.expire(now());
        let parts = purse.load(Relaxed);
        if parts >= TOKEN && take(purse) {
            return true;
        }
        if self.all.0.total() + parts < TOKEN {
            return false;
        }
        if parts != 0 {
            self.all.0.add(purse.swap(0, Relaxed));
        }
        self.all.0.take(TOKEN)
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
    pub(super) fn balance(&self, now: u64) -> i64 {
        self.expire(now);
        let purses = self.purses.iter().map(|purse| purse.0.load(Relaxed));
        self.all.0.total() + purses.sum::<i64>()
    }

    #[cold]
    #[inline(never)]
    fn empty(&self, purse: &AtomicI64, parts: i64, now: u64) {
        self.expire(now);
        self.all.0.add(purse.swap(0, Relaxed) + parts);
    }

    fn expire(&self, now: u64) {
        self.all.0.expire(now, || {
            let purses = self.purses.iter();
            purses.map(|purse| purse.0.swap(0, Relaxed)).sum()
        });
    }

    fn purse(&self, purse: usize) -> &AtomicI64 {
        &self.purses[purse % PURSES].0
    }
}

fn take(purse: &AtomicI64) -> bool {
    let mut parts = purse.load(Relaxed);
    while parts >= TOKEN {
        match purse.compare_exchange_weak(parts, parts - TOKEN, Relaxed, Relaxed) {
            Ok(_) => return true,
            Err(now) => parts = now,
        }
    }
    false
}

/// One token, in parts.
pub(super) const TOKEN: i64 = 1_000_000;

/// More at once save nothing that can be measured.
const MOST_AT_ONCE: u32 = 8;

/// As many threads as send at once on all but the largest machines; more share.
#[cfg(not(all(test, tower_lb_loom)))]
const PURSES: usize = 16;
#[cfg(all(test, tower_lb_loom))]
const PURSES: usize = 2;
