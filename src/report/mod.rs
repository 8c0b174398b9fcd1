//! What do servers report about themselves?
//!
//! One client of many learns little from its own requests. Servers that report their load with each
//! response tell it the rest:
//!
//! | layer | what servers report | what the layer makes of it |
//! |---|---|---|
//! | [`ReportedLayer`] | how many requests they have in hand | a load for [`P2c`](crate::P2c) and [`LeastLoaded`](crate::LeastLoaded), which counts while the report is young |
//! | [`ReportedWeightsLayer`] | how busy they are, and at how many requests a second | weights, for every policy that reads them |
//!
//! With the features `http` and `orca`, the module `http` reads reports from headers.

mod load;
mod load_report;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod weights;

pub use self::{
    load::{Reported, ReportedLayer, ReportedLoad},
    load_report::LoadReport,
    weights::{ReportedWeights, ReportedWeightsLayer},
};

/// The response futures of services whose reports are read.
pub mod future {
    pub use super::{load::ReportedFuture, weights::ReportedWeightsFuture};
}

/// The discovery that reads reports from the responses of its services.
pub mod discovery {
    pub use super::weights::ReportedWeightsDiscover;
}
