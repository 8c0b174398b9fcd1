use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::state::{Failure, SourceState};
use crate::endpoint::{Address, Target};

/// What a source does with an empty answer that follows a set of targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenEmpty {
    /// It is taken for the truth: the set is empty.
    Believe,
    /// The last set stays, until an answer has targets again.
    Keep,
    /// The last set stays for this long. If answers are still empty then, the set is empty.
    KeepFor(Duration),
}

/// A list of targets, shared with everyone who follows the source.
pub(super) type List<A> = Arc<[Target<A>]>;

/// Decides which set of targets is served, from what a source answers. Knows no clock.
pub(super) struct Keeper<A> {
    when_empty: WhenEmpty,
    /// How long a set is kept that would lose more than half of its targets.
    settle: Option<Duration>,
    served: Option<List<A>>,
    held: Option<Held<A>>,
    state: SourceState,
    failures: u32,
    stale_since: Option<Instant>,
}

/// An answer that is not believed yet.
struct Held<A> {
    why: Why,
    list: List<A>,
    since: Instant,
    /// `None`: never.
    until: Option<Instant>,
}

/// Why an answer is not believed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Empty,
    Shrunk,
}

/// What follows from an answer, a failure or the time.
#[derive(Debug)]
pub(super) struct Step<A> {
    /// The set to serve from now on, if it is another one.
    pub(super) serve: Option<List<A>>,
    pub(super) news: Vec<News>,
}

/// A change of a source's state, for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Fails {
        error: String,
    },
    IsWell {
        stale_for: Duration,
    },
    Keeps {
        why: Why,
        kept: usize,
        answered: usize,
    },
    Believes {
        why: Why,
        targets: usize,
    },
}

impl<A: Address> Keeper<A> {
    pub(super) fn new(when_empty: WhenEmpty, settle: Option<Duration>) -> Self {
        Self {
            when_empty,
            settle,
            served: None,
            held: None,
            state: SourceState::default(),
            failures: 0,
            stale_since: None,
        }
    }

    pub(super) const fn state(&self) -> &SourceState {
        &self.state
    }

    /// Returns when an answer that is held is believed. While the source fails, it is not.
    pub(super) fn due(&self) -> Option<Instant> {
        self.held.as_ref()?.until.filter(|_| self.failures == 0)
    }

    /// Takes a successful answer. **O(n)**.
    pub(super) fn answer(&mut self, list: Vec<Target<A>>, now: Instant) -> Step<A>
    where
        A: Clone,
    {
        let mut news = Vec::new();
        self.state.last_success = Some(now);
        if std::mem::take(&mut self.failures) > 0 {
            // What was held is not believed on the first answer of a registry that has come back.
            if let Some(held) = &mut self.held {
                held.since = now;
            }
            let since = self.stale_since.take().unwrap_or(now);
            let stale_for = now.saturating_duration_since(since);
            news.push(News::IsWell { stale_for });
        }
        let list: List<A> = list.into();
        let Some(served) = &self.served else {
            // There is nothing to keep.
            return self.serve(list, news);
        };
        if is_same_set(served, &list) {
            self.held = None;
            return self.end(None, news);
        }
        let doubt = match list.len() {
            0 if self.when_empty != WhenEmpty::Believe => Some(Why::Empty),
            n if n > 0 && 2 * n < served.len() && self.settle.is_some() => Some(Why::Shrunk),
            _ => None,
        };
        let Some(why) = doubt else {
            return self.serve(list, news);
        };
        let held = self.held.take().filter(|held| held.why == why);
        let since = held.as_ref().map_or(now, |held| held.since);
        if held.is_none() {
            let (kept, answered) = (served.len(), list.len());
            news.push(News::Keeps {
                why,
                kept,
                answered,
            });
        }
        let patience = match (why, self.when_empty) {
            (Why::Shrunk, _) => self.settle,
            (Why::Empty, WhenEmpty::KeepFor(patience)) => Some(patience),
            (Why::Empty, _) => None,
        };
        let until = patience.and_then(|patience| since.checked_add(patience));
        self.held = Some(Held {
            why,
            list,
            since,
            until,
        });
        let Step { serve, news: more } = self.pass(now);
        news.extend(more);
        self.end(serve, news)
    }

    /// Takes a failure. The set stays as it is.
    pub(super) fn fail(&mut self, error: String, now: Instant) -> Step<A> {
        self.failures = self.failures.saturating_add(1);
        let is_first = self.failures == 1;
        if is_first {
            self.stale_since = Some(now);
        }
        let news = is_first.then(|| News::Fails {
            error: error.clone(),
        });
        self.state.last_failure = Some(Failure { at: now, error });
        self.end(None, news.into_iter().collect())
    }

    /// Believes the answer that is held once its time has come.
    pub(super) fn pass(&mut self, now: Instant) -> Step<A> {
        if self.due().is_none_or(|due| due > now) {
            return self.end(None, Vec::new());
        }
        let Some(Held { why, list, .. }) = self.held.take() else {
            return self.end(None, Vec::new());
        };
        let targets = list.len();
        self.serve(list, vec![News::Believes { why, targets }])
    }

    /// Notes that there will be no further answer.
    pub(super) fn set_ended(&mut self) {
        self.state.has_ended = true;
        self.update();
    }

    /// Returns the longest pause before the next try: twice as long after each failure.
    pub(super) fn longest_pause(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(20);
        LONGEST_PAUSE.min(FIRST_PAUSE * (1 << doublings))
    }

    fn serve(&mut self, list: List<A>, news: Vec<News>) -> Step<A> {
        self.held = None;
        self.served = Some(list.clone());
        self.end(Some(list), news)
    }

    fn end(&mut self, serve: Option<List<A>>, news: Vec<News>) -> Step<A> {
        self.update();
        Step { serve, news }
    }

    fn update(&mut self) {
        self.state.targets = self.served.as_ref().map_or(0, |list| list.len());
        self.state.is_failing = self.failures > 0;
        self.state.is_keeping = self.held.is_some();
    }
}

/// Returns whether both name the same targets. Order means nothing, and of targets with one address
/// the first counts.
fn is_same_set<A: Address>(a: &[Target<A>], b: &[Target<A>]) -> bool {
    fn by_address<A: Address>(list: &[Target<A>]) -> HashMap<&A, &Target<A>> {
        let reversed = list.iter().rev();
        reversed.map(|target| (&target.address, target)).collect()
    }
    let same_attributes = |a: &Target<A>, b: &Target<A>| {
        (a.weight, &a.zone, a.priority, &a.hash_key) == (b.weight, &b.zone, b.priority, &b.hash_key)
    };
    let (a, b) = (by_address(a), by_address(b));
    a.len() == b.len()
        && a.iter().all(|(address, target)| {
            let other = b.get(address);
            other.is_some_and(|other| same_attributes(target, other))
        })
}

/// The longest pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause after many failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[cfg(all(test, not(tower_lb_loom)))]
mod tests {
    use super::*;

    fn list(addresses: impl IntoIterator<Item = u32>) -> Vec<Target<u32>> {
        let made = addresses.into_iter().map(Target::new);
        made.collect()
    }

    fn served(step: &Step<u32>) -> Option<Vec<u32>> {
        let list = step.serve.as_ref()?;
        Some(list.iter().map(|target| target.address).collect())
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn equal_sets_are_served_once() {
        let now = Instant::now();
        let mut keeper = Keeper::new(WhenEmpty::Keep, None);
        assert_eq!(served(&keeper.answer(list([1, 2]), now)), Some(vec![1, 2]));
        assert_eq!(served(&keeper.answer(list([2, 1, 2]), now)), None);
        let heavier = vec![Target::new(1).weight(2), Target::new(2)];
        assert_eq!(served(&keeper.answer(heavier, now)), Some(vec![1, 2]));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_keep_the_set_and_are_told_once() {
        let now = Instant::now();
        let mut keeper = Keeper::new(WhenEmpty::Keep, None);
        keeper.answer(list([1]), now);
        let step = keeper.fail("a".into(), now + secs(1));
        assert_eq!(step.news, [News::Fails { error: "a".into() }]);
        assert!(keeper.fail("b".into(), now + secs(2)).news.is_empty());
        let state = keeper.state();
        assert!(state.is_stale() && state.targets == 1);
        assert_eq!(state.last_failure.as_ref().unwrap().error, "b");
        let step = keeper.answer(list([1]), now + secs(9));
        let stale_for = secs(8);
        assert_eq!(step.news, [News::IsWell { stale_for }]);
        assert!(!keeper.state().is_stale());
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_answer_is_believed_as_told() {
        let now = Instant::now();
        for (when_empty, believed_after) in [
            (WhenEmpty::Believe, Some(0)),
            (WhenEmpty::KeepFor(secs(30)), Some(30)),
            (WhenEmpty::KeepFor(Duration::MAX), None),
            (WhenEmpty::Keep, None),
        ] {
            let mut keeper = Keeper::new(when_empty, None);
            // Before the first answer with targets there is nothing to keep.
            assert_eq!(served(&keeper.answer(list([]), now)), Some(vec![]));
            keeper.answer(list([1]), now);
            let mut believed = None;
            for second in 0..100 {
                let step = keeper.answer(list([]), now + secs(second));
                if step.serve.is_some() {
                    believed.get_or_insert(second);
                }
            }
            assert_eq!(believed, believed_after, "{when_empty:?}");
            // Targets are believed at once.
            let step = keeper.answer(list([2]), now + secs(100));
            assert_eq!(served(&step), Some(vec![2]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_believed_by_the_clock_unless_the_source_fails() {
        let now = Instant::now();
        let mut keeper = Keeper::new(WhenEmpty::KeepFor(secs(30)), None);
        keeper.answer(list([1]), now);
        let step = keeper.answer(list([]), now);
        let (why, kept, answered) = (Why::Empty, 1, 0);
        assert_eq!(
            step.news,
            [News::Keeps {
                why,
                kept,
                answered
            }]
        );
        assert_eq!(keeper.due(), Some(now + secs(30)));
        keeper.fail("gone".into(), now + secs(10));
        assert_eq!(keeper.due(), None);
        assert_eq!(served(&keeper.pass(now + secs(40))), None);
        // The first answer of a registry that has come back is not believed by itself.
        assert_eq!(served(&keeper.answer(list([]), now + secs(41))), None);
        assert_eq!(served(&keeper.pass(now + secs(70))), None);
        assert_eq!(served(&keeper.pass(now + secs(71))), Some(vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_that_shrinks_by_more_than_half_is_kept_if_asked() {
        let now = Instant::now();
        let mut keeper = Keeper::new(WhenEmpty::Believe, Some(secs(10)));
        keeper.answer(list(0..10), now);
        assert_eq!(
            served(&keeper.answer(list(0..5), now)),
            Some(vec![0, 1, 2, 3, 4])
        );
        assert_eq!(served(&keeper.answer(list(0..2), now)), None);
        // It has come back.
        assert_eq!(served(&keeper.answer(list(0..5), now + secs(9))), None);
        assert_eq!(keeper.due(), None);
        keeper.answer(list(0..1), now + secs(20));
        keeper.answer(list(0..2), now + secs(25));
        assert_eq!(served(&keeper.pass(now + secs(30))), Some(vec![0, 1]));
        assert_eq!(
            served(&keeper.answer(list([]), now + secs(31))),
            Some(vec![])
        );
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let mut keeper = Keeper::<u32>::new(WhenEmpty::Keep, None);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            keeper.failures += 1;
            pauses.push(keeper.longest_pause().as_millis());
        }
        let doubled = (0..9).map(|k| 100 << k).chain([51_200, 60_000, 60_000]);
        assert!(pauses.iter().copied().eq(doubled), "{pauses:?}");
    }
}
