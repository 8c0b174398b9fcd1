//! Limits the retries of all requests together.
//!
//! Three attempts at each of three layers make 27. A service at its limit that gets three times the
//! requests does not recover. So retries and hedges are paid from a [`Budget`], shared by all
//! layers that hold a clone of it. Or they are allowed by a [`TokenThrottle`], which needs no
//! clock.

mod allowance;
mod budget;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod token_throttle;
mod tokens;
mod window;

pub(crate) use self::window::Window;
pub use self::{
    allowance::Allowance,
    budget::{Budget, BudgetBuilder},
    token_throttle::TokenThrottle,
};
