//! What a caller does that no member is ready for: it looks once at all, then waits for a few.

mod look;
mod places;
mod wait;

pub(super) use self::{look::Look, wait::Wait};
