//! Tests the lock-free code here with every interleaving of two threads. `.ci/run` shows how to run
//! them.

use std::time::Duration;

use loom::{
    sync::{Arc, Mutex},
    thread,
};

use super::{
    ages::{Ages, AgesReading},
    gauge::Gauge,
    level::{EwmaSettings, Level},
    standing::Standing,
};
use crate::interleavings::model;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn settings() -> EwmaSettings {
    let [decay, penalty] = [10, 5].map(Duration::from_secs);
    EwmaSettings::new(decay, penalty, Duration::from_millis(30))
}

/// An answer of an endpoint that is not new.
fn succeed(level: &Level, rtt: u64, now: u64) {
    let standing = Standing::new();
    standing.succeed();
    level.succeed(rtt, now, settings(), &standing);
}

#[test]
fn loom_ages_are_exact_when_all_have_left() {
    model(|| {
        let ages = Arc::new(Ages::default());
        let request = |ages: Arc<Ages>, now| {
            let generation = ages.enter(now, || 10).unwrap();
            let AgesReading {
                requests, oldest, ..
            } = ages.read();
            assert!((1..=2).contains(&requests), "{requests} in flight");
            assert!(oldest <= now, "{oldest} is after {now}");
            ages.leave(generation);
        };
        let other = ages.clone();
        // Both start within one slack, so both want the same generation.
        let thread = thread::spawn(move || request(other, 5000));
        request(ages.clone(), 5500);
        thread.join().unwrap();
        assert_eq!(ages.read().requests, 0);
    });
}

#[test]
fn loom_a_peak_outlives_a_faster_answer() {
    model(|| {
        // The endpoint has not answered for a minute, so an ordinary answer would become the new
        // level.
        let level = Arc::new(Level::new(0));
        succeed(&level, 30 * MS, 0);
        let now = 60 * SECOND;
        let slow = level.clone();
        let thread = thread::spawn(move || succeed(&slow, 5 * SECOND, now));
        succeed(&level, 20 * MS, now);
        thread.join().unwrap();
        let reading = level.read();
        assert_eq!(reading.faded(now, settings()), 5 * SECOND);
    });
}

#[test]
fn loom_a_level_is_never_read_with_an_older_time() {
    model(|| {
        let level = Arc::new(Level::new(0));
        succeed(&level, 30 * MS, 0);
        // So short a time that the faded level is not yet 0.
        let now = 4 * SECOND;
        let reader = level.clone();
        let thread = thread::spawn(move || {
            let seen = reader.read().faded(now, settings());
            // Either the old level, faded or not, or the new one in full. Never the new one, faded.
            assert!(seen <= 30 * MS || seen == 5 * SECOND, "{seen} ns");
        });
        succeed(&level, 5 * SECOND, now);
        thread.join().unwrap();
    });
}

#[test]
fn loom_an_endpoint_that_has_answered_has_a_level() {
    model(|| {
        let gauge = Arc::new(Gauge::new(settings(), 0));
        let other = gauge.clone();
        let thread = thread::spawn(move || {
            if other.standing.read().is_usual() {
                assert_eq!(other.level.read().peak(), MS);
            }
        });
        let now = SECOND;
        gauge.level.succeed(MS, now, settings(), &gauge.standing);
        thread.join().unwrap();
    });
}

#[test]
fn loom_two_threads_send_one_trial() {
    model(|| {
        let standing = Arc::new(Standing::new());
        standing.fail(0);
        let now = 2 * SECOND;
        let other = standing.clone();
        let thread = thread::spawn(move || other.sent(now));
        standing.sent(now);
        thread.join().unwrap();
        // The second delay, not the third.
        assert!(standing.read().is_penalized(now + 2 * SECOND));
        assert!(!standing.read().is_penalized(now + 3 * SECOND));
    });
}

#[test]
fn loom_no_cancellation_is_lost() {
    model(|| {
        let level = Arc::new(Level::new(0));
        let other = level.clone();
        let thread = thread::spawn(move || other.cancel(SECOND, SECOND, settings()));
        level.cancel(SECOND, SECOND, settings());
        thread.join().unwrap();
        // Two cancellations of a second each stand for a second, to within the tick of the packed
        // value.
        let peak = level.read().peak();
        assert!(SECOND - peak < 2048, "{peak} ns");
    });
}

#[test]
fn loom_a_gauge_changes_hands_when_all_is_over() {
    model(|| {
        let gauge = Arc::new(Gauge::new(settings(), 0));
        gauge.add_service();
        let left = Arc::new(Mutex::new(false));
        let remove = |gauge: &Gauge, left: &Mutex<bool>| {
            if gauge.remove_service() {
                *left.lock().unwrap() = true;
            }
        };
        let (other, others_left) = (gauge.clone(), left.clone());
        let thread = thread::spawn(move || {
            let request = other.ages.enter(0, || 10).unwrap();
            remove(&other, &others_left);
            let now = SECOND;
            other
                .level
                .succeed(5 * SECOND, now, settings(), &other.standing);
            other.ages.leave(request);
        });
        remove(&gauge, &left);
        let is_left = std::mem::take(&mut *left.lock().unwrap());
        if is_left && gauge.ages.are_over() {
            let reading = gauge.level.read();
            assert_eq!(reading.faded(SECOND, settings()), 5 * SECOND, "not all");
        }
        let taken = is_left && gauge.take(settings(), SECOND);
        thread.join().unwrap();
        // One of the threads removed the last service. Its gauge can now be taken, unless it was
        // taken above.
        let is_left = std::mem::take(&mut *left.lock().unwrap()) || (is_left && !taken);
        assert_eq!(is_left, !taken);
        assert!(taken || gauge.take(settings(), SECOND));
        assert_eq!(gauge.level.read().peak(), 0, "of before");
    });
}
