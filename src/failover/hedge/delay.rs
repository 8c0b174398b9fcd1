use std::time::Duration;

#[cfg(feature = "hdrhistogram")]
pub(super) use self::measured::Measured;

/// How long to wait for the first try before it is hedged.
#[derive(Clone, Debug)]
pub(super) enum Delay {
    Fixed(Duration),
    #[cfg(feature = "hdrhistogram")]
    Measured(std::sync::Arc<Measured>),
}

/// When a first try began; known only if the delay is measured.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "hdrhistogram"), allow(dead_code))] // a fixed delay does not ask
pub(super) struct Began(Option<u64>);

impl Delay {
    #[cfg(feature = "hdrhistogram")]
    pub(super) fn measured(share: f64) -> Self {
        Self::Measured(std::sync::Arc::new(Measured::new(share)))
    }

    /// Returns the delay, or `None` while too few requests are measured.
    pub(super) fn get(&self) -> Option<Duration> {
        match self {
            Self::Fixed(delay) => Some(*delay),
            #[cfg(feature = "hdrhistogram")]
            Self::Measured(measured) => measured.delay(),
        }
    }

    /// Returns the share of requests that take longer; `None` for a fixed delay.
    pub(super) fn wanted_share(&self) -> Option<f64> {
        match self {
            Self::Fixed(_) => None,
            #[cfg(feature = "hdrhistogram")]
            Self::Measured(measured) => Some(1.0 - measured.share()),
        }
    }

    pub(super) fn begin(&self) -> Began {
        Began(match self {
            Self::Fixed(_) => None,
            #[cfg(feature = "hdrhistogram")]
            Self::Measured(_) => Some(crate::clock::now()),
        })
    }

    /// Records how long a first try took: until its answer, or until a faster hedge's.
    ///
    /// The hedge's time is less than the first try would have taken. Without it, the quantile would
    /// fall with every hedge.
    pub(super) fn end(&self, began: Began) {
        match (self, began) {
            #[cfg(feature = "hdrhistogram")]
            (Self::Measured(measured), Began(Some(began))) => {
                let now = crate::clock::now();
                measured.record(now.saturating_sub(began), now);
            }
            _ => {}
        }
    }
}

#[cfg(feature = "hdrhistogram")]
mod measured {
    use std::{
        fmt,
        sync::{
            Mutex, PoisonError,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::Duration,
    };

    use hdrhistogram::Histogram;

    /// A quantile of the latencies of the last 30 to 60 s.
    pub(in super::super) struct Measured {
        share: f64,
        /// The quantile in nanoseconds, or [`UNKNOWN`].
        delay_nanos: AtomicU64,
        latencies: Mutex<Latencies>,
    }

    struct Latencies {
        current: Histogram<u64>,
        previous: Histogram<u64>,
        /// When `current` began.
        since: u64,
        unread: u32,
    }

    impl Measured {
        pub(in super::super) fn new(share: f64) -> Self {
            // Two significant digits: accurate to 1 %.
            let histogram = || {
                Histogram::new_with_bounds(1, LONGEST_MICROS, 2)
                    .expect("bounds and digits are such that histograms have")
            };
            Self {
                share,
                delay_nanos: AtomicU64::new(UNKNOWN),
                latencies: Mutex::new(Latencies {
                    current: histogram(),
                    previous: histogram(),
                    since: crate::clock::now(),
                    unread: 0,
                }),
            }
        }

        pub(super) const fn share(&self) -> f64 {
            self.share
        }

        pub(super) fn delay(&self) -> Option<Duration> {
            let nanos = self.delay_nanos.load(Relaxed);
            (nanos != UNKNOWN).then(|| Duration::from_nanos(nanos))
        }

        pub(super) fn record(&self, nanos: u64, now: u64) {
            let mut latencies = self
                .latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let age = now.saturating_sub(latencies.since);
            if age >= ROTATION_NANOS {
                latencies.rotate(now, age);
            }
            // In microseconds, rounded up, so that a delay is never below the latency it stands
            // for.
            latencies.current.saturating_record(nanos.div_ceil(1000));
            latencies.unread += 1;
            if latencies.unread < READ_EVERY {
                return;
            }
            latencies.unread = 0;
            let measured = latencies.current.len() + latencies.previous.len();
            let nanos = match measured < LEAST_MEASURED {
                true => UNKNOWN,
                false => latencies.quantile(self.share) * 1000,
            };
            // Relaxed: one number that publishes nothing.
            self.delay_nanos.store(nanos, Relaxed);
        }
    }

    impl Latencies {
        fn rotate(&mut self, now: u64, age: u64) {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.reset();
            if age >= 2 * ROTATION_NANOS {
                self.previous.reset();
            }
            self.since = now;
        }

        /// Returns the latency that this share of both histograms is within, in microseconds.
        fn quantile(&self, share: f64) -> u64 {
            let mut both = self.previous.clone();
            // Cannot fail: both histograms have the same bounds.
            let _ = both.add(&self.current);
            both.value_at_quantile(share)
        }
    }

    impl fmt::Debug for Measured {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Measured")
                .field("share", &self.share)
                .field("delay", &self.delay())
                .finish_non_exhaustive()
        }
    }

    /// No request takes this many nanoseconds.
    const UNKNOWN: u64 = u64::MAX;
    const LONGEST_MICROS: u64 = 3_600_000_000;
    const ROTATION_NANOS: u64 = 30_000_000_000;
    /// A reading costs as much as some hundred records.
    const READ_EVERY: u32 = 64;
    /// Fewer are too few for a 0.99 quantile.
    const LEAST_MEASURED: u64 = 100;
}
