use std::{
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};
use tracing::{debug, info, warn};

use super::{
    keeper::{Keeper, List, News, Step, Why},
    source::{Answer, Lists},
    state::SourceState,
};
use crate::{
    endpoint::Address,
    random::{entropy, random_part},
    timer,
};

/// What others see of a source.
pub(super) struct Shown<A> {
    pub(super) name: Arc<str>,
    pub(super) serve: watch::Sender<Option<List<A>>>,
    pub(super) state: Arc<Mutex<SourceState>>,
}

/// What a source waits for.
struct Waiting<A> {
    lists: Lists<A>,
    /// Whether to poll the lists is to ask, so that it is not done without a pause.
    is_asked: bool,
    /// An answer that came while others did, and that is no list.
    next: Option<Option<Answer<A>>>,
    /// Runs until the source is asked again, or until the next list is taken.
    pause: Option<Pin<Box<Sleep>>>,
    /// Runs until an answer that is held is believed.
    due: Option<Pin<Box<Sleep>>>,
}

enum Event<A> {
    /// `None`: the source has ended.
    Answer(Option<Answer<A>>),
    /// An answer that is held is to be believed.
    Due,
}

/// Asks until nobody listens any more, or until the source has ended.
pub(super) async fn run<A: Address + Clone>(
    lists: Lists<A>,
    every: Duration,
    mut keeper: Keeper<A>,
    shown: Shown<A>,
) {
    let mut rng = SmallRng::seed_from_u64(entropy());
    let mut waiting = Waiting {
        lists,
        is_asked: !every.is_zero(),
        next: None,
        pause: None,
        due: None,
    };
    let mut closed = pin!(shown.serve.closed());
    loop {
        let event = std::future::poll_fn(|cx| match closed.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => waiting.poll(cx).map(Some),
        });
        let now = Instant::now;
        let step = match event.await {
            None => return debug!(source = %shown.name, "nobody listens: the source ends"),
            Some(Event::Due) => keeper.pass(now()),
            Some(Event::Answer(Some(Ok(list)))) => {
                let step = keeper.answer(list, now());
                let pause = every.saturating_add(random_part(every / 10, &mut rng));
                let pause = match &step.serve {
                    Some(set) => pause.max(rest_after(set.len())),
                    None => pause,
                };
                waiting.pause = (!pause.is_zero()).then(|| timer::start(pause)).flatten();
                step
            }
            Some(Event::Answer(Some(Err(error)))) => {
                let step = keeper.fail(error, now());
                let pause = random_part(keeper.longest_pause(), &mut rng);
                waiting.pause = timer::start(pause);
                step
            }
            Some(Event::Answer(None)) => {
                keeper.set_ended();
                shown.tell_state(keeper.state());
                return warn!(source = %shown.name, "the source has ended: the last set stays");
            }
        };
        waiting.due = keeper.due().and_then(|due| timer::start(due - now()));
        // The state first: who hears of a new set may look at it.
        shown.tell_state(keeper.state());
        shown.take(step);
        if waiting.pause.is_none() {
            // A stream that always has another list must not keep the thread to itself.
            tokio::task::yield_now().await;
        }
    }
}

impl<A> Waiting<A> {
    /// Ready with the next answer, after the pause, or when one that is held is due.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event<A>> {
        let due = self.due.as_mut();
        if due.is_some_and(|due| due.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Event::Due);
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        self.poll_lists(cx).map(Event::Answer)
    }

    /// Takes the newest of the lists that a stream has by now.
    fn poll_lists(&mut self, cx: &mut Context<'_>) -> Poll<Option<Answer<A>>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(next);
        }
        let mut newest = ready!(self.lists.as_mut().poll_next(cx));
        for _ in 1..MOST_AT_ONCE {
            if self.is_asked || !matches!(newest, Some(Ok(_))) {
                break;
            }
            match self.lists.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(list))) => newest = Some(Ok(list)),
                Poll::Ready(other) => {
                    self.next = Some(other);
                    break;
                }
                Poll::Pending => break,
            }
        }
        Poll::Ready(newest)
    }
}

/// Returns how long a set is left alone.
///
/// To take another one costs each balancer some half a microsecond for each target. Sets that change
/// all the time must not cost more than about one percent of a core: a set of a thousand rests for
/// 50 ms, one of ten thousand or more for half a second, and a small one not at all.
fn rest_after(targets: usize) -> Duration {
    let targets = u32::try_from(targets).unwrap_or(u32::MAX);
    match Duration::from_micros(50).saturating_mul(targets) {
        rest if rest < SHORTEST_REST => Duration::ZERO,
        rest => rest.min(LONGEST_REST),
    }
}

/// What tokio's timers can tell.
const SHORTEST_REST: Duration = Duration::from_millis(1);

const LONGEST_REST: Duration = Duration::from_millis(500);

/// So many lists that are there at once are one. A stream that always has another one must not keep
/// the thread to itself.
const MOST_AT_ONCE: usize = 256;

impl<A> Shown<A> {
    fn tell_state(&self, state: &SourceState) {
        let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone_from(state);
    }

    fn take(&self, Step { serve, news }: Step<A>) {
        if let Some(list) = serve {
            debug!(source = %self.name, targets = list.len(), "another set");
            self.serve.send_replace(Some(list));
        }
        let source = &*self.name;
        for news in news {
            match news {
                News::Fails { error } => {
                    warn!(source, %error, "the source fails: the last set stays");
                }
                News::IsWell { stale_for } => {
                    info!(source, ?stale_for, "the source is well again");
                }
                News::Keeps {
                    why,
                    kept,
                    answered,
                } => {
                    let because = why.in_words();
                    warn!(source, kept, answered, "{because}: the last set stays");
                }
                News::Believes { why, targets } => {
                    let because = why.in_words();
                    warn!(source, targets, "{because}, and still does: believed");
                }
            }
        }
    }
}

impl Why {
    const fn in_words(self) -> &'static str {
        match self {
            Self::Empty => "the source answers with nothing",
            Self::Shrunk => "the source answers with less than half of the targets",
        }
    }
}
