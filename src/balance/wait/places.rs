use std::task::{Context, Poll, Waker};

use tower::Service;

use crate::balance::reserved::Wish;

/// The places of one caller in the queues of members that are not ready.
///
/// There are few: a caller that queued everywhere would cost as much as there are members, and so
/// would each change of the set.
pub(super) struct Places<S>(Vec<Place<S>>);

struct Place<S> {
    wish: Wish,
    service: S,
}

impl<S> Places<S> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many more places the caller may take.
    pub(super) fn free(&self) -> usize {
        MOST.saturating_sub(self.0.len())
    }

    /// Returns whether the caller waits for the member with this id.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.wishes().any(|wish| wish.id() == id)
    }

    pub(super) fn wishes(&self) -> impl Iterator<Item = Wish> {
        self.0.iter().map(|place| place.wish)
    }

    /// Polls a service. If it is not ready, the caller takes a place in its queue, if one is free.
    pub(super) fn ask<Req>(
        &mut self,
        wish: Wish,
        mut service: S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S, S::Error>>
    where
        S: Service<Req>,
    {
        let is_kept = self.free() > 0;
        // A service that is dropped below has nothing to wake the caller for.
        let nobody = &mut Context::from_waker(Waker::noop());
        match service.poll_ready(if is_kept { cx } else { nobody }) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| service)),
            Poll::Pending => {
                if is_kept {
                    self.queue(wish, service);
                }
                Poll::Pending
            }
        }
    }

    /// Takes a place in the queue of a service that was polled and was not ready.
    pub(super) fn queue(&mut self, wish: Wish, service: S) {
        self.0.push(Place { wish, service });
    }

    /// Polls the services, and takes out the first one that is ready or has failed.
    ///
    /// If none is, each has registered the waker.
    pub(super) fn poll<Req>(&mut self, cx: &mut Context<'_>) -> Poll<(Wish, Result<S, S::Error>)>
    where
        S: Service<Req>,
    {
        for position in 0..self.0.len() {
            if let Poll::Ready(result) = self.0[position].service.poll_ready(cx) {
                let Place { wish, service } = self.0.remove(position);
                return Poll::Ready((wish, result.map(|()| service)));
            }
        }
        Poll::Pending
    }

    /// Gives up the places that `keeps` returns `false` for.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(Wish) -> bool) {
        self.0.retain(|place| keeps(place.wish));
    }

    /// Makes room for one more, at the cost of the last place.
    pub(super) fn make_room(&mut self) {
        self.0.truncate(MOST - 1);
    }
}

/// The most places of one caller.
const MOST: usize = 16;
