use std::{
    fmt,
    marker::PhantomData,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::sync::futures::OwnedNotified;
use tower::{BoxError, Service};
use tracing::debug;

use super::{look::Look, places::Places};
use crate::{
    balance::{
        reserved::{Reserved, Selected, Wish},
        shared::{Shared, Snapshot},
    },
    endpoint::{Address, Endpoint},
    error::{AllTried, NotChosen, NotReady},
    policy::{Candidates, Choice, Mask, Policy},
    tried::Tried,
};

/// One caller's wait for a ready member.
///
/// The caller looks once at all members. If none is ready, it stays in the queues of a few. After a
/// publication it looks only at those that have arrived.
pub(in crate::balance) struct Wait<S, Req, A> {
    /// Endpoints to choose only when no other one is available.
    tried: Option<Tried<A>>,
    /// Whether they may be chosen, because no other member can take the request.
    pub(super) repeats: bool,
    /// Whether members are passed over only because they are in `tried`.
    excluding: bool,
    pub(super) places: Places<S>,
    /// The version of the newest snapshot of which every member was looked at, then or before.
    pub(super) looked_at: Option<u64>,
    /// The version of the snapshot whose positions are in `passed`.
    version: u64,
    /// The members that must not be chosen now: those in `places`, those in `tried`, and those that
    /// this poll has asked. `None` until it is needed.
    passed: Option<Mask>,
    pub(super) failed: Failed<A>,
    /// Some of the members that failed when they were asked last.
    pub(super) again: Vec<Wish>,
    /// The ids of the failed members that are not yet reported.
    unreported: Vec<u64>,
    /// Whether the policy wants only the member that it chose last.
    pub(super) is_exact: bool,
    /// Whether a member was passed over that this poll must not ask again.
    is_fresh: bool,
    /// Created before the snapshot is read, so that no publication is missed.
    published: Pin<Box<OwnedNotified>>,
    _request: PhantomData<fn(Req)>,
}

/// The members that failed to become ready in one poll.
pub(super) struct Failed<A> {
    count: usize,
    last: Option<(Endpoint<A>, BoxError)>,
    /// The first of them.
    pub(super) first: Vec<Wish>,
}

impl<S, Req, A> Wait<S, Req, A> {
    pub(in crate::balance) fn new<P, T>(
        shared: &Shared<A, S, P, T>,
        tried: Option<Tried<A>>,
    ) -> Self {
        Self {
            tried,
            repeats: false,
            excluding: false,
            places: Places::new(),
            looked_at: None,
            version: NO_VERSION,
            passed: None,
            failed: Failed::default(),
            again: Vec::new(),
            unreported: Vec::new(),
            is_exact: false,
            is_fresh: false,
            published: Box::pin(shared.published.clone().notified_owned()),
            _request: PhantomData,
        }
    }

    /// Ready once a snapshot has been published since it was last ready.
    pub(in crate::balance) fn poll_published<P, T>(
        &mut self,
        shared: &Shared<A, S, P, T>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        ready!(self.published.as_mut().poll(cx));
        self.published = Box::pin(shared.published.clone().notified_owned());
        Poll::Ready(())
    }

    /// Passes over a reserved member that turned out not to be ready.
    pub(in crate::balance) fn pass_over<T>(
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
        self.is_fresh = true;
        match readiness {
            Poll::Ready(Err(error)) => self.fail(snapshot, position, reserved.wish, error.into()),
            _ => self.places.queue(reserved.wish, reserved.service),
        }
    }

    /// Begins a poll: lets the failed members be asked again, unless this poll has asked them.
    pub(in crate::balance) fn forgive(&mut self) {
        if std::mem::take(&mut self.is_fresh) {
            return;
        }
        self.passed = None;
        self.again = std::mem::take(&mut self.failed).first;
        self.is_exact &= !self.places.is_empty();
    }

    /// Moves on to `snapshot`: gives up the places of members that have left or are excluded now.
    /// Those that have failed are asked again.
    pub(in crate::balance) fn follow<T>(&mut self, snapshot: &Snapshot<A, S, T>)
    where
        A: Address,
    {
        if self.version == snapshot.version {
            return;
        }
        self.version = snapshot.version;
        self.passed = None;
        self.again
            .append(&mut std::mem::take(&mut self.failed).first);
        let tried = self.tried();
        // A member that is excluded now gives up its place: there may be other members to choose.
        self.places.retain(|wish| {
            let position = snapshot.position(wish);
            position.is_some_and(|at| !tried.contains(snapshot.members[at].endpoint()))
        });
        self.is_exact &= !self.places.is_empty();
        let looked_at = self.looked_at.unwrap_or_default();
        let is_lost = self.places.is_empty() || snapshot.arrivals.after(looked_at).is_none();
        if self.repeats && is_lost {
            // Among those that have joined may be one that has not had the request.
            self.start_over();
            self.repeats = false;
        }
    }

    /// Returns whether the caller waits for a draining member that its request belongs to.
    pub(in crate::balance) fn waits_for_draining<T>(&self, snapshot: &Snapshot<A, S, T>) -> bool {
        let mut positions = self.places.wishes().filter_map(|w| snapshot.position(w));
        positions.any(|position| snapshot.members[position].drains)
    }

    /// Polls only the members that the caller waits for.
    pub(in crate::balance) fn poll_waited_for<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> Option<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
    {
        match self.poll_places(snapshot, cx) {
            ControlFlow::Break(selected) => Some(selected),
            ControlFlow::Continue(()) => None,
        }
    }

    /// Polls the members that the caller waits for, and asks others until one is ready.
    ///
    /// Returns `None` if nobody is ready. The members in whose queues the caller stays have then
    /// registered the waker.
    pub(in crate::balance) fn search<P>(
        &mut self,
        at: &mut Look<'_, A, S, P, Req>,
        cx: &mut Context<'_>,
    ) -> Option<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        let snapshot = at.snapshot;
        loop {
            let looked = self.look(at, cx);
            if let ControlFlow::Break(selected) = looked {
                return Some(selected);
            }
            self.looked_at = Some(snapshot.version);
            if !self.places.is_empty() {
                return None;
            }
            if !self.excluding || self.is_strict() {
                let error = self.no_member();
                return Some(failed(snapshot, error));
            }
            // No other member can take the request: one that had it before may get it again.
            self.start_over();
            self.repeats = true;
        }
    }

    /// Returns whether the policy chooses a draining member, or may once the request is known.
    ///
    /// Asked while no other member may be picked: requests that belong to a draining member can
    /// still go there.
    pub(in crate::balance) fn may_go_to_draining<P>(
        &mut self,
        at: &mut Look<'_, A, S, P, Req>,
    ) -> bool
    where
        A: Address,
        P: Policy<A, S, Req>,
    {
        if !at.snapshot.members.iter().any(|member| member.drains) {
            return false;
        }
        let candidates = self.candidates(at.snapshot);
        match at.pick(candidates) {
            Choice::EvenDraining(position) => candidates.is_draining(position),
            choice => choice == Choice::NeedsRequest && at.request.is_none(),
        }
    }

    /// Adds the endpoint that was found to `tried`.
    pub(in crate::balance) fn note_tried<T>(
        &self,
        snapshot: &Snapshot<A, S, T>,
        selected: &Selected<S>,
    ) {
        if let (Some(tried), Selected::Reserved(reserved)) = (&self.tried, selected) {
            if let Some(position) = snapshot.position(reserved.wish) {
                tried.insert(snapshot.members[position].endpoint().clone());
            }
        }
    }

    /// Asks one member.
    pub(super) fn ask<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        position: usize,
        wish: Wish,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
    {
        self.passed(snapshot).insert(position);
        let service = snapshot.members[position].service.clone();
        match self.places.ask(wish, service, cx) {
            Poll::Ready(result) => self.take(snapshot, wish, result),
            Poll::Pending => ControlFlow::Continue(()),
        }
    }

    /// Takes a service that is ready, or records that it has failed.
    pub(super) fn take<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        wish: Wish,
        result: Result<S, S::Error>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>>,
    {
        let Some(position) = snapshot.position(wish) else {
            return ControlFlow::Continue(());
        };
        let version = snapshot.version;
        match result {
            Ok(service) => ControlFlow::Break(Selected::Reserved(Reserved {
                service,
                wish,
                version,
            })),
            Err(error) => {
                self.fail(snapshot, position, wish, error.into());
                ControlFlow::Continue(())
            }
        }
    }

    /// Returns the members that must not be chosen now.
    pub(super) fn passed<T>(&mut self, snapshot: &Snapshot<A, S, T>) -> &mut Mask
    where
        A: Address,
    {
        if self.passed.is_none() {
            let waited_for = self.places.wishes();
            let mut passed: Mask = waited_for.filter_map(|w| snapshot.position(w)).collect();
            self.excluding = false;
            for endpoint in self.tried() {
                let mut members = snapshot.members.iter();
                if let Some(position) = members.position(|m| *m.endpoint() == endpoint) {
                    passed.insert(position);
                    self.excluding = true;
                }
            }
            self.passed = Some(passed);
        }
        self.passed.get_or_insert_default()
    }

    /// Returns the members that may be chosen.
    pub(super) fn candidates<'a, T>(
        &'a mut self,
        snapshot: &'a Snapshot<A, S, T>,
    ) -> Candidates<'a, A, S>
    where
        A: Address,
    {
        let passed = self.passed(snapshot);
        Candidates::without(&snapshot.members, (!passed.is_empty()).then_some(passed))
    }

    /// Returns the endpoints that are left out.
    pub(super) fn tried(&self) -> Vec<Endpoint<A>> {
        let tried = self.tried.as_ref().filter(|_| !self.repeats);
        tried.map(Tried::endpoints).unwrap_or_default()
    }

    /// Returns the error for a request that no member can take.
    fn no_member(&mut self) -> BoxError
    where
        A: Address,
    {
        if self.excluding {
            return AllTried.into();
        }
        let Failed { count, last, .. } = std::mem::take(&mut self.failed);
        match last {
            Some((endpoint, error)) => NotReady::new(endpoint.to_string(), count, error).into(),
            None => NotChosen.into(),
        }
    }

    /// Forgets whom the caller has asked and waits for.
    pub(super) fn start_over(&mut self) {
        self.places = Places::new();
        self.looked_at = None;
        self.passed = None;
        self.failed = Failed::default();
        self.is_exact = false;
    }

    /// Reports the members that failed to become ready, so that the driver looks at them.
    pub(in crate::balance) fn report<P, T>(&mut self, shared: &Shared<A, S, P, T>)
    where
        S: Service<Req>,
    {
        if !self.unreported.is_empty() {
            let failed = self.unreported.drain(..);
            shared.suspects.report::<Req>(failed, &shared.suspected);
        }
    }

    fn fail<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        position: usize,
        wish: Wish,
        error: BoxError,
    ) where
        A: Address,
    {
        self.passed(snapshot).insert(position);
        let endpoint = snapshot.members[position].endpoint();
        // Without a source that makes another one, there is nothing to find out.
        if endpoint.can_be_made_again() {
            self.unreported.push(wish.id());
        }
        debug!(%endpoint, %error, "endpoint failed to become ready");
        self.failed.count += 1;
        self.failed.last = Some((endpoint.clone(), error));
        if self.failed.first.len() < PICKS {
            self.failed.first.push(wish);
        }
    }

    fn is_strict(&self) -> bool {
        self.tried.as_ref().is_some_and(Tried::is_strict)
    }
}

pub(super) fn failed<A, S, T>(snapshot: &Snapshot<A, S, T>, error: BoxError) -> Selected<S> {
    let version = snapshot.version;
    Selected::Failed { error, version }
}

// Not derived, because that would require `A: Default`.
impl<A> Default for Failed<A> {
    fn default() -> Self {
        Self {
            count: 0,
            last: None,
            first: Vec::new(),
        }
    }
}

impl<S, Req, A> fmt::Debug for Wait<S, Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("not_ready", &self.places.len())
            .field("failed", &self.failed.count)
            .finish_non_exhaustive()
    }
}

/// A version that no snapshot has.
const NO_VERSION: u64 = u64::MAX;

/// After this many picks, members are asked from a random position on if the policy allows it: a
/// pick of a policy that scans costs O(n).
pub(super) const PICKS: usize = 16;
