//! The balancer: joins discovery, loads and a policy into one service.
//!
//! [`BalanceLayer`] turns a stream of discovered services into a [`Balance`], an ordinary tower
//! service. Its handles clone in O(1) and share everything but their random streams and
//! reservations. A [`Driver`] task takes in discovery and status changes, and publishes immutable
//! snapshots. A pick reads the newest snapshot without a lock.
//!
//! # What `poll_ready` means
//!
//! With a policy that needs no request, `poll_ready` chooses a member, clones its service and
//! drives that clone to ready. Ready means that the request goes out at once, so `LoadShed` and
//! `ConcurrencyLimit` work above a balancer. Capacity is reserved only on the chosen member. If
//! that member is not ready, another one that is ready takes its place.
//!
//! If none is ready, the caller has looked once at all members. It stays in the queues of up to
//! sixteen of them, which are the first that the policy chooses. Any of these may wake it. After a
//! new snapshot it looks at the members that have joined or are available again, and not at the
//! others. So a waiting caller costs the same in a set of any size, unless each pick of the policy
//! looks at all members. A member outside its queues
//! that becomes ready takes the request of the next caller.
//!
//! With a policy that needs the request (hashing), `poll_ready` is ready at once while there is
//! something to choose from. `call` then chooses the member and sends the request if the member is
//! ready. If it is not, the response future waits as above.
//!
//! A member that leaves the set while a request waits for it, or has it reserved, is let go of: the
//! policy is asked for another one, and the caller sees no error.
//!
//! # What callers get when no endpoint can be called
//!
//! | state | `poll_ready` | `call` |
//! |---|---|---|
//! | discovery has not reported yet | waits | waits |
//! | the set is empty, or all of it is draining | ready; waits with [`wait_for_endpoints`](BalanceLayer::wait_for_endpoints) | [`NoEndpoints`](crate::NoEndpoints); waits as well |
//! | a panic: all are ejected or unhealthy, or more than [`panic_threshold`](BalanceLayer::panic_threshold) allows | chooses among all that are not draining (fails open) | goes to the chosen one |
//! | the same, with [`fail_closed`](BalanceLayer::fail_closed) | ready | [`Unavailable`](crate::Unavailable) |
//! | every member's `poll_ready` failed | ready | [`NotReady`](crate::NotReady) |
//! | some failed, the others are not ready | waits for the others; tries up to sixteen of the failed ones again whenever it is polled | |
//! | the first health checks are waited for, and nobody else is available | waits | waits |
//!
//! `poll_ready` itself never fails. A wait has no end of its own: put a
//! [`DeadlineLayer`](crate::DeadlineLayer) above the balancer. tower's timeout starts in `call`, so
//! it does not cover the wait in `poll_ready`.
//!
//! # Where the driver runs
//!
//! The driver is a task of the tokio runtime in which the balancer is built. A current-thread
//! runtime runs its tasks only within `block_on`: between two calls of it nothing is taken in, no
//! ejection ends and no check runs, and the next request is sent by what was known before. Keep
//! such a runtime on a thread of its own, or take [`Balance::pair`] and poll the driver elsewhere.

mod arrivals;
mod driver;
mod feed;
mod future;
mod layer;
#[cfg(all(test, tower_lb_loom))]
mod loom_tests;
mod members;
mod publish;
mod reported_weights;
mod reserved;
mod selection;
mod service;
mod shared;
mod slow_start;
mod suspects;
mod wait;
mod warm_up;
mod watcher;

pub use self::{
    driver::Driver,
    future::ResponseFuture,
    layer::{BalanceAndDriver, BalanceLayer},
    service::Balance,
    slow_start::SlowStart,
    watcher::{MemberView, Watcher},
};
