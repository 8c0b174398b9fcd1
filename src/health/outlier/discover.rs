use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower::{discover::Change, load::CompleteOnResponse};

use super::{endpoint_set::EndpointSet, service::Outlier};
use crate::{
    endpoint::{Address, Endpoint},
    outcome::ErrorsAreFailures,
    upstream::Upstream,
};

pin_project! {
    /// Discovery whose services report their outcomes, made by [`OutlierLayer`].
    pub struct OutlierDiscover<D, A: Address, C = CompleteOnResponse, K = ErrorsAreFailures> {
        #[pin]
        upstream: Upstream<D>,
        set: Arc<EndpointSet<A>>,
        completion: C,
        classify: K,
        interval: Duration,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<D, A: Address, C, K> OutlierDiscover<D, A, C, K> {
    pub(super) fn new(
        discover: D,
        set: EndpointSet<A>,
        completion: C,
        classify: K,
        interval: Duration,
    ) -> Self {
        Self {
            upstream: Upstream::new(discover),
            set: Arc::new(set),
            completion,
            classify,
            interval,
            timer: None,
        }
    }
}

impl<D, A, S, C, K> Stream for OutlierDiscover<D, A, C, K>
where
    D: TryStream<Ok = Change<Endpoint<A>, S>>,
    A: Address,
    K: Clone,
    C: Clone,
{
    type Item = Result<Change<Endpoint<A>, Outlier<S, A, C, K>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        // 1. The end of an interval. Pending: the timer has registered the waker.
        let interval = *this.interval;
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            this.set.sweep(now);
            timer.as_mut().reset(now + interval);
        }
        // 2. The change from discovery. When discovery has ended, intervals go on while endpoints
        // are left.
        let set = this.set;
        let item = this.upstream.poll_change(cx, || !set.is_empty());
        let Some(change) = ready!(item?) else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(Ok(match change {
            Change::Insert(endpoint, service) => {
                let counters = set.insert(&endpoint, Instant::now());
                let (completion, classify) = (this.completion.clone(), this.classify.clone());
                let outlier = Outlier::new(service, counters, completion, classify);
                Change::Insert(endpoint, outlier)
            }
            Change::Remove(endpoint) => {
                set.remove(&endpoint, Instant::now());
                Change::Remove(endpoint)
            }
        })))
    }
}

impl<D: fmt::Debug, A: Address, C, K> fmt::Debug for OutlierDiscover<D, A, C, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierDiscover")
            .field("discover", self.upstream.get_ref())
            .field("set", &self.set)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}
