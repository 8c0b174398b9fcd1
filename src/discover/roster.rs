use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    task::{Context, Poll, ready},
};

use tower::discover::Change;
use tracing::{error, warn};

use super::again::MadeAgain;
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
    /// Whether there are no further lists.
    is_last: bool,
    again: MadeAgain<A>,
}

impl<A: Address> Roster<A> {
    pub(super) fn new() -> Self {
        Self {
            known: HashMap::new(),
            lists: 0,
            changes: VecDeque::new(),
            repeated: HashSet::new(),
            is_last: false,
            again: MadeAgain::new(),
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
                    self.again.adopt(&endpoint);
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
            again,
            ..
        } = self;
        known.retain(|endpoint, seen| {
            let listed = seen == lists;
            if !listed {
                again.forget(endpoint);
                changes.push_back(Change::Remove(endpoint.clone()));
            }
            listed
        });
    }

    /// Returns whether nobody is listed. After the last list, whether nobody of it is left.
    pub(super) fn is_empty(&self) -> bool {
        if self.is_last {
            self.changes.is_empty() && !self.again.has_any()
        } else {
            self.known.is_empty()
        }
    }

    /// Frees what only a further list would need.
    pub(super) fn set_last(&mut self) {
        if !self.known.is_empty() {
            self.is_last = true;
            self.known = HashMap::new();
        }
    }

    /// Takes the next change; `factory` makes the service of an inserted endpoint.
    ///
    /// A factory that panics leaves its endpoint out, as if it had been removed, until the endpoint
    /// is listed again. Pending: a service that is to be made again has registered the waker, if
    /// there is one.
    pub(super) fn poll_next<S>(
        &mut self,
        factory: impl Fn(&Endpoint<A>) -> S,
        cx: &mut Context<'_>,
    ) -> Poll<Change<Endpoint<A>, S>> {
        let Some(change) = self.changes.pop_front() else {
            self.changes = VecDeque::new();
            let endpoint = ready!(
                self.again
                    .poll_next(|it| self.is_last || self.known.contains_key(it), cx)
            );
            return self.make_again(endpoint, factory, cx);
        };
        Poll::Ready(match change {
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

    /// Replaces a service that has failed for good.
    fn make_again<S>(
        &mut self,
        endpoint: Endpoint<A>,
        factory: impl Fn(&Endpoint<A>) -> S,
        cx: &mut Context<'_>,
    ) -> Poll<Change<Endpoint<A>, S>> {
        match guarded(|| factory(&endpoint)) {
            Ok(service) => Poll::Ready(Change::Insert(endpoint, service)),
            Err(panic) => {
                error!(%endpoint, %panic, "the factory panicked: it is called again later");
                endpoint.ask_for_another();
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl<A> fmt::Debug for Roster<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster")
            .field("known", &self.known.len())
            .field("changes", &self.changes.len())
            .finish_non_exhaustive()
    }
}
