//! Targets from AWS Cloud Map, with feature `cloud-map`.

mod ask;
mod cloud_map;
mod instances;

pub use self::cloud_map::{CloudMap, HealthFilter};
