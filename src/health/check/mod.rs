//! Health checks: every endpoint is checked at an interval.

mod discover;
mod layer;
mod run;
mod schedule;
mod settings;
#[cfg(feature = "net")]
mod tcp;
mod traffic;

#[cfg(feature = "net")]
pub use self::tcp::tcp_connect;
pub use self::{
    discover::HealthCheckDiscover,
    layer::HealthCheckLayer,
    settings::UntilFirstCheck,
    traffic::{IdleInterval, Traffic, Watched},
};
