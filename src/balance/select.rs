use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{Stream, stream::FuturesUnordered};
use tokio::sync::futures::OwnedNotified;
use tower::{BoxError, Service};
use tracing::debug;

use super::{
    shared::{Shared, Snapshot, Standing, WhenEmpty},
    tried::Tried,
};
use crate::{
    endpoint::{Address, Endpoint},
    error::{AllTried, MissingKey, NotChosen, NotReady},
    policy::{Candidates, Choice, Passed, PickContext, Policy, Rng},
};

/// The search for a ready member: what `poll_ready` and the response future have in common.
///
/// Dropped at any time, it gives back all that it has reserved.
pub(super) struct Selection<S, Req, A> {
    /// Set once the first choice was not ready at once, or where endpoints are to be left out.
    wait: Option<Box<Wait<S, Req, A>>>,
}

/// What a search ends with.
pub(super) enum Selected<S> {
    Reserved(Reserved<S>),
    NeedsRequest,
    /// The call is to answer this, unless a newer snapshot than `version` comes before it.
    Failed {
        error: BoxError,
        version: u64,
    },
}

/// A clone of a member's service that is ready for one request.
pub(super) struct Reserved<S> {
    pub(super) service: S,
    pub(super) id: u64,
    version: u64,
}

struct Wait<S, Req, A> {
    /// Who is chosen only when no other member is available.
    tried: Option<Tried<A>>,
    /// Of the snapshot that `passed` has the positions of.
    version: u64,
    passed: Passed,
    passed_count: usize,
    /// The members that were not ready. Kept, for their wakers and their places in queues.
    pending: FuturesUnordered<Readiness<S, Req>>,
    failed: Option<(String, BoxError)>,
    failed_count: usize,
    /// Where they are.
    failed_at: Vec<usize>,
    /// Whether members are passed over for no other reason than that the request was sent to them before.
    excluding: bool,
    /// Created before the snapshot is read, so that no publication is missed.
    published: Pin<Box<OwnedNotified>>,
}

impl<S, Req, A> Selection<S, Req, A> {
    pub(super) const fn new() -> Self {
        Self { wait: None }
    }

    /// Starts a search that leaves out who is in `tried` while others are available, and adds whom it finds.
    pub(super) fn excluding<P, T>(shared: &Shared<A, S, P, T>, tried: Tried<A>) -> Self {
        let mut wait = Wait::new(shared, NO_VERSION);
        wait.tried = Some(tried);
        Self {
            wait: Some(Box::new(wait)),
        }
    }

    /// Returns whether members have been passed over.
    #[inline]
    pub(super) const fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Finds a ready member; `request` is `None` in `poll_ready`.
    ///
    /// Pending: the wakers are registered with every member that was polled and with the next
    /// publication.
    pub(super) fn poll<P>(
        &mut self,
        shared: &Shared<A, S, P, P::Table>,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> Poll<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        match &mut self.wait {
            // Who failed wakes nobody when it is well again: it is tried at every poll.
            Some(wait) if wait.failed_count > 0 => wait.forgive(),
            Some(_) => {}
            None => {
                let mut reserved = None;
                let needs_request = first_choice(shared, rng, request, &mut reserved);
                if needs_request && request.is_none() {
                    return Poll::Ready(Selected::NeedsRequest);
                }
                if let Some(mut reserved) = reserved {
                    match reserved.service.poll_ready(cx) {
                        Poll::Ready(Ok(())) => return Poll::Ready(Selected::Reserved(reserved)),
                        unready => self.pass_over(shared, reserved, unready),
                    }
                }
            }
        }
        self.poll_wait(shared, rng, request, cx)
    }

    /// Starts to wait, with a member that turned out not to be ready.
    #[cold]
    #[inline(never)]
    pub(super) fn pass_over<P, T>(
        &mut self,
        shared: &Shared<A, S, P, T>,
        reserved: Reserved<S>,
        readiness: Poll<Result<(), S::Error>>,
    ) where
        A: Address,
        S: Service<Req, Error: Into<BoxError>>,
    {
        let wait = self
            .wait
            .get_or_insert_with(|| Box::new(Wait::new(shared, reserved.version)));
        let snapshot = shared.snapshot();
        // One that has left meanwhile has nothing to be passed over in.
        let Some(position) = snapshot.candidate(reserved.id) else {
            return;
        };
        wait.follow(&snapshot);
        wait.passed_count += usize::from(wait.passed.insert(position));
        match readiness {
            Poll::Ready(Err(error)) => {
                let endpoint = snapshot.members[position].endpoint();
                wait.fail(position, endpoint, error.into());
            }
            _ => wait
                .pending
                .push(Readiness::new(reserved.id, reserved.service)),
        }
    }

    #[cold]
    #[inline(never)]
    fn poll_wait<P>(
        &mut self,
        shared: &Shared<A, S, P, P::Table>,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> Poll<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        let wait = self
            .wait
            .get_or_insert_with(|| Box::new(Wait::new(shared, NO_VERSION)));
        loop {
            let snapshot = Arc::clone(&shared.snapshot());
            wait.follow(&snapshot);
            let failed = |error| {
                let version = snapshot.version;
                Some(Selected::Failed { error, version })
            };
            let selected = match &snapshot.standing {
                Standing::Unreported => None,
                Standing::Empty(_) if shared.config.when_empty == WhenEmpty::Wait => None,
                Standing::Empty(error) => failed(error.clone().into()),
                Standing::Closed(error) => failed((*error).into()),
                Standing::Open => wait.search(&snapshot, &shared.policy, rng, request, cx),
            };
            if let Some(selected) = selected {
                if let (Some(tried), Selected::Reserved(reserved)) = (&wait.tried, &selected) {
                    if let Some(position) = snapshot.candidate(reserved.id) {
                        tried.insert(snapshot.members[position].endpoint().clone());
                    }
                }
                self.wait = None;
                return Poll::Ready(selected);
            }
            drop(snapshot);
            ready!(wait.published.as_mut().poll(cx));
            wait.published = Box::pin(shared.published.clone().notified_owned());
        }
    }
}

impl<S, Req, A> Wait<S, Req, A> {
    fn new<P, T>(shared: &Shared<A, S, P, T>, version: u64) -> Self {
        Self {
            tried: None,
            version,
            passed: Passed::default(),
            passed_count: 0,
            pending: FuturesUnordered::new(),
            failed: None,
            failed_count: 0,
            failed_at: Vec::new(),
            excluding: false,
            published: Box::pin(shared.published.clone().notified_owned()),
        }
    }

    fn fail(&mut self, position: usize, endpoint: &Endpoint<impl Address>, error: BoxError) {
        debug!(%endpoint, %error, "endpoint failed to become ready");
        self.failed_count += 1;
        self.failed_at.push(position);
        self.failed = Some((endpoint.to_string(), error));
    }

    /// Lets those be asked again who failed. The others keep their places in queues.
    fn forgive(&mut self) {
        for position in self.failed_at.drain(..) {
            self.passed.remove(position);
            self.passed_count -= 1;
        }
        self.failed = None;
        self.failed_count = 0;
    }

    /// Goes over to `snapshot`: lets go of who left, and tries again who failed.
    fn follow<T>(&mut self, snapshot: &Snapshot<A, S, T>)
    where
        A: Address,
    {
        if self.version == snapshot.version {
            return;
        }
        self.version = snapshot.version;
        self.passed = Passed::default();
        self.passed_count = 0;
        self.failed = None;
        self.failed_count = 0;
        self.failed_at.clear();
        self.excluding = false;
        let tried = self.tried.as_ref().map(Tried::endpoints);
        for endpoint in tried.iter().flatten() {
            let mut members = snapshot.members.iter();
            if let Some(position) = members.position(|member| member.endpoint() == endpoint) {
                self.passed_count += usize::from(self.passed.insert(position));
                self.excluding = true;
            }
        }
        for readiness in std::mem::take(&mut self.pending) {
            // One that is excluded gives up its place: others may have come.
            let position = snapshot.candidate(readiness.id);
            if position.is_some_and(|position| self.passed.insert(position)) {
                self.passed_count += 1;
                self.pending.push(readiness);
            }
        }
    }

    /// Polls who was passed over, and asks for others until one is ready or none is left.
    fn search<P>(
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
            while let Poll::Ready(Some((id, readiness))) = Pin::new(&mut self.pending).poll_next(cx)
            {
                let Some(position) = snapshot.candidate(id) else {
                    continue;
                };
                let endpoint = snapshot.members[position].endpoint();
                match readiness {
                    Ok(service) => {
                        return Some(Selected::Reserved(Reserved {
                            service,
                            id,
                            version: snapshot.version,
                        }));
                    }
                    Err(error) => self.fail(position, endpoint, error.into()),
                }
            }
            match self.next(snapshot, policy, rng, request) {
                Choice::Member(position) => {
                    self.passed_count += usize::from(self.passed.insert(position));
                    let member = &snapshot.members[position];
                    self.pending
                        .push(Readiness::new(member.id, member.service.clone()));
                }
                Choice::NeedsRequest => return Some(Selected::NeedsRequest),
                Choice::MissingKey => {
                    return Some(Selected::Failed {
                        error: MissingKey.into(),
                        version: snapshot.version,
                    });
                }
                Choice::None if !self.pending.is_empty() => return None,
                Choice::None if self.excluding => {
                    if self.tried.as_ref().is_some_and(Tried::is_strict) {
                        return Some(Selected::Failed {
                            error: AllTried.into(),
                            version: snapshot.version,
                        });
                    }
                    // Nobody else can take it: one that had it before may have it again.
                    self.excluding = false;
                    self.passed = Passed::default();
                    self.passed_count = 0;
                    self.failed_at.clear();
                    self.failed_count = 0;
                }
                Choice::None => {
                    let error = match self.failed.take() {
                        Some((endpoint, error)) => {
                            NotReady::new(endpoint, self.failed_count, error).into()
                        }
                        None => NotChosen.into(),
                    };
                    let version = snapshot.version;
                    return Some(Selected::Failed { error, version });
                }
            }
        }
    }

    /// Asks the policy for a member that has not been passed over.
    fn next<P>(
        &self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
    ) -> Choice
    where
        P: Policy<A, S, Req>,
    {
        let passed = (self.passed_count > 0).then_some(&self.passed);
        let candidates = Candidates::new(&snapshot.members, passed);
        let by_request = |rng: &mut Rng| {
            let pick = &mut PickContext::new(None, rng);
            policy.pick(&snapshot.table, candidates, pick) == Choice::NeedsRequest
        };
        if self.passed_count < PICKS_BEFORE_SWEEP || (request.is_some() && by_request(rng)) {
            let pick = &mut PickContext::new(request, rng);
            match policy.pick(&snapshot.table, candidates, pick) {
                Choice::Member(position) if !candidates.contains(position) => {}
                Choice::NeedsRequest if request.is_some() => return Choice::None,
                choice => return choice,
            }
        }
        // So many were not ready that any that is will do; or the policy looks at no candidates.
        let len = snapshot.members.len();
        let start = rng.below(len as u32) as usize;
        (start..len)
            .chain(0..start)
            .find(|&position| candidates.contains(position))
            .map_or(Choice::None, Choice::Member)
    }
}

impl<S> Reserved<S> {
    /// Returns whether the reservation's member may still be called.
    #[inline]
    pub(super) fn holds<A, P, T>(&self, shared: &Shared<A, S, P, T>) -> bool {
        shared.is_current(self.version) || shared.snapshot().candidate(self.id).is_some()
    }
}

/// Asks the policy once, and clones the service of the member that it chooses into `reserved`; says whether
/// the policy needs the request.
// An enum of three would be the clearer answer, and costs 6 instructions of 216 a request.
#[inline]
pub(super) fn first_choice<A, S, Req, P>(
    shared: &Shared<A, S, P, P::Table>,
    rng: &mut Rng,
    request: Option<&Req>,
    reserved: &mut Option<Reserved<S>>,
) -> bool
where
    S: Clone,
    P: Policy<A, S, Req>,
{
    let snapshot = shared.snapshot();
    let Standing::Open = snapshot.standing else {
        return false;
    };
    let candidates = Candidates::new(&snapshot.members, None);
    let pick = &mut PickContext::new(request, rng);
    let choice = shared.policy.pick(&snapshot.table, candidates, pick);
    let Choice::Member(position) = choice else {
        return choice == Choice::NeedsRequest;
    };
    if let Some(member) = snapshot.members.get(position) {
        // The guard goes with this function: services are foreign code and not driven under it.
        *reserved = member.candidate.then(|| Reserved {
            service: member.service.clone(),
            id: member.id,
            version: snapshot.version,
        });
    }
    false
}

/// Drives one service to ready.
struct Readiness<S, Req> {
    id: u64,
    service: Option<S>,
    _request: PhantomData<fn(Req)>,
}

impl<S, Req> Readiness<S, Req> {
    const fn new(id: u64, service: S) -> Self {
        Self {
            id,
            service: Some(service),
            _request: PhantomData,
        }
    }
}

impl<S: Service<Req>, Req> Future for Readiness<S, Req> {
    type Output = (u64, Result<S, S::Error>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(service) = &mut this.service else {
            return Poll::Pending;
        };
        let result = ready!(service.poll_ready(cx));
        // The service goes, ready or failed: a failed one must not be polled again.
        this.service.take().map_or(Poll::Pending, |service| {
            Poll::Ready((this.id, result.map(|()| service)))
        })
    }
}

// The service is moved out, never pinned.
impl<S, Req> Unpin for Readiness<S, Req> {}

impl<S, Req, A> fmt::Debug for Selection<S, Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wait = self.wait.as_ref();
        f.debug_struct("Selection")
            .field("not_ready", &wait.map_or(0, |wait| wait.pending.len()))
            .field("failed", &wait.map_or(0, |wait| wait.failed_count))
            .finish()
    }
}

/// No snapshot has it.
const NO_VERSION: u64 = u64::MAX;

/// A policy that scans costs O(n) a pick: beyond this many, a sweep finds the ready ones in O(n log n) in all,
/// unless the order is the request's own.
const PICKS_BEFORE_SWEEP: usize = 16;
