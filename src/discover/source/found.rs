use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tower::{Layer, discover::Change};

use super::{error::NoAnswer, keeper::List, state::SourceState};
use crate::{
    discover::watching::Watching,
    endpoint::{Address, Endpoint, Target},
    error::NoEndpoints,
};

/// What a source has found so far: a discovery layer, and a window on the source.
///
/// Clones share one source. Its task ends when the last of them is gone, and the last discovery and
/// receiver made of them.
///
/// As a layer it stands where [`WatchLayer`](crate::WatchLayer) does, over a factory. Until the
/// source has answered, a balancer waits: a set that is not known yet is not empty. When the source
/// ends, the last set stays.
pub struct Found<A = std::net::SocketAddr> {
    pub(super) name: Arc<str>,
    pub(super) lists: watch::Receiver<Option<List<A>>>,
    pub(super) state: Arc<Mutex<SourceState>>,
}

/// Discovers what a source finds; made by [`Found`].
#[derive(Debug)]
pub struct FoundDiscover<A, F>(Watching<Option<List<A>>, A, F>);

impl<A: Clone> Found<A> {
    /// Waits for the first answer, for example at the start of a program.
    ///
    /// # Errors
    ///
    /// If the source does not answer within `timeout`, or has ended. The error says how it failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn first(&self, timeout: Duration) -> Result<Arc<[Target<A>]>, NoAnswer> {
        let mut lists = self.lists.clone();
        let answered = lists.wait_for(Option::is_some);
        let answer = match Instant::now().checked_add(timeout) {
            Some(at) => timeout_at(at, answered).await.ok(),
            None => Some(answered.await),
        };
        let waited = match answer {
            Some(Ok(list)) => match &*list {
                Some(list) => return Ok(list.clone()),
                None => None,
            },
            Some(Err(_)) => None,
            None => Some(timeout),
        };
        let failure = self.state().last_failure.map(|failure| failure.error);
        Err(NoAnswer::new(&self.name, waited, failure))
    }

    /// Returns the targets that are served now; none before the first answer.
    #[must_use]
    pub fn targets(&self) -> Vec<Target<A>> {
        let list = self.lists.borrow();
        list.as_ref().map_or_else(Vec::new, |list| list.to_vec())
    }
}

impl<A> Found<A> {
    /// Returns a receiver of the sets as they change; `None` before the first answer.
    ///
    /// The source lives on while the receiver does.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<[Target<A>]>>> {
        self.lists.clone()
    }

    /// Returns how the source is.
    #[must_use]
    pub fn state(&self) -> SourceState {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clone()
    }

    /// Returns the name of the source, as it is in events.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<A, F> Layer<F> for Found<A>
where
    A: Address + Clone,
{
    type Service = FoundDiscover<A, F>;

    fn layer(&self, factory: F) -> Self::Service {
        let read = |list: &Option<List<A>>| list.as_ref().map(|list| list.to_vec());
        FoundDiscover(Watching::new(self.lists.clone(), factory, read))
    }
}

impl<A, F, S> Stream for FoundDiscover<A, F>
where
    A: Address + Clone,
    F: Fn(&Endpoint<A>) -> S,
{
    type Item = Result<Change<Endpoint<A>, S>, NoEndpoints>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll_next(cx)
    }
}

// Neither targets nor factory are pinned: both are only used by reference.
impl<A, F> Unpin for FoundDiscover<A, F> {}

impl<A> Clone for Found<A> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            lists: self.lists.clone(),
            state: self.state.clone(),
        }
    }
}

impl<A> fmt::Debug for Found<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
