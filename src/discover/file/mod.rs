//! Targets from a file, with feature `file`.

mod file;
mod format;

pub use self::file::file;
