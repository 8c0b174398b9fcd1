//! Sources that a text names.

mod open;
mod schemes;
mod text;

pub use self::open::{OpenError, open};
