use std::{sync::Arc, time::Duration};

use super::keeper::WhenEmpty;

/// What can be set for every source alike.
#[derive(Clone, Debug)]
pub(in crate::discover) struct Settings {
    /// `None`: what the source is.
    pub(in crate::discover) name: Option<Arc<str>>,
    pub(in crate::discover) when_empty: WhenEmpty,
    pub(in crate::discover) settle: Option<Duration>,
}

impl Settings {
    /// Those of a registry: it is told when a server leaves, so that an empty answer may be true.
    pub(in crate::discover) const REGISTRY: Self = Self {
        name: None,
        when_empty: WhenEmpty::KeepFor(Duration::from_secs(30)),
        settle: None,
    };

    /// Those of a list that people write: an empty one is a mistake of theirs.
    #[cfg(any(feature = "dns", feature = "file"))]
    pub(in crate::discover) const LIST: Self = Self {
        when_empty: WhenEmpty::Keep,
        ..Self::REGISTRY
    };
}

/// The setters of a type that has `settings`.
macro_rules! source_setters {
    () => {
        /// Sets the name of the source, which is in its events and errors. Default: what it is.
        pub fn named(mut self, name: impl Into<std::sync::Arc<str>>) -> Self {
            self.settings.name = Some(name.into());
            self
        }

        /// Sets what an empty answer means after one with targets.
        ///
        /// Default: the set is kept, by a source of a registry for 30 s, by DNS and files until there
        /// are targets again. A registry that restarts, or that loses its own view, often answers
        /// with nothing. To keep a set whose servers are really gone costs errors that the callers
        /// get anyway.
        pub const fn when_empty(mut self, when_empty: crate::discover::WhenEmpty) -> Self {
            self.settings.when_empty = when_empty;
            self
        }

        /// Sets how long a set is kept that would lose more than half of its targets at once.
        ///
        /// Default: such an answer is believed at once.
        pub const fn settle(mut self, settle: std::time::Duration) -> Self {
            self.settings.settle = Some(settle);
            self
        }
    };
}

pub(in crate::discover) use source_setters;
