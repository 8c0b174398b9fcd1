//! Sources: tasks that ask a registry, and what they have found.
//!
//! [`poll`] and [`follow`] make a source of anything. The rules for failures, empty answers and
//! events stand in one place, and hold for all sources.

mod error;
mod found;
mod keeper;
mod open;
mod settings;
mod source;
mod state;
mod task;

pub(super) use self::settings::{Settings, source_setters};
pub use self::{
    error::{NoAnswer, StartError},
    found::{Found, FoundDiscover},
    keeper::WhenEmpty,
    open::{OpenError, open},
    source::{Source, follow, poll},
    state::{Failure, SourceState},
};
