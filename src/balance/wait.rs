use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, stream::FuturesUnordered};
use tokio::sync::futures::OwnedNotified;
use tower::{BoxError, Service};
use tracing::debug;

use super::{
    reserved::{Reserved, Selected, Wish},
    shared::{Shared, Snapshot},
};
use crate::{
    endpoint::Address,
    error::{AllTried, MissingKey, NotChosen, NotReady},
    member::Member,
    policy::{Candidates, Choice, Mask, PickContext, Policy},
    random::Rng,
    tried::Tried,
};

/// One caller's wait for a ready member: which members it has asked, and its places in queues.
pub(super) struct Wait<S, Req, A> {
    /// Endpoints to choose only when no other one is available.
    tried: Option<Tried<A>>,
    /// The version of the snapshot whose positions are in `passed`.
    version: u64,
    passed: Mask,
    passed_count: usize,
    /// The members that were not ready. Kept for their wakers and their places in queues.
    pending: FuturesUnordered<Readiness<S, Req>>,
    failed: Option<(String, BoxError)>,
    /// The positions of the members that failed.
    failed_at: Vec<usize>,
    /// The ids of those that are not yet reported.
    unreported: Vec<u64>,
    /// Whether members are passed over only because they are in `tried`.
    excluding: bool,
    /// Whether the policy wants only the member that it chose last.
    is_exact: bool,
    /// Created before the snapshot is read, so that no publication is missed.
    published: Pin<Box<OwnedNotified>>,
}

impl<S, Req, A> Wait<S, Req, A> {
    pub(super) fn new<P, T>(shared: &Shared<A, S, P, T>, tried: Option<Tried<A>>) -> Self {
        Self {
            tried,
            version: NO_VERSION,
            passed: Mask::new(),
            passed_count: 0,
            pending: FuturesUnordered::new(),
            failed: None,
            failed_at: Vec::new(),
            unreported: Vec::new(),
            excluding: false,
            is_exact: false,
            published: Box::pin(shared.published.clone().notified_owned()),
        }
    }

    /// Ready once a snapshot has been published since it was last ready.
    pub(super) fn poll_published<P, T>(
        &mut self,
        shared: &Shared<A, S, P, T>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        ready!(self.published.as_mut().poll(cx));
        self.published = Box::pin(shared.published.clone().notified_owned());
        Poll::Ready(())
    }

    /// Passes over a reserved member that turned out not to be ready.
    pub(super) fn pass_over<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        reserved: Reserved<S>,
        readiness: Poll<Result<(), S::Error>>,
    ) where
        A: Address,
        S: Service<Req, Error: Into<BoxError>>,
    {
        // A member that is no candidate any more has no position to pass over.
        let Some(position) = snapshot.position(reserved.wish) else {
            return;
        };
        self.follow(snapshot);
        self.is_exact = reserved.wish.is_exact();
        self.pass(position);
        match readiness {
            Poll::Ready(Err(error)) => {
                self.fail(position, &snapshot.members[position], error.into());
            }
            _ => self
                .pending
                .push(Readiness::new(reserved.wish, reserved.service)),
        }
    }

    /// Lets the failed members be asked again. The others keep their places in queues.
    pub(super) fn forgive(&mut self) {
        for position in self.failed_at.drain(..) {
            self.passed.remove(position);
            self.passed_count -= 1;
        }
        self.failed = None;
        self.is_exact &= !self.pending.is_empty();
    }

    /// Moves on to `snapshot`: forgets members that have left, and earlier failures.
    pub(super) fn follow<T>(&mut self, snapshot: &Snapshot<A, S, T>)
    where
        A: Address,
    {
        if self.version == snapshot.version {
            return;
        }
        self.version = snapshot.version;
        self.restart();
        let tried = self.tried.as_ref().map(Tried::endpoints);
        for endpoint in tried.iter().flatten() {
            let mut members = snapshot.members.iter();
            if let Some(position) = members.position(|member| member.endpoint() == endpoint) {
                self.pass(position);
                self.excluding = true;
            }
        }
        for readiness in std::mem::take(&mut self.pending) {
            // A member that is excluded now gives up its place: there may be other members to
            // choose.
            let position = snapshot.position(readiness.wish);
            if position.is_some_and(|position| self.pass(position)) {
                self.pending.push(readiness);
            }
        }
    }

    /// Polls the members that were passed over, and asks for others until one is ready.
    ///
    /// Returns `None` if no member is left to ask. Each pending one has then registered the waker.
    pub(super) fn search<P>(
        &mut self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> Option<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        loop {
            if let Some(reserved) = self.poll_pending(snapshot, cx) {
                return Some(Selected::Reserved(reserved));
            }
            let error = match self.next(snapshot, policy, rng, request) {
                choice @ (Choice::Member(position) | Choice::EvenDraining(position)) => {
                    self.pass(position);
                    let member = &snapshot.members[position];
                    let wish = Wish::new(member.id, choice);
                    self.pending
                        .push(Readiness::new(wish, member.service.clone()));
                    continue;
                }
                Choice::NeedsRequest => return Some(Selected::NeedsRequest),
                Choice::MissingKey => MissingKey.into(),
                _ if !self.pending.is_empty() => return None,
                _ if self.excluding && !self.is_strict() => {
                    // No other member can take the request: one that had it before may get it
                    // again.
                    self.restart();
                    continue;
                }
                _ => self.no_member(),
            };
            let version = snapshot.version;
            return Some(Selected::Failed { error, version });
        }
    }

    /// Returns whether the policy chooses a draining member, or may once the request is known.
    ///
    /// Asked while no other member may be picked: requests that belong to a draining member can
    /// still go there.
    pub(super) fn may_go_to_draining<P>(
        &self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
    ) -> bool
    where
        P: Policy<A, S, Req>,
    {
        if !snapshot.members.iter().any(|member| member.drains) {
            return false;
        }
        let passed = (self.passed_count > 0).then_some(&self.passed);
        let candidates = Candidates::without(&snapshot.members, passed);
        match policy.pick(
            &snapshot.table,
            candidates,
            &mut PickContext::new(request, rng),
        ) {
            Choice::EvenDraining(position) => candidates.is_draining(position),
            choice => choice == Choice::NeedsRequest && request.is_none(),
        }
    }

    /// Adds the endpoint that was found to `tried`.
    pub(super) fn note_tried<T>(&self, snapshot: &Snapshot<A, S, T>, selected: &Selected<S>) {
        if let (Some(tried), Selected::Reserved(reserved)) = (&self.tried, selected) {
            if let Some(position) = snapshot.position(reserved.wish) {
                tried.insert(snapshot.members[position].endpoint().clone());
            }
        }
    }

    /// Returns a pending member that has become ready, for example by its turn in a queue.
    fn poll_pending<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> Option<Reserved<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>>,
    {
        while let Poll::Ready(Some((wish, readiness))) = Pin::new(&mut self.pending).poll_next(cx) {
            let Some(position) = snapshot.position(wish) else {
                continue;
            };
            match readiness {
                Ok(service) => {
                    return Some(Reserved {
                        service,
                        wish: if self.is_exact { wish.exact() } else { wish },
                        version: snapshot.version,
                    });
                }
                Err(error) => {
                    self.fail(position, &snapshot.members[position], error.into());
                }
            }
        }
        None
    }

    /// Returns the position of the member to ask next, or why there is none.
    fn next<P>(
        &mut self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
    ) -> Choice
    where
        P: Policy<A, S, Req>,
    {
        if self.is_exact {
            return Choice::Nobody;
        }
        let passed = (self.passed_count > 0).then_some(&self.passed);
        let candidates = Candidates::without(&snapshot.members, passed);
        if self.passed_count >= PICKS_BEFORE_SWEEP && policy.any_will_do() {
            let len = snapshot.members.len();
            let start = rng.below(len as u32) as usize;
            return (start..len)
                .chain(0..start)
                .find(|&position| candidates.contains(position))
                .map_or(Choice::Nobody, Choice::Member);
        }
        let pick = &mut PickContext::new(request, rng);
        match policy.pick(&snapshot.table, candidates, pick) {
            Choice::Exactly(position) if candidates.contains(position) => {
                // The places in other queues are given up: those members must not answer.
                self.pending = FuturesUnordered::new();
                self.is_exact = true;
                Choice::Member(position)
            }
            // The member has been asked already, or is not a candidate. Never choose another one in
            // its place.
            Choice::Member(position) if !candidates.contains(position) => Choice::Nobody,
            Choice::EvenDraining(position)
                if !candidates.contains(position) && !candidates.is_draining(position) =>
            {
                Choice::Nobody
            }
            Choice::NeedsRequest if request.is_some() => Choice::Nobody,
            choice => choice,
        }
    }

    /// Returns the error for a request that no member can take.
    fn no_member(&mut self) -> BoxError {
        if self.excluding {
            return AllTried.into();
        }
        match self.failed.take() {
            Some((endpoint, error)) => NotReady::new(endpoint, self.failed_at.len(), error).into(),
            None => NotChosen.into(),
        }
    }

    /// Clears the list of members that were passed over.
    fn restart(&mut self) {
        self.passed = Mask::new();
        self.passed_count = 0;
        self.failed = None;
        self.failed_at.clear();
        self.excluding = false;
        self.is_exact = false;
    }

    /// Passes over a member. Returns whether it was not passed over before.
    fn pass(&mut self, position: usize) -> bool {
        let is_new = self.passed.insert(position);
        self.passed_count += usize::from(is_new);
        is_new
    }

    /// Reports the members that failed to become ready, so that the driver looks at them.
    pub(super) fn report<P, T>(&mut self, shared: &Shared<A, S, P, T>)
    where
        S: Service<Req>,
    {
        if !self.unreported.is_empty() {
            let failed = self.unreported.drain(..);
            shared.suspects.report::<Req>(failed, &shared.suspected);
        }
    }

    fn fail(&mut self, position: usize, member: &Member<A, S>, error: BoxError)
    where
        A: Address,
    {
        let endpoint = member.endpoint();
        // Without a source that makes another one, there is nothing to find out.
        if endpoint.can_be_made_again() {
            self.unreported.push(member.id);
        }
        debug!(%endpoint, %error, "endpoint failed to become ready");
        self.failed_at.push(position);
        self.failed = Some((endpoint.to_string(), error));
    }

    fn is_strict(&self) -> bool {
        self.tried.as_ref().is_some_and(Tried::is_strict)
    }
}

/// Drives one service to ready.
struct Readiness<S, Req> {
    wish: Wish,
    service: Option<S>,
    _request: PhantomData<fn(Req)>,
}

impl<S, Req> Readiness<S, Req> {
    const fn new(wish: Wish, service: S) -> Self {
        Self {
            wish,
            service: Some(service),
            _request: PhantomData,
        }
    }
}

impl<S: Service<Req>, Req> Future for Readiness<S, Req> {
    type Output = (Wish, Result<S, S::Error>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(service) = &mut this.service else {
            return Poll::Pending;
        };
        let result = ready!(service.poll_ready(cx));
        // Takes the service out, ready or failed: a failed one must not be polled again.
        this.service.take().map_or(Poll::Pending, |service| {
            Poll::Ready((this.wish, result.map(|()| service)))
        })
    }
}

// The service is moved out and never pinned.
impl<S, Req> Unpin for Readiness<S, Req> {}

impl<S, Req, A> fmt::Debug for Wait<S, Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("not_ready", &self.pending.len())
            .field("failed", &self.failed_at.len())
            .finish_non_exhaustive()
    }
}

/// A version that no snapshot has.
const NO_VERSION: u64 = u64::MAX;

/// A pick of a policy that scans costs O(n). After this many picks, members are asked from a random
/// position on, which finds the ready ones in O(n log n) altogether.
const PICKS_BEFORE_SWEEP: usize = 16;
