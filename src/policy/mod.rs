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
