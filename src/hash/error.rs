use std::{error::Error, fmt};

/// Says that a hash policy can't be set as asked.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HashSettingError {
    /// A ring whose least size is 0 or above its largest, or whose largest is above 8 388 608.
    RingSize {
        /// The least number of points asked for.
        min: usize,
        /// The largest number of points asked for.
        max: usize,
    },
    /// So many points for each unit of weight, which is not 1 to 65 536.
    Points(u32),
    /// A Maglev table of so many slots, which is not a prime up to 5 000 011.
    TableSize(u32),
    /// A bound of so many times the mean load, which is not a number from 1 on.
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
