//! Sources: tasks that ask a registry, and what they have found.
//!
//! [`poll`] and [`follow`] make a source of anything. The rules for failures, empty answers and
//! events stand in one place, and hold for all sources.

mod error;
mod found;
mod keeper;
pub(super) mod settings;
mod source;
mod state;
mod task;

pub use self::{
    error::{NoAnswer, StartError},
    found::{Found, FoundDiscover},
    keeper::WhenEmpty,
    source::{Source, follow, poll},
    state::{Failure, SourceState},
};
