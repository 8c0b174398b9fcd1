//! All interleavings of two threads in the lock-free code here. `.ci/run` shows how to run them.

use loom::{sync::Arc, thread};

use super::{
    token_throttle::TokenThrottle,
    tokens::{TOKEN, Tokens},
    window::Window,
};
use crate::interleavings::model;

fn at(now: u64) -> impl FnOnce(u64) -> Option<u64> {
    move |from| (now >= from).then_some(now)
}

#[test]
fn loom_no_token_is_taken_twice() {
    // One token in the reserve, and half a token from each of two threads. One of the threads may
    // have no purse.
    for threads in [[0, 1], [0, 2]] {
        model(move || {
            let tokens = Arc::new(Tokens::new(TOKEN, TOKEN / 2, 1000, 0));
            let [here, there] = threads;
            let other = tokens.clone();
            let thread = thread::spawn(move || {
                other.deposit(there, at(1));
                u32::from(other.withdraw(there, at(1)))
            });
            tokens.deposit(here, at(1));
            let taken = u32::from(tokens.withdraw(here, at(1)));
            let taken = taken + thread.join().unwrap();
            assert!((1..=2).contains(&taken));
            let left = tokens.balance(at(1));
            assert_eq!(i64::from(taken) * TOKEN + left, 2 * TOKEN);
        });
    }
}

#[test]
fn loom_a_slot_that_ends_loses_nothing() {
    model(|| {
        let tokens = Arc::new(Tokens::new(0, TOKEN, 1000, 0));
        let other = tokens.clone();
        // One thread finds that a slot has ended while the other one deposits and withdraws.
        let thread = thread::spawn(move || other.balance(at(150)));
        tokens.deposit(0, at(50));
        let taken = i64::from(tokens.withdraw(0, at(150)));
        thread.join().unwrap();
        assert_eq!(tokens.balance(at(150)) + taken * TOKEN, TOKEN);
        // The deposit and the withdrawal expire, whichever slot they were counted in.
        assert_eq!(tokens.balance(at(2000)), 0);
    });
}

#[test]
fn loom_a_window_is_turned_once() {
    model(|| {
        let window = Arc::new(Window::new([0], 100, 10, 0));
        window.add(5);
        let other = window.clone();
        let thread = thread::spawn(move || {
            other.expire(at(105), || [0]);
            other.add(2);
        });
        window.expire(at(103), || [0]);
        window.add(1);
        thread.join().unwrap();
        window.expire(at(105), || [0]);
        // The five have expired once. An amount that was added while the other thread turned the
        // window may be in the slot before.
        assert!((0..=3).contains(&window.total()), "{}", window.total());
    });
}

#[test]
fn loom_tokens_stay_within_bounds() {
    model(|| {
        let throttle = TokenThrottle::new(1, 1.0);
        let other = throttle.clone();
        let thread = thread::spawn(move || {
            other.failed();
            other.succeeded();
        });
        throttle.failed();
        throttle.succeeded();
        thread.join().unwrap();
        assert!((0.0..=1.0).contains(&throttle.tokens()));
        assert!(throttle.tokens() >= 1.0, "each success follows a failure");
    });
}
