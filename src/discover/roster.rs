use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

use tower::discover::Change;
use tracing::{error, warn};

use crate::{
    endpoint::{Address, Endpoint, Target},
    guard::guarded,
};

/// Turns whole lists of targets into the changes between them.
pub(super) struct Roster<A> {
    /// Every listed endpoint, with the number of the list in which it was last seen.
    known: HashMap<Endpoint<A>, u64>,
    lists: u64,
    changes: VecDeque<Change<Endpoint<A>, ()>>,
    /// The endpoints that the newest list has more than once.
    repeated: HashSet<Endpoint<A>>,
}

impl<A: Address> Roster<A> {
    pub(super) fn new() -> Self {
        Self {
            known: HashMap::new(),
            lists: 0,
            changes: VecDeque::new(),
            repeated: HashSet::new(),
        }
    }

    /// Takes the newest list: sets attributes in place, and queues insertions and removals.
    ///
    /// If several targets have the same address, the first counts. **O(n)**.
    pub(super) fn update(&mut self, targets: impl IntoIterator<Item = Target<A>>) {
        self.lists += 1;
        let repeated_before = std::mem::take(&mut self.repeated);
        for target in targets {
            let known = self.known.get_key_value(&target.address);
            let endpoint = match known.map(|(endpoint, seen)| (endpoint.clone(), *seen)) {
                Some((endpoint, seen)) if seen == self.lists => {
                    // Once while it lasts: a list may be refreshed every second.
                    if self.repeated.insert(endpoint.clone())
                        && !repeated_before.contains(&endpoint)
                    {
                        warn!(%endpoint, "address listed more than once: the first counts");
                    }
                    continue;
                }
                Some((endpoint, _)) => {
                    endpoint.set_attributes(&target);
                    endpoint
                }
                None => {
                    let endpoint = Endpoint::new(target);
                    self.changes.push_back(Change::Insert(endpoint.clone(), ()));
                    endpoint
                }
            };
            self.known.insert(endpoint, self.lists);
        }
        let Self {
            known,
            lists,
            changes,
            ..
        } = self;
        known.retain(|endpoint, seen| {
            let listed = seen == lists;
            if !listed {
                changes.push_back(Change::Remove(endpoint.clone()));
            }
            listed
        });
    }

    /// Returns whether the newest list is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes the next change; `factory` makes the service of an inserted endpoint.
    ///
    /// A factory that panics leaves its endpoint out, as if it had been removed, until the endpoint
    /// is listed again.
    pub(super) fn next<S>(
        &mut self,
        factory: impl Fn(&Endpoint<A>) -> S,
    ) -> Option<Change<Endpoint<A>, S>> {
        Some(match self.changes.pop_front()? {
            Change::Insert(endpoint, ()) => match guarded(|| factory(&endpoint)) {
                Ok(service) => Change::Insert(endpoint, service),
                Err(panic) => {
                    error!(%endpoint, %panic, "the factory panicked: left out until it is listed again");
                    Change::Remove(endpoint)
                }
            },
            Change::Remove(endpoint) => Change::Remove(endpoint),
        })
    }
}

impl<A> fmt::Debug for Roster<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster")
            .field("listed", &self.known.len())
            .field("changes", &self.changes.len())
            .finish_non_exhaustive()
    }
}
