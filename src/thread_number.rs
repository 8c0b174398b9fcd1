//! Small numbers for threads, for what each thread keeps apart.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Returns this thread's number, which no other living thread has.
///
/// The numbers of ended threads are used again, so they stay small. A thread that is ending has no
/// number: `usize::MAX`.
#[inline]
pub(crate) fn thread_number() -> usize {
    thread_local! {
        static NUMBER: Number = Number::take();
    }
    NUMBER.try_with(|number| number.0).unwrap_or(usize::MAX)
}

/// A number that is given back when its thread ends.
///
/// Two threads may have it one after the other; the lock orders what they do.
struct Number(usize);

struct Numbers {
    next: usize,
    free: Vec<usize>,
}

static NUMBERS: Mutex<Numbers> = Mutex::new(Numbers {
    next: 0,
    free: Vec::new(),
});

impl Number {
    fn take() -> Self {
        let mut numbers = Self::numbers();
        let number = numbers.free.pop().unwrap_or(numbers.next);
        numbers.next = numbers.next.max(number + 1);
        Self(number)
    }

    fn numbers() -> MutexGuard<'static, Numbers> {
        NUMBERS.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        Self::numbers().free.push(self.0);
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn threads_that_live_at_once_have_different_numbers_and_give_them_back() {
        let here = thread_number();
        assert_eq!(thread_number(), here);
        let mut largest = 0;
        for _ in 0..1000 {
            let there = std::thread::spawn(thread_number).join().unwrap();
            assert_ne!(there, here);
            largest = largest.max(there);
        }
        // Other tests have threads as well, but not this many.
        assert!(largest < 500, "{largest}");
    }
}
