//! Targets from Kubernetes, with feature `kubernetes`.

mod kubernetes;
mod slices;
mod watch;

pub use self::{kubernetes::Kubernetes, slices::ServicePort};
