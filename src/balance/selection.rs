use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower::{BoxError, Service};

use super::{
    reserved::{Reserved, Selected, Wish},
    shared::{Availability, Shared, WhenEmpty},
    wait::{Look, Wait},
};
use crate::{
    endpoint::Address,
    error::NotDriven,
    policy::{Candidates, Choice, PickContext, Policy},
    random::Rng,
    tried::Tried,
};

/// Searches for a ready member, for `poll_ready` and for the response future.
///
/// Dropped at any time, it gives back everything that it has reserved.
pub(super) struct Selection<S, Req, A> {
    /// Set once the first choice turned out not to be ready, or if endpoints are to be left out.
    wait: Option<Box<Wait<S, Req, A>>>,
}

impl<S, Req, A> Selection<S, Req, A> {
    pub(super) const fn new() -> Self {
        Self { wait: None }
    }

    /// Starts a search that leaves out the endpoints in `tried` while others are available.
    ///
    /// It adds the endpoint that it finds to `tried`.
    pub(super) fn excluding<P, T>(shared: &Shared<A, S, P, T>, tried: Tried<A>) -> Self {
        Self {
            wait: Some(Box::new(Wait::new(shared, Some(tried)))),
        }
    }

    /// Returns whether members have been passed over.
    #[inline]
    pub(super) const fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Finds a ready member; `request` is `None` in `poll_ready`.
    ///
    /// If it is pending, the waker is registered with the members in whose queues the caller stays,
    /// and with the next publication.
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
        if self.wait.is_none() {
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
        if let Some(wait) = &mut self.wait {
            // A failed member wakes no caller when it works again, so some are tried at every poll.
            wait.forgive();
        }
        self.poll_wait(shared, rng, request, cx)
    }

    /// Starts to wait, because the reserved member turned out not to be ready.
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
            .get_or_insert_with(|| Box::new(Wait::new(shared, None)));
        wait.pass_over(&shared.snapshot(), reserved, readiness);
        wait.report(shared);
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
            .get_or_insert_with(|| Box::new(Wait::new(shared, None)));
        loop {
            // A clone instead of a guard: the search drives services, which are foreign code and
            // may be slow.
            let snapshot = Arc::clone(&shared.snapshot());
            wait.follow(&snapshot);
            let failed = |error| {
                let version = snapshot.version;
                Some(Selected::Failed { error, version })
            };
            let look = &mut Look {
                snapshot: &snapshot,
                policy: &shared.policy,
                rng,
                request,
            };
            let selected = match &snapshot.availability {
                _ if !shared.is_driven() => failed(NotDriven.into()),
                Availability::Undriven => failed(NotDriven.into()),
                Availability::Open => wait.search(look, cx),
                _ if wait.waits_for_draining(&snapshot) => {
                    let selected = wait.poll_waited_for(&snapshot, cx);
                    if selected.is_none() && !wait.waits_for_draining(&snapshot) {
                        continue;
                    }
                    selected
                }
                _ if wait.may_go_to_draining(look) => wait.search(look, cx),
                Availability::Unreported => None,
                Availability::Empty(error)
                    if shared.config.when_empty == WhenEmpty::Wait && error.may_end() =>
                {
                    None
                }
                Availability::Empty(error) => failed(error.clone().into()),
                Availability::Closed(error) => failed((*error).into()),
            };
            wait.report(shared);
            if let Some(selected) = selected {
                wait.note_tried(&snapshot, &selected);
                self.wait = None;
                return Poll::Ready(selected);
            }
            drop(snapshot);
            ready!(wait.poll_published(shared, cx));
        }
    }
}

/// Asks the policy once, and clones the service of the member that it chooses into `reserved`.
///
/// Returns whether the policy needs the request.
// An enum of three would be a clearer result, but costs 6 instructions of 216 a request.
#[inline(always)]
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
    let Availability::Open = snapshot.availability else {
        return false;
    };
    let candidates = Candidates::new(&snapshot.members);
    let pick = &mut PickContext::new(request, rng);
    let choice = shared.policy.pick(&snapshot.table, candidates, pick);
    let (Choice::Member(position) | Choice::Exactly(position) | Choice::EvenDraining(position)) =
        choice
    else {
        return choice == Choice::NeedsRequest;
    };
    if let Some(member) = snapshot.members.get(position) {
        // The guard is dropped when this function returns: services are foreign code, and must not
        // be driven while it is held.
        let is_home = || member.drains && matches!(choice, Choice::EvenDraining(_));
        *reserved = (member.candidate || is_home()).then(|| Reserved {
            service: member.service.clone(),
            wish: Wish::new(member.id, choice),
            version: snapshot.version,
        });
    }
    false
}

impl<S, Req, A> fmt::Debug for Selection<S, Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selection")
            .field("wait", &self.wait)
            .finish()
    }
}
