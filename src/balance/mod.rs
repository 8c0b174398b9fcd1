//! Where all meet: discovery, loads and a policy become one service.
//!
//! [`BalanceLayer`] turns a stream of discovered services into a [`Balance`], an ordinary tower service whose
//! handles clone in O(1) and share everything but their random streams. A [`Driver`] task takes discovery and
//! status changes in and puts immutable snapshots out; a pick reads the newest of them without a lock.
//!
//! # What `poll_ready` means
//!
//! With a policy that needs no request, `poll_ready` chooses a member, clones its service and drives that clone
//! to ready: ready means that the request goes out now, so `LoadShed` and `ConcurrencyLimit` above a balancer
//! work. Only the chosen member is reserved on. One that is not ready is passed over for one that
//! is; if none is, every polled one may wake the caller, and so does a change of the set. With a policy that needs the request (hashing), `poll_ready`
//! is ready at once, `call` chooses, and the response future drives the member to ready.
//!
//! # What is answered when nothing is there
//!
//! | state | `poll_ready` | `call` |
//! |---|---|---|
//! | discovery has not reported yet | waits | waits |
//! | no endpoint takes requests | ready; waits with [`wait_for_endpoints`](BalanceLayer::wait_for_endpoints) | [`NoEndpoints`](crate::NoEndpoints) |
//! | a panic: all are ejected or unhealthy, or more than [`panic_threshold`](BalanceLayer::panic_threshold) allows | tries all of them (fails open) | as ever |
//! | the same, with [`fail_closed`](BalanceLayer::fail_closed) | ready | [`Unavailable`](crate::Unavailable) |
//! | every member's `poll_ready` failed | ready | [`NotReady`](crate::NotReady) |
//! | some failed, the others are not ready | waits for those; tries the failed again whenever it is polled | |
//!
//! `poll_ready` itself never fails.

mod driver;
mod future;
mod hold;
mod layer;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod reported;
mod select;
mod service;
mod shared;
mod tried;
mod warmth;

pub use self::{
    driver::Driver,
    future::ResponseFuture,
    layer::{BalanceAndDriver, BalanceLayer},
    service::Balance,
    tried::{CallExcluding, Tried},
};
