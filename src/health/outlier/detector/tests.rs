use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

fn tallies(rates: &[u64], requests: u64) -> Vec<Tally> {
    let tally = |&percent: &u64| Tally {
        successes: requests * percent / 100,
        failures: requests - requests * percent / 100,
        ..Tally::default()
    };
    rates.iter().map(tally).collect()
}

fn endpoints(verdicts: &[Verdict]) -> Vec<usize> {
    verdicts.iter().map(|verdict| verdict.endpoint).collect()
}

#[test]
fn the_rate_that_stands_out_is_that_of_the_published_example() {
    let verdicts = SuccessRate::default().judge(&tallies(&[50, 100, 100, 100, 100], 100));
    assert_eq!(endpoints(&verdicts), [0]);
    let Reason::SuccessRate { rate, threshold } = verdicts[0].reason else {
        panic!("{verdicts:?}");
    };
    // Mean 90, deviation 20.
    assert!(
        (rate - 0.5).abs() < 1e-12 && (threshold - 0.52).abs() < 1e-12,
        "{threshold}"
    );
}

/// With `k` dead endpoints of `n` and all others perfect, the success rate finds the dead only from
/// n = 5, 10, 14, 19 on.
#[test]
fn so_many_dead_are_seen_among_so_many() {
    for (dead, from) in [(1, 5), (2, 10), (3, 14), (4, 19)] {
        for n in 5..25 {
            let mut rates = vec![100; n];
            rates[..dead].fill(0);
            let seen = SuccessRate::default().judge(&tallies(&rates, 100)).len();
            assert_eq!(seen, if n >= from { dead } else { 0 }, "{dead} of {n}");
            let seen = FailureRate::default().judge(&tallies(&rates, 50)).len();
            assert_eq!(seen, dead, "by failure rate, {dead} of {n}");
        }
    }
}

#[test]
fn few_requests_and_few_endpoints_are_not_judged() {
    assert!(
        SuccessRate::default()
            .judge(&tallies(&[0, 100, 100, 100, 100], 99))
            .is_empty()
    );
    assert!(
        SuccessRate::default()
            .judge(&tallies(&[0, 100, 100, 100], 100))
            .is_empty()
    );
    assert!(
        FailureRate::default()
            .judge(&tallies(&[0; 5], 49))
            .is_empty()
    );
    assert!(
        FailureRate::default()
            .judge(&tallies(&[0; 4], 50))
            .is_empty()
    );
    assert!(SuccessRate::default().judge(&[]).is_empty());
    let none = SuccessRate::default().min_endpoints(0).min_requests(0);
    assert!(none.judge(&[Tally::default(); 3]).is_empty());
}

#[test]
fn a_failure_rate_at_the_threshold_is_too_large() {
    let verdicts = FailureRate::default().judge(&tallies(&[15, 16, 0, 100, 100], 100));
    assert_eq!(endpoints(&verdicts), [2, 0], "the worst first");
}

#[test]
fn a_mean_beyond_so_many_medians_is_slow() {
    let timed = |millis: u64| Tally {
        successes: 50,
        timed: 10,
        time: Duration::from_millis(millis * 10),
        ..Tally::default()
    };
    let judge = |means: &[u64]| {
        let tallies: Vec<_> = means.iter().map(|&mean| timed(mean)).collect();
        endpoints(&SlowLatency::default().judge(&tallies))
    };
    assert_eq!(judge(&[10, 10, 10, 30, 31]), [4]);
    assert_eq!(judge(&[10, 10, 50, 40, 10]), [2, 3]);
    // Of an even number, the lower median counts: the slow half does not pass for normal.
    assert_eq!(judge(&[10, 10, 10, 90, 90, 90]).len(), 3);
    assert!(judge(&[10, 10, 10, 90]).is_empty());
}

#[test]
fn healthy_sets_are_left_alone() {
    let seed = 1;
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for rate in [0.99, 0.999] {
        let (mut ejected, mut by_the_stock_rule) = (0, 0);
        let sweeps = 2_000;
        for _ in 0..sweeps {
            let tallies: Vec<_> = (0..50)
                .map(|_| {
                    let successes = (0..100).filter(|_| rng.random_bool(rate)).count() as u64;
                    Tally {
                        successes,
                        failures: 100 - successes,
                        ..Tally::default()
                    }
                })
                .collect();
            ejected += SuccessRate::default().judge(&tallies).len();
            let stock = SuccessRate::default().floor(0.0);
            by_the_stock_rule += stock.judge(&tallies).len();
        }
        let share = |n: usize| n as f64 / (50 * sweeps) as f64;
        println!(
            "success {rate}: ejected {:.5} of endpoints and sweeps, {:.3} by the stock rule",
            share(ejected),
            share(by_the_stock_rule)
        );
        assert!(share(ejected) <= 0.001);
        assert!(share(by_the_stock_rule) > 0.04);
    }
}
