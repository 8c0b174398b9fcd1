//! The traits through which policies read the loads that trackers measure.

use std::time::Duration;

use crate::clock::PickClock;

/// Counts the requests in flight, for bounded loads and limits.
pub trait InFlight {
    /// Returns how many requests have been sent and are not yet over.
    fn in_flight(&self) -> usize;
}

/// Counts the requests in flight at all services of a group together.
///
/// Bounded loads are a share of this number.
///
/// [`PendingRequestsLayer::with_total`](crate::PendingRequestsLayer::with_total) makes such
/// services.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not count the requests in flight at all endpoints together",
    note = "track the endpoints with `each(PendingRequestsLayer::default().with_total())`"
)]
pub trait TotalInFlight: InFlight {
    /// Returns how many requests to any service of the group are in flight. **O(1)**.
    fn total_in_flight(&self) -> usize;
}

/// A load metric as a number, so that it can be divided by a weight.
///
/// Implemented for integers, floats and [`Duration`] (in seconds), and for the metrics of this
/// crate's trackers. For the metric of your own [`Load`](tower::load::Load), implement
/// [`cost`](Self::cost), in the order of its `PartialOrd`. The other items are for metrics that
/// change as time passes.
///
/// A NaN counts as infinite.
pub trait Cost: PartialOrd {
    /// Whether the number depends on the time of the call. Default `false`.
    const TIMED: bool = false;

    /// Returns the load as a number. Lower is better, and twice the number is twice the load.
    fn cost(&self) -> f64;

    /// Returns the load of a member of this weight, for comparison with others. Default: cost /
    /// weight.
    ///
    /// The mean weight is 1. A cost that is not in proportion to the requests in flight needs
    /// another formula. An idle member's latency, for example, does not grow as its weight falls:
    /// it already gets fewer requests because policies draw by weight.
    fn cost_for(&self, weight: f64) -> f64 {
        self.cost() / weight
    }

    /// Returns the same as [`cost_for`](Self::cost_for), at the time of `clock`.
    ///
    /// A pick uses one clock for all loads that it compares, after all of them have
    /// [advanced](Self::advance_clock) it. Without that, the time may be an old one on a thread
    /// that sends no requests.
    #[inline]
    fn cost_at(&self, weight: f64, clock: &PickClock) -> f64 {
        let _ = clock;
        self.cost_for(weight)
    }

    /// Returns the highest cost that counts as equal to `least`. Default: `least` itself.
    ///
    /// Weights decide among members of equal cost. A metric that varies by chance needs a margin,
    /// because the member with the least cost would otherwise get all requests.
    #[inline]
    fn most_equal_to(least: f64) -> f64 {
        least
    }

    /// Advances `clock` to the latest moment that the load knows of. Default: does nothing.
    ///
    /// This saves reading the clock. A policy calls it on all loads that it compares, before the
    /// first [`cost_at`](Self::cost_at).
    #[inline]
    fn advance_clock(&self, clock: &PickClock) {
        let _ = clock;
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Cost for $number {
            #[inline]
            fn cost(&self) -> f64 {
                *self as f64
            }
        }
    )*};
}

numbers!(
    u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, f32, f64
);

impl Cost for Duration {
    #[inline]
    fn cost(&self) -> f64 {
        self.as_secs_f64()
    }
}

/// Replaces a cost that is not a number.
pub(crate) const fn or_infinite(cost: f64) -> f64 {
    if cost.is_nan() { f64::INFINITY } else { cost }
}

/// Forwards the metrics of the wrapped service, which is the field `service` of type `S`.
///
/// ```ignore
/// forward_metrics!([S, A: Address] Wrapper<S, A>: Load, InFlight, TotalInFlight);
/// ```
macro_rules! forward_metrics {
    ($generics:tt $wrapper:ty: $($metric:ident),+) => {
        $($crate::metric::forward_metrics!(@$metric $generics $wrapper);)+
    };
    (@Load [$($generics:tt)*] $wrapper:ty) => {
        impl<$($generics)*> tower::load::Load for $wrapper
        where
            S: tower::load::Load,
        {
            type Metric = S::Metric;

            #[inline]
            fn load(&self) -> S::Metric {
                self.service.load()
            }
        }
    };
    (@InFlight [$($generics:tt)*] $wrapper:ty) => {
        impl<$($generics)*> $crate::metric::InFlight for $wrapper
        where
            S: $crate::metric::InFlight,
        {
            #[inline]
            fn in_flight(&self) -> usize {
                self.service.in_flight()
            }
        }
    };
    (@TotalInFlight [$($generics:tt)*] $wrapper:ty) => {
        impl<$($generics)*> $crate::metric::TotalInFlight for $wrapper
        where
            S: $crate::metric::TotalInFlight,
        {
            #[inline]
            fn total_in_flight(&self) -> usize {
                self.service.total_in_flight()
            }
        }
    };
}

pub(crate) use forward_metrics;
