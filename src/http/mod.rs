//! What makes the balancer understand HTTP and gRPC (feature `http`).
//!
//! | question | names |
//! |---|---|
//! | what may be tried again? | [`HttpRetry`], [`UnsentBody`] for bodies that cannot be cloned, [`retry_after`] |
//! | which layers may stand between retries and the balancer? | any, between [`TagTriedLayer`] and [`ExcludeTriedLayer`] |

mod retry;
mod retry_after;
mod tried;
mod unsent;

pub use self::{
    retry::HttpRetry,
    retry_after::retry_after,
    tried::{ExcludeTried, ExcludeTriedLayer, TagFuture, TagTried, TagTriedLayer},
    unsent::{BodyMoved, UnsentBody},
};
