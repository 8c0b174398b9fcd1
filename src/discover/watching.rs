use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::sync::watch;
use tower::discover::Change;
use tracing::debug;

use super::roster::Roster;
use crate::{
    endpoint::{Address, Endpoint, Target},
    error::NoEndpoints,
};

/// Follows a `watch` channel whose values are lists of targets, or nothing yet.
pub(super) struct Watching<V, A, F> {
    roster: Roster<A>,
    factory: F,
    /// Reads a value of the channel; `None`: nothing is known yet.
    read: fn(&V) -> Option<Vec<Target<A>>>,
    has_reported: bool,
    /// Whether the first list was empty, and `NoEndpoints` has not been yielded yet.
    nothing: bool,
    /// Resolves to the receiver once it holds another value, or to `None` once the sender is gone.
    changed: Option<Changed<V>>,
}

/// What a discovery over a factory yields.
pub(super) type Item<A, S> = Result<Change<Endpoint<A>, S>, NoEndpoints>;

type Changed<V> = Pin<Box<dyn Future<Output = Option<watch::Receiver<V>>> + Send>>;

impl<V, A, F> Watching<V, A, F>
where
    V: Send + Sync + 'static,
    A: Address,
{
    pub(super) fn new(
        lists: watch::Receiver<V>,
        factory: F,
        read: fn(&V) -> Option<Vec<Target<A>>>,
    ) -> Self {
        let mut watching = Self {
            roster: Roster::new(),
            factory,
            read,
            has_reported: false,
            nothing: false,
            changed: None,
        };
        watching.look_at(lists);
        watching
    }

    fn look_at(&mut self, mut lists: watch::Receiver<V>) {
        // Copied, because senders wait while a value is borrowed.
        let targets = (self.read)(&lists.borrow_and_update());
        if let Some(targets) = targets {
            self.roster.update(targets);
            self.nothing = !self.has_reported && self.roster.is_empty();
            self.has_reported = true;
        }
        self.changed = Some(Box::pin(async move {
            lists.changed().await.ok().map(|()| lists)
        }));
    }

    /// Yields the next change. Pending: the channel has registered the waker, and so has a service
    /// that is to be made again.
    pub(super) fn poll_next<S>(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<A, S>>>
    where
        F: Fn(&Endpoint<A>) -> S,
    {
        loop {
            if std::mem::take(&mut self.nothing) {
                return Poll::Ready(Some(Err(NoEndpoints::new())));
            }
            if let Poll::Ready(change) = self.roster.poll_next(&self.factory, cx) {
                return Poll::Ready(Some(Ok(change)));
            }
            let Some(changed) = &mut self.changed else {
                // While endpoints are left, their services may have to be made again.
                return if self.roster.is_empty() {
                    Poll::Ready(None)
                } else {
                    Poll::Pending
                };
            };
            match ready!(changed.as_mut().poll(cx)) {
                Some(lists) => self.look_at(lists),
                None => {
                    debug!("the sender of targets is gone: the last list stays");
                    self.changed = None;
                    self.roster.set_last();
                }
            }
        }
    }
}

impl<V, A, F> fmt::Debug for Watching<V, A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching")
            .field("roster", &self.roster)
            .field("has_reported", &self.has_reported)
            .finish_non_exhaustive()
    }
}
