use std::{
    ops::ControlFlow,
    task::{Context, Poll},
};

use tower::{BoxError, Service};

use super::{
    places::Places,
    wait::{PICKS, Wait, failed},
};
use crate::{
    balance::{
        reserved::{Selected, Wish},
        shared::Snapshot,
    },
    endpoint::Address,
    error::MissingKey,
    policy::{Candidates, Choice, PickContext, Policy},
    random::Rng,
};

/// What one search for a member looks at, and for which request.
pub(in crate::balance) struct Look<'a, A, S, P, Req>
where
    P: Policy<A, S, Req>,
{
    pub(in crate::balance) snapshot: &'a Snapshot<A, S, P::Table>,
    pub(in crate::balance) policy: &'a P,
    pub(in crate::balance) rng: &'a mut Rng,
    pub(in crate::balance) request: Option<&'a Req>,
}

/// What is left to ask when a policy has picked for a while.
#[derive(PartialEq, Eq)]
enum Left {
    Others,
    Nobody,
}

impl<A, S, P, Req> Look<'_, A, S, P, Req>
where
    P: Policy<A, S, Req>,
{
    pub(super) fn pick(&mut self, candidates: Candidates<'_, A, S>) -> Choice {
        let pick = &mut PickContext::new(self.request, self.rng);
        self.policy.pick(&self.snapshot.table, candidates, pick)
    }
}

/// The ways of looking for a member that is ready. Each breaks once the search is over.
impl<S, Req, A> Wait<S, Req, A>
where
    A: Address,
    S: Service<Req, Error: Into<BoxError>> + Clone,
{
    /// Polls the members that the caller waits for, then those of the others that have news.
    pub(super) fn look<P>(
        &mut self,
        at: &mut Look<'_, A, S, P, Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        P: Policy<A, S, Req>,
    {
        let snapshot = at.snapshot;
        let places = self.places.len();
        self.poll_places(snapshot, cx)?;
        let has_lost = self.places.len() < places;
        // A caller that waits for nobody finds somebody to wait for.
        let looked_at = self.looked_at.filter(|_| !self.places.is_empty());
        let arrived = looked_at.and_then(|version| snapshot.arrivals.after(version));
        match arrived {
            Some(arrived) if !self.prefers_one_of(arrived.clone(), snapshot) => {
                self.ask_again(snapshot, cx)?;
                if looked_at != Some(snapshot.version) {
                    return self.look_at_arrivals(arrived, at, cx);
                }
                let free = if has_lost { self.places.free() } else { 0 };
                self.pick_up_to(free, at, cx).map_continue(|_| ())
            }
            _ => {
                // One of very many that have joined may take the last place.
                self.places.make_room();
                self.look_at_all(at, cx)
            }
        }
    }

    /// Finds a member among those that the caller waits for, for example by its turn in a queue.
    pub(super) fn poll_places<T>(
        &mut self,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>> {
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
    ) -> ControlFlow<Selected<S>> {
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
        at: &mut Look<'_, A, S, P, Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        P: Policy<A, S, Req>,
    {
        let snapshot = at.snapshot;
        self.again.clear();
        let most = match at.policy.any_will_do() {
            true => PICKS.saturating_sub(self.passed(snapshot).len()),
            false => usize::MAX,
        };
        if self.pick_up_to(most, at, cx)? == Left::Nobody {
            return ControlFlow::Continue(());
        }
        let len = snapshot.members.len();
        let start = at.rng.below(len as u32) as usize;
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
        at: &mut Look<'_, A, S, P, Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>>
    where
        P: Policy<A, S, Req>,
    {
        let snapshot = at.snapshot;
        let was_exact = std::mem::take(&mut self.is_exact);
        let will_do = at.policy.any_will_do() && !was_exact;
        for id in arrived {
            // At most one place changes hands: the others keep their turns.
            self.places.make_room();
            let wish = Wish::new(id, Choice::Member(0));
            let position = snapshot.position(wish).filter(|_| will_do);
            // Not one that is excluded, waited for or has just failed.
            if let Some(position) = position.filter(|at| !self.passed(snapshot).contains(*at)) {
                self.ask(snapshot, position, wish, cx)?;
            }
        }
        let most = if will_do { self.places.free() } else { PICKS };
        self.pick_up_to(most, at, cx).map_continue(|_| ())
    }

    /// Asks the members that the policy picks, one after the other, until one is ready.
    fn pick_up_to<P>(
        &mut self,
        most: usize,
        at: &mut Look<'_, A, S, P, Req>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>, Left>
    where
        P: Policy<A, S, Req>,
    {
        let snapshot = at.snapshot;
        if self.is_exact {
            return ControlFlow::Continue(Left::Nobody);
        }
        if most > 1 {
            let candidates = self.candidates(snapshot);
            let pick = &mut PickContext::new(at.request, at.rng);
            let most = most.min(snapshot.members.len());
            let table = &snapshot.table;
            if let Some(picks) = at.policy.pick_several(table, candidates, pick, most) {
                return self.ask_each(picks, most, snapshot, cx);
            }
        }
        for _ in 0..most {
            let candidates = self.candidates(snapshot);
            let choice = at.pick(candidates);
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
                    self.again.clear();
                    self.failed.first.clear();
                    self.is_exact = true;
                    position
                }
                Choice::Exactly(position) => {
                    let member = snapshot.members.get(position);
                    self.is_exact = member.is_some_and(|member| self.places.contains(member.id));
                    return ControlFlow::Continue(Left::Nobody);
                }
                Choice::NeedsRequest if at.request.is_none() => {
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
        picks: Vec<usize>,
        most: usize,
        snapshot: &Snapshot<A, S, T>,
        cx: &mut Context<'_>,
    ) -> ControlFlow<Selected<S>, Left> {
        let left = match picks.len() < most {
            true => Left::Nobody,
            false => Left::Others,
        };
        for position in picks {
            if self.candidates(snapshot).contains(position) {
                let wish = Wish::new(snapshot.members[position].id, Choice::Member(position));
                self.ask(snapshot, position, wish, cx)?;
            }
        }
        ControlFlow::Continue(left)
    }

    /// Returns whether a member has arrived that the caller would rather have than one that had the
    /// request before. It then starts over.
    fn prefers_one_of<T>(
        &mut self,
        mut arrived: impl Iterator<Item = u64>,
        snapshot: &Snapshot<A, S, T>,
    ) -> bool {
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
}
