use std::{error::Error, fmt};

/// Reports a setting that a hash policy does not accept.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HashSettingError {
    /// A ring size outside `1 <= min <= max <= 8388608`.
    RingSize {
        /// The smallest number of points asked for.
        min: usize,
        /// The largest number of points asked for.
        max: usize,
    },
    /// A number of points for each unit of weight that is not 1 to 65 536.
    Points(u32),
    /// A number of slots for a Maglev table that is not a prime up to 5 000 011.
    TableSize(u32),
    /// A bound, in multiples of the mean load, that is not finite or is below 1.
    Bound(f64),
}

impl fmt::Display for HashSettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RingSize { min, max } => write!(
                f,
                "a ring of at least {min} and at most {max} points: 1 <= min <= max <= 8388608 must hold"
            ),
            Self::Points(points) => {
                write!(f, "{points} points a unit of weight: must be 1 to 65536")
            }
            Self::TableSize(slots) => write!(
                f,
                "a table of {slots} slots: must be a prime number up to 5000011"
            ),
            Self::Bound(bound) => write!(
                f,
                "a bound of {bound} times the mean load: must be finite and at least 1"
            ),
        }
    }
}

impl Error for HashSettingError {}
