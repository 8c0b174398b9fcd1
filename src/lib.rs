//! Client-side load balancing for the tower ecosystem.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod balance;
pub mod discover;
pub mod endpoint;
pub mod error;
pub mod load;
pub mod metric;
pub mod policy;

pub use self::{
    balance::{Balance, BalanceLayer, Driver},
    discover::{WatchLayer, each, fixed, from_discover},
    endpoint::{Address, Endpoint, IntoTarget, Status, Target},
    error::{NoEndpoints, NotChosen, NotReady, Unavailable},
    load::{
        Classify, CompleteOnResponse, Constant, ConstantLayer, ErrorsAreFailures, Load, Outcome,
        PeakEwma, PeakEwmaLayer, PendingRequests, PendingRequestsLayer, TrackCompletion,
    },
    metric::{Cost, InFlight, PickClock},
    policy::{
        Candidates, Choice, LeastLoaded, Member, P2c, PickContext, Policy, Random, RoundRobin,
        WeightedRoundRobin,
    },
};
