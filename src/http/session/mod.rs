//! Sessions that stay at one endpoint, by a cookie that the balancer sets.

mod cookie;
mod layer;
mod service;
mod sticky;

pub use self::{
    layer::SessionLayer,
    service::{Session, SessionFuture},
    sticky::{Sticky, StickyTable},
};
