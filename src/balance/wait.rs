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

use super::{
    places::Places,
    reserved::{Reserved, Selected, Wish},
    shared::{Shared, Snapshot},
};
use crate::{
    endpoint::{Address, Endpoint},
    error::{AllTried, MissingKey, NotChosen, NotReady},
    policy::{Candidates, Choice, Mask, PickContext, Policy},
    random::Rng,
    tried::Tried,
};

/// One caller's wait for a ready member.
///
/// The caller looks once at all members. If none is ready, it stays in the queues of a few. After a
/// publication it looks only at those that have arrived.
pub(super) struct Wait<S, Req, A> {
    /// Endpoints to choose only when no other one is available.
    tried: Option<Tried<A>>,
    /// Whether they may be chosen, because no other member can take the request.
    repeats: bool,
    /// Whether members are passed over only because they are in `tried`.
    excluding: bool,
    places: Places<S>,
    /// The version of the newest snapshot that was looked at as a whole.
    looked_at: Option<u64>,
    /// The version of the snapshot whose positions are in `passed`.
    version: u64,
    /// The members that must not be chosen now: those in `places`, those in `tried`, and those that
    /// this poll has asked. `None` until it is needed.
    passed: Option<Mask>,
    failed: Failed<A>,
    /// Some of the members that failed when they were asked last.
    again: Vec<Wish>,
    /// The ids of the failed members that are not yet reported.
    unreported: Vec<u64>,
    /// Whether the policy wants only the member that it chose last.
    is_exact: bool,
    /// Created before the snapshot is read, so that no publication is missed.
    published: Pin<Box<OwnedNotified>>,
    _request: PhantomData<fn(Req)>,
}

/// The members that failed to become ready in one poll.
struct Failed<A> {
    count: usize,
    last: Option<(Endpoint<A>, BoxError)>,
    /// The first of them.
    first: Vec<Wish>,
}

/// What is left to ask when a policy has picked for a while.
#[derive(PartialEq, Eq)]
enum Left {
    Others,
    Nobody,
}

impl<S, Req, A> Wait<S, Req, A> {
    pub(super) fn new<P, T>(shared: &Shared<A, S, P, T>, tried: Option<Tried<A>>) -> Self {
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
            published: Box::pin(shared.published.clone().notified_owned()),
            _request: PhantomData,
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
        match readiness {
            Poll::Ready(Err(error)) => self.fail(snapshot, position, reserved.wish, error.into()),
            _ => self.places.queue(reserved.wish, reserved.service),
        }
    }

    /// Lets the failed members be asked again. The others keep their places in queues.
    pub(super) fn forgive(&mut self) {
        self.passed = None;
        self.again = std::mem::take(&mut self.failed).first;
        self.is_exact &= !self.places.is_empty();
    }

    /// Moves on to `snapshot`: gives up the places of members that have left, and forgets earlier
    /// failures.
    pub(super) fn follow<T>(&mut self, snapshot: &Snapshot<A, S, T>)
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
    }

    /// Polls the members that the caller waits for, and asks others until one is ready.
    ///
    /// Returns `None` if nobody is ready. The members in whose queues the caller stays have then
    /// registered the waker.
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
            let looked = self.look(snapshot, policy, rng, request, cx);
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
    pub(super) fn may_go_to_draining<P>(
        &mut self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
    ) -> bool
    where
        A: Address,
        P: Policy<A, S, Req>,
    {
        if !snapshot.members.iter().any(|member| member.drains) {
            return false;
        }
        let candidates = self.candidates(snapshot);
        let pick = &mut PickContext::new(request, rng);
        match policy.pick(&snapshot.table, candidates, pick) {
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

    /// Polls the members that the caller waits for, then the others as far as there is news of them.
    fn look<P>(
        &mut self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        self.poll_places(snapshot, cx)?;
        // A caller that waits for nobody finds somebody to wait for.
        let looked_at = self.looked_at.filter(|_| !self.places.is_empty());
        let arrived = looked_at.and_then(|version| snapshot.arrivals.after(version));
        match arrived {
            Some(arrived) if !self.prefers_one_of(arrived.clone(), snapshot) => {
                self.ask_again(snapshot, cx)?;
                if looked_at == Some(snapshot.version) {
                    return ControlFlow::Continue(());
                }
                self.look_at_arrivals(arrived, snapshot, policy, rng, request, cx)
            }
            _ => self.look_at_all(snapshot, policy, rng, request, cx),
        }
    }

    /// Finds a member among those that the caller waits for, for example by its turn in a queue.
    fn poll_places<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>>,
    {
        while let Poll::Ready((wish, result)) = self.places.poll(cx) {
            self.take(snapshot, wish, result)?;
        }
        ControlFlow::Continue(())
    }

    /// Asks members that failed. Nobody else tells when they work again.
    fn ask_again<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
    {
        for wish in std::mem::take(&mut self.again) {
            if let Some(position) = snapshot.position(wish) {
                self.ask(snapshot, position, wish, cx)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Asks every member, in the order of the policy for as long as it cares.
    fn look_at_all<P>(
        &mut self,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        self.again.clear();
        let most = match policy.any_will_do() {
            true => PICKS.saturating_sub(self.passed(snapshot).len()),
            false => usize::MAX,
        };
        if self.pick_up_to(most, snapshot, policy, rng, request, cx)? == Left::Nobody {
            return ControlFlow::Continue(());
        }
        let len = snapshot.members.len();
        let start = rng.below(len as u32) as usize;
        for position in (start..len).chain(0..start) {
            if self.candidates(snapshot).contains(position) {
                let wish = Wish::new(snapshot.members[position].id, Choice::Member(position));
                self.ask(snapshot, position, wish, cx)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Asks the members that have become candidates since all were looked at.
    ///
    /// Asks the policy as well: for the places that are free, or if it does not leave the choice to
    /// chance.
    fn look_at_arrivals<P>(
        &mut self,
        arrived: impl Iterator<Item = u64>,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        let was_exact = std::mem::take(&mut self.is_exact);
        let will_do = policy.any_will_do() && !was_exact;
        for id in arrived.filter(|_| will_do) {
            let wish = Wish::new(id, Choice::Member(0));
            let position = snapshot.position(wish);
            let is_asked = self.places.contains(id);
            let Some(position) = position.filter(|_| !is_asked) else {
                continue;
            };
            if !self.tried().contains(snapshot.members[position].endpoint()) {
                // At most one place changes hands: the others keep their turns.
                self.places.make_room();
                self.ask(snapshot, position, wish, cx)?;
            }
        }
        let most = if will_do { self.places.free() } else { PICKS };
        self.pick_up_to(most, snapshot, policy, rng, request, cx)
            .map_continue(|_| ())
    }

    /// Asks the members that the policy picks, one after the other, until one is ready.
    fn pick_up_to<P>(
        &mut self,
        most: usize,
        snapshot: &Snapshot<A, S, P::Table>,
        policy: &P,
        rng: &mut Rng,
        request: Option<&Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>, Left>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
        P: Policy<A, S, Req>,
    {
        if self.is_exact {
            return ControlFlow::Continue(Left::Nobody);
        }
        if most > 1 && most != usize::MAX {
            let candidates = self.candidates(snapshot);
            let pick = &mut PickContext::new(request, rng);
            let choices = policy.choices(&snapshot.table, candidates, pick, most);
            if let Some(choices) = choices {
                return self.ask_each(choices, most, snapshot, cx);
            }
        }
        for _ in 0..most {
            let candidates = self.candidates(snapshot);
            let pick = &mut PickContext::new(request, rng);
            let choice = policy.pick(&snapshot.table, candidates, pick);
            let position = match choice {
                Choice::Member(position) if candidates.contains(position) => position,
                Choice::EvenDraining(position)
                    if candidates.contains(position) || candidates.is_draining(position) =>
                {
                    position
                }
                Choice::Exactly(position) if candidates.contains(position) => {
                    // The places in other queues are given up: those members must not answer.
                    self.places = Places::new();
                    self.is_exact = true;
                    position
                }
                Choice::Exactly(position) => {
                    let member = snapshot.members.get(position);
                    self.is_exact = member.is_some_and(|member| self.places.contains(member.id));
                    return ControlFlow::Continue(Left::Nobody);
                }
                Choice::NeedsRequest if request.is_none() => {
                    return ControlFlow::Break(Selected::NeedsRequest);
                }
                Choice::MissingKey => {
                    return ControlFlow::Break(failed(snapshot, MissingKey.into()));
                }
                // A member that has been asked already, or is no candidate, is no reason to choose
                // another one in its place.
                _ => return ControlFlow::Continue(Left::Nobody),
            };
            let wish = Wish::new(snapshot.members[position].id, choice);
            self.ask(snapshot, position, wish, cx)?;
            if self.is_exact {
                return ControlFlow::Continue(Left::Nobody);
            }
        }
        ControlFlow::Continue(Left::Others)
    }

    /// Asks the chosen members, one after the other, until one is ready.
    fn ask_each<T>(
        &mut self,
        choices: Vec<usize>,
        most: usize,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>, Left>
    where
        A: Address,
        S: Service<Req, Error: Into<BoxError>> + Clone,
    {
        let left = match choices.len() < most {
            true => Left::Nobody,
            false => Left::Others,
        };
        for position in choices {
            if self.candidates(snapshot).contains(position) {
                let wish = Wish::new(snapshot.members[position].id, Choice::Member(position));
                self.ask(snapshot, position, wish, cx)?;
            }
        }
        ControlFlow::Continue(left)
    }

    /// Asks one member.
    fn ask<T>(
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
    fn take<T>(
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
    fn passed<T>(&mut self, snapshot: &Snapshot<A, S, T>) -> &mut Mask
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
    fn candidates<'a, T>(&'a mut self, snapshot: &'a Snapshot<A, S, T>) -> Candidates<'a, A, S>
    where
        A: Address,
    {
        let passed = self.passed(snapshot);
        Candidates::without(&snapshot.members, (!passed.is_empty()).then_some(passed))
    }

    /// Returns whether a member has arrived that the caller would rather have than one that had the
    /// request before. It then starts over.
    fn prefers_one_of<T>(
        &mut self,
        mut arrived: impl Iterator<Item = u64>,
        snapshot: &Snapshot<A, S, T>,
    ) -> bool
    where
        A: Address,
    {
        if !std::mem::take(&mut self.repeats) {
            return false;
        }
        let tried = self.tried();
        let is_other = |id| {
            let position = snapshot.position(Wish::new(id, Choice::Member(0)));
            position.is_some_and(|at| !tried.contains(snapshot.members[at].endpoint()))
        };
        let prefers = arrived.any(is_other);
        match prefers {
            true => self.start_over(),
            false => self.repeats = true,
        }
        prefers
    }

    /// Returns the endpoints that are left out.
    fn tried(&self) -> Vec<Endpoint<A>> {
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
    fn start_over(&mut self) {
        self.places = Places::new();
        self.looked_at = None;
        self.passed = None;
        self.failed = Failed::default();
        self.is_exact = false;
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

fn failed<A, S, T>(snapshot: &Snapshot<A, S, T>, error: BoxError) -> Selected<S> {
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
const PICKS: usize = 16;
