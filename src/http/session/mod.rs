//! Sessions that stay at one endpoint, by a cookie that the balancer sets.

mod cookie;
mod layer;
mod service;
mod sticky;

pub use self::{
    cookie::SameSite,
    layer::SessionLayer,
    service::{Session, SessionFuture},
    sticky::{BoundedSticky, Sticky, StickyTable},
};
