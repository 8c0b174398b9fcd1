//! Which member takes this request?
//!
//! A [`Policy`] answers for one request at a time, from the members of one snapshot. It keeps facts
//! about all members (weights, order) in its [`Table`](Policy::Table), which is built off the
//! request path whenever the set changes. Facts about one request are in the [`PickContext`].
//!
//! # Which one when
//!
//! | policy | looks at | cost of a pick | take it |
//! |---|---|---|---|
//! | [`P2c`] | two members' loads | O(1) | for large sets, and wherever many clients share the servers |
//! | [`LeastLoaded`] | every member's load | O(n) | for up to some hundred members that one client has to itself |
//! | [`RoundRobin`] | nothing | O(1) | for equal servers and equal requests, where loads tell nothing |
//! | [`WeightedRoundRobin`] | weights | O(1) | for servers of known, different sizes |
//! | [`Random`] | weights | O(1) | where many independent clients must not march in step |
//!
//! To send equal keys to the same endpoint, use a [hash policy](crate::hash).
//!
//! An example: one client, ten servers, exponential service times, load .9. The mean time in the
//! system is 10.2 service times with random picks, 5.6 with round robin, 3.0 with p2c and 1.9 with
//! least loaded. When a hundred clients share a hundred servers and each client counts only its own
//! requests in flight, p2c's 2.7 becomes 7.3, because one client's counts say little about the
//! load. Then weights that the servers report, or fewer and larger clients, help more than any
//! policy.
//!
//! # What to try first
//!
//! A client that has its servers to itself: [`LeastLoaded`] over [`PeakEwma`](crate::PeakEwma). It
//! waits least where nothing is wrong, and least where one server is slow. p50 / p99 / p99.9 in
//! units of the mean service time, which is exponential:
//!
//! | | `P2c`, `PendingRequests` | `P2c`, `PeakEwma` | `LeastLoaded`, `PendingRequests` | `LeastLoaded`, `PeakEwma` |
//! |---|---|---|---|---|
//! | 5 servers, load .5 | .93 / 5.8 / 8.4 | 1.00 / 6.1 / 9.2 | .77 / 5.0 / 7.7 | .87 / 5.8 / 8.7 |
//! | the same, one server ten times slower | 1.25 / 39 / 82 | 1.33 / 18 / 53 | .93 / 22 / 53 | 1.03 / 15 / 50 |
//! | 100 servers, load .7 | 1.2 / 6.6 / 9.2 | 1.3 / 6.9 / 9.6 | .7 / 4.6 / 6.8 | .8 / 5.0 / 7.6 |
//! | the same, shared by 10 clients | 1.8 / 9.6 / 13 | 1.8 / 9.7 / 14 | 1.8 / 9.2 / 13 | 1.8 / 9.5 / 13 |
//! | the same, shared by 100 clients | 2.2 / 13 / 19 | 2.2 / 14 / 19 | 2.2 / 13 / 19 | 2.2 / 13 / 20 |
//!
//! Where many clients share the servers there is no difference, and [`P2c`] costs less.
//!
//! A tracker alone does not see failures, except for `PeakEwma`. A server that fails at once has
//! nothing in flight and looks idle: of ten servers one that fails draws 15 % of the requests under
//! `P2c` over `PendingRequests` and 19 % under `LeastLoaded`, where round robin sends it 10 %. Put
//! [`OutlierLayer`](crate::OutlierLayer) above the tracker. `PeakEwma` sends such a server a
//! request every 5 s.
//!
//! The figures are from
//! `cargo test --release -p tower-lb-simulations --test first_stack -- --nocapture`.
//!
//! # Your own policy
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_lb::{BalanceLayer, Candidates, Choice, Endpoint, PickContext, Policy, fixed};
//!
//! /// Always the first one that may be picked: active and standby.
//! #[derive(Clone, Debug)]
//! struct First;
//!
//! impl<A, S, Req> Policy<A, S, Req> for First {
//!     type Table = ();
//!
//!     fn table(&self, _: Candidates<'_, A, S>, _: Option<&()>) {}
//!
//!     fn pick(&self, (): &(), from: Candidates<'_, A, S>, _: &mut PickContext<'_, Req>) -> Choice {
//!         from.iter().next().map_or(Choice::Nobody, |(position, _)| Choice::Member(position))
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
//! let client = ServiceBuilder::new()
//!     .layer(BalanceLayer::new(First))
//!     .layer(fixed(["active", "standby"]))
//!     .service(|endpoint: &Endpoint<&'static str>| {
//!         let name = *endpoint.address();
//!         service_fn(move |()| async move { Ok::<_, std::io::Error>(name) })
//!     });
//! assert_eq!(client.oneshot(()).await?, "active");
//! # Ok::<_, tower::BoxError>(()) })?;
//! # Ok::<_, tower::BoxError>(())
//! ```
//!
//! [`Policy`] shows a policy that narrows the members and lets another policy pick among them.

mod candidates;
mod context;
mod least_loaded;
mod p2c;
mod policy;
mod random;
mod rebuild;
mod round_robin;
mod sampler;
mod stride;
#[cfg(all(test, not(tower_lb_loom)))]
mod tests;
mod weighted_round_robin;

pub use self::{
    candidates::{Candidates, Mask},
    context::PickContext,
    least_loaded::LeastLoaded,
    p2c::P2c,
    policy::{Choice, Policy},
    random::Random,
    rebuild::Rebuild,
    round_robin::RoundRobin,
    weighted_round_robin::WeightedRoundRobin,
};

/// The tables that policies build for each snapshot.
pub mod table {
    pub use super::{
        least_loaded::LeastLoadedTable, p2c::P2cTable, random::RandomTable,
        round_robin::RoundRobinTable, weighted_round_robin::WeightedRoundRobinTable,
    };
}
