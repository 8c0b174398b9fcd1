//! Sources: what they ask, what they believe, and when they end.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, advance, sleep},
};
use tower::{ServiceBuilder, ServiceExt};
use tower_lb::{
    discover::{Found, NoAnswer, Source, StartError, WhenEmpty},
    *,
};

use crate::support::*;

/// A registry that answers as it is told.
#[derive(Clone, Default)]
struct Registry(Arc<State>);

#[derive(Default)]
struct State {
    answer: Mutex<Option<Says>>,
    asked: AtomicUsize,
}

/// Without one, the registry hangs.
#[derive(Clone)]
enum Says {
    List(Vec<usize>),
    Error,
    Panic,
}

impl Registry {
    fn says(says: Says) -> Self {
        let registry = Self::default();
        registry.say(Some(says));
        registry
    }

    fn say(&self, says: Option<Says>) {
        *self.0.answer.lock().unwrap() = says;
    }

    fn list(&self, addresses: &[usize]) {
        self.say(Some(Says::List(addresses.to_vec())));
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Relaxed)
    }

    fn poll(&self) -> Source<usize> {
        let state = self.0.clone();
        discover::poll(SECOND, move || {
            state.asked.fetch_add(1, Relaxed);
            let answer = state.answer.lock().unwrap().clone();
            async move {
                match answer {
                    Some(Says::List(list)) => Ok(list),
                    Some(Says::Error) => Err("the registry is away"),
                    Some(Says::Panic) => panic!("a registry that panics, as it should"),
                    None => std::future::pending().await,
                }
            }
        })
    }
}

fn addresses(found: &Found<usize>) -> Vec<usize> {
    let targets = found.targets();
    targets.iter().map(|target| target.address).collect()
}

const SECOND: Duration = Duration::from_secs(1);

fn balance(found: &Found<usize>) -> Balance<RoundRobin, Client, (), usize> {
    ServiceBuilder::new()
        .layer(BalanceLayer::new(RoundRobin::seeded(1)))
        .layer(found.clone())
        .service(factory(&servers(&[Behaviour::Answer(ms(0)); 10])))
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_not_known_yet_is_not_empty() {
    let registry = Registry::says(Says::Error);
    let found = registry.poll().start().unwrap();
    let balance = balance(&found);
    let mut answer = tokio_test::task::spawn(ServiceExt::<()>::oneshot(balance, ()));
    tokio_test::assert_pending!(answer.poll());
    sleep(10 * SECOND).await;
    assert!(!answer.is_woken());
    registry.list(&[3]);
    assert_eq!(answer.await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_first_answer_hears_why_there_is_none() {
    let registry = Registry::says(Says::Error);
    let found = registry.poll().named("users").start().unwrap();
    let start = Instant::now();
    let error: NoAnswer = found.first(5 * SECOND).await.unwrap_err();
    assert_eq!(start.elapsed(), 5 * SECOND);
    assert_eq!(
        error.to_string(),
        "users has not answered within 5s: the registry is away"
    );
    registry.list(&[1, 2]);
    let first = found.first(Duration::MAX).await.unwrap();
    assert_eq!(first.len(), 2);
    assert_eq!(addresses(&found), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn while_a_source_fails_its_set_stays_and_it_is_asked_after_growing_pauses() {
    for fault in [Some(Says::Error), Some(Says::Panic), None] {
        let hangs = fault.is_none();
        let registry = Registry::says(Says::List(vec![1]));
        let found = registry.poll().start().unwrap();
        found.first(SECOND).await.unwrap();
        let balance = balance(&found);
        registry.say(fault);
        let before = registry.asked();
        sleep(3600 * SECOND).await;
        let asked = registry.asked() - before;
        // About every 30 s, and ten more to say so if it hangs.
        let expected = if hangs { 70..120 } else { 90..160 };
        assert!(expected.contains(&asked), "asked {asked} times");
        let state = found.state();
        assert!(state.is_failing && state.is_stale());
        assert!(state.age().unwrap() > 3590 * SECOND);
        assert_eq!(balance.clone().oneshot(()).await.unwrap(), 1);
        registry.list(&[2]);
        sleep(90 * SECOND).await;
        assert_eq!(balance.oneshot(()).await.unwrap(), 2);
        assert!(!found.state().is_stale());
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_is_believed_after_a_while() {
    for (when_empty, kept_for) in [
        (None, Some(30)),
        (Some(WhenEmpty::KeepFor(5 * SECOND)), Some(5)),
        (Some(WhenEmpty::Believe), Some(0)),
        (Some(WhenEmpty::Keep), None),
    ] {
        let registry = Registry::says(Says::List(vec![1, 2]));
        let source = registry.poll();
        let source = match when_empty {
            Some(when_empty) => source.when_empty(when_empty),
            None => source,
        };
        let found = source.start().unwrap();
        found.first(SECOND).await.unwrap();
        registry.list(&[]);
        let mut gone_after = None;
        for second in 0..100 {
            if addresses(&found).is_empty() {
                gone_after.get_or_insert(second);
            }
            sleep(SECOND).await;
        }
        match (kept_for, gone_after) {
            (None, None) => assert!(found.state().is_keeping),
            (Some(kept), Some(gone)) => assert!((kept..=kept + 3).contains(&gone), "{gone}"),
            other => panic!("{when_empty:?}: {other:?}"),
        }
        registry.list(&[7]);
        sleep(3 * SECOND).await;
        assert_eq!(addresses(&found), [7]);
        assert!(!found.state().is_stale());
    }
}

#[tokio::test(start_paused = true)]
async fn equal_sets_send_nothing_and_the_order_means_nothing() {
    let registry = Registry::says(Says::List(vec![1, 2, 3]));
    let found = registry.poll().start().unwrap();
    let mut sets = found.subscribe();
    sets.changed().await.unwrap();
    for answer in [[3, 2, 1], [1, 2, 3], [2, 3, 1]] {
        registry.list(&answer);
        sleep(5 * SECOND).await;
        assert!(!sets.has_changed().unwrap());
    }
    registry.list(&[1, 2]);
    sleep(5 * SECOND).await;
    assert!(sets.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn clients_that_started_together_do_not_ask_together() {
    let registries: Vec<_> = (0..100)
        .map(|_| Registry::says(Says::List(vec![1])))
        .collect();
    let all: Vec<_> = registries
        .iter()
        .map(|r| r.poll().start().unwrap())
        .collect();
    settle().await;
    advance(Duration::from_millis(1005)).await;
    settle().await;
    let asked = registries.iter().filter(|r| r.asked() > 1).count();
    assert!(asked < 30, "{asked} of 100 ask again within 5 ms");
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_all_that_was_made_of_it() {
    let registry = Registry::says(Says::List(vec![1]));
    let found = registry.poll().start().unwrap();
    let balance = balance(&found);
    found.first(SECOND).await.unwrap();
    let other = found.clone();
    let receiver = other.subscribe();
    drop(found);
    drop(other);
    drop(receiver);
    let before = registry.asked();
    sleep(10 * SECOND).await;
    assert!(registry.asked() > before, "the balancer still listens");
    assert_eq!(Arc::strong_count(&registry.0), 2);
    drop(balance);
    sleep(SECOND).await;
    assert_eq!(Arc::strong_count(&registry.0), 1);
}

#[tokio::test(start_paused = true)]
async fn the_last_set_of_a_stream_that_has_ended_stays() {
    let (lists, rx) = mpsc::unbounded_channel::<Result<Vec<usize>, &str>>();
    let rx = tokio_stream::wrappers::UnboundedReceiverStream::new(rx);
    let found = discover::follow(rx).start().unwrap();
    let balance = balance(&found);
    lists.send(Ok(vec![1])).unwrap();
    lists.send(Err("a pause")).unwrap();
    lists.send(Ok(vec![2])).unwrap();
    settle().await;
    assert_eq!(balance.clone().oneshot(()).await.unwrap(), 1);
    assert!(found.state().is_failing);
    sleep(SECOND).await;
    assert_eq!(balance.clone().oneshot(()).await.unwrap(), 2);
    drop(lists);
    settle().await;
    assert!(found.state().has_ended && found.state().is_stale());
    assert_eq!(balance.oneshot(()).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_without_an_answer_is_not_waited_for() {
    let none = stream::iter(Vec::<Result<Vec<usize>, &str>>::new());
    let panics = stream::poll_fn(|_| panic!("a stream that panics, as it should"));
    let panics = panics.map(|(): ()| Ok::<Vec<usize>, &str>(Vec::new()));
    for (source, why) in [
        (discover::follow(none), None),
        (
            discover::follow(panics),
            Some("it panicked: a stream that panics, as it should"),
        ),
    ] {
        let found = source.start().unwrap();
        let balance = balance(&found);
        let error = found.first(10 * SECOND).await.unwrap_err();
        assert!(error.has_ended());
        assert_eq!(error.failure(), why);
        let error = balance.oneshot(()).await.unwrap_err();
        assert!(error.downcast_ref::<NoEndpoints>().unwrap().has_ended());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_another_list_leaves_the_thread_to_others() {
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let lists = stream::repeat_with(move || {
        let turn = counted.fetch_add(1, Relaxed);
        Ok::<_, &str>(vec![turn % 3])
    });
    // Not without end, so that a task that keeps the thread ends in time.
    let found = discover::follow(lists.take(100_000)).start().unwrap();
    let first = found.first(SECOND).await.unwrap();
    assert_eq!(first.len(), 1);
    let turns = turns.load(Relaxed);
    assert!(
        turns < 1_000,
        "{turns} lists before anybody else had a turn"
    );
    drop(found);
}

/// To take a large set costs all that follow it: changes that come one after the other are one.
#[tokio::test(start_paused = true)]
async fn large_sets_that_change_all_the_time_are_taken_now_and_then() {
    let taken_in_a_second = async |targets: usize| {
        let lists = stream::unfold(0, move |last| async move {
            sleep(Duration::from_millis(2)).await;
            let list = (last..last + targets).collect::<Vec<_>>();
            Some((Ok::<_, &str>(list), last + 1))
        });
        let found = discover::follow(lists).start().unwrap();
        let mut sets = found.subscribe();
        let end = Instant::now() + SECOND;
        let mut count = 0;
        while tokio::time::timeout_at(end, sets.changed()).await.is_ok() {
            count += 1;
        }
        count
    };
    let (few, many) = (taken_in_a_second(10).await, taken_in_a_second(10_000).await);
    assert!(few > 300, "{few} small sets");
    assert!((2..=3).contains(&many), "{many} large sets");
}

/// However many lists there are, the newest one counts, and what follows is not lost.
#[tokio::test(start_paused = true)]
async fn of_lists_that_are_there_at_once_the_newest_counts() {
    let lists = (0..500).map(|i| Ok(vec![i])).chain([Err("a failure")]);
    let found = discover::follow(stream::iter(lists)).start().unwrap();
    settle().await;
    assert_eq!(addresses(&found), [499]);
    assert_eq!(found.state().last_failure.unwrap().error, "a failure");
}

#[test]
fn without_a_runtime_or_its_timers_a_source_says_so() {
    let start = || Registry::default().poll().start().map(drop);
    assert_eq!(start(), Err(StartError::NoRuntime));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    assert_eq!(start(), Err(StartError::NoRuntime));
}
