//! Targets from DNS, with feature `dns`.

mod dns;
mod resolve;
mod resolver;
mod srv;

pub use self::dns::Dns;
