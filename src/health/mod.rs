//! May it be used now?

mod check;
mod detectors;
mod ejection;
mod fleet;
mod heartbeats;
mod host;
mod outlier;
mod slow_start;
#[cfg(feature = "net")]
mod tcp;
mod traffic;

#[cfg(feature = "net")]
#[cfg_attr(docsrs, doc(cfg(feature = "net")))]
pub use self::tcp::tcp_connect;
pub use self::{
    check::{HealthCheckDiscover, HealthCheckLayer, UntilFirstCheck},
    detectors::{FailurePercentage, Reason, SlowLatency, SuccessRate},
    heartbeats::{HeartbeatDiscover, Heartbeats},
    outlier::{Outlier, OutlierDiscover, OutlierFuture, OutlierLayer},
    slow_start::SlowStart,
    traffic::{IdleInterval, Traffic, Watched},
};
