use std::time::Duration;

/// The pauses before further tries, drawn from a range that doubles (full jitter).
///
/// The pause before retry *k* = 1, 2, ... is random, from zero to (2^k - 1) x `base`, and at most
/// `max`. This keeps the clients of a failed server from all coming back at once.
///
/// Source: Envoy's retry back-off; Brooker, "Exponential Backoff And Jitter", 2015.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pub(super) base: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    /// Returns the pause before retry number `retry` (from 1). `random` is 64 random bits.
    pub(super) fn pause(self, retry: u32, random: u64) -> Duration {
        // 2^k - 1, and `u32::MAX` from k = 32 on.
        let factor = 1_u32.checked_shl(retry).map_or(u32::MAX, |power| power - 1);
        let longest = self.base.saturating_mul(factor).min(self.max);
        let nanos = longest.as_nanos().min(u128::from(u64::MAX));
        Duration::from_nanos(((nanos * u128::from(random)) >> 64) as u64)
    }
}

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_range_doubles_up_to_its_end() {
        let ms = Duration::from_millis;
        let backoff = Backoff {
            base: ms(25),
            max: ms(250),
        };
        for (retry, longest) in [
            (1, 25),
            (2, 75),
            (3, 175),
            (4, 250),
            (31, 250),
            (u32::MAX, 250),
        ] {
            assert_eq!(backoff.pause(retry, 0), Duration::ZERO);
            let pause = backoff.pause(retry, u64::MAX);
            assert!(pause < ms(longest) && pause > ms(longest) - Duration::from_nanos(2));
            let half = backoff.pause(retry, 1 << 63);
            assert_eq!(half, ms(longest) / 2);
        }
        let none = Backoff {
            base: Duration::ZERO,
            ..backoff
        };
        assert_eq!(none.pause(9, u64::MAX), Duration::ZERO);
        let huge = Backoff {
            base: Duration::MAX,
            max: Duration::MAX,
        };
        assert!(huge.pause(9, u64::MAX) > ms(1000));
    }
}
