use std::time::Duration;

/// A load metric as a number, so that it can be divided by a weight.
///
/// Implemented for integers, floats and [`Duration`] (in seconds), and so for the metrics of this
/// crate's trackers. Implement it for the metric of a [`Load`](tower::load::Load) of your own.
///
/// A negative cost is as good as its value says; what is not a number counts as infinite.
pub trait Cost: PartialOrd {
    /// Returns the number; lower is better, and twice the number is twice the load.
    fn cost(&self) -> f64;
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
