use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use tokio::{runtime::Handle, sync::watch, time::timeout};

use super::{
    error::StartError,
    found::Found,
    keeper::Keeper,
    settings::{Settings, source_setters},
    state::SourceState,
    task,
};
use crate::{
    endpoint::{Address, IntoTarget, Target},
    guard::{Panicked, guarded, guarded_future},
    timer,
};

/// A source of targets that has not been started yet; made by [`poll`] and [`follow`].
///
/// - On failure the last good set stays. The source is asked again after a random pause of up to
///   100 ms, and twice as long after each further failure, up to a minute.
/// - An event tells of each change: at `warn` when the source begins to fail or an answer is not
///   believed, at `info` when it is well again, with how long the set was stale.
/// - Sets that are equal are one. Order means nothing. Of targets with the same address, the first
///   counts.
/// - Before the first answer with targets there is nothing to keep: an empty one is believed.
#[must_use = "a source does nothing unless started"]
pub struct Source<A = SocketAddr> {
    /// What it is called unless it is named.
    kind: Arc<str>,
    lists: Lists<A>,
    /// The pause after a success.
    every: Duration,
    settings: Settings,
}

/// The answers of a source. An error is told by its text.
pub(super) type Lists<A> = Pin<Box<dyn Stream<Item = Answer<A>> + Send>>;

pub(super) type Answer<A> = Result<Vec<Target<A>>, String>;

/// Makes a source of a function that asks a registry, again and again.
///
/// It is asked again `every` so long after an answer, with up to a tenth more at random, so that
/// clients do not ask at the same moments. An answer that takes more than ten seconds is a failure;
/// so is a panic.
///
/// # Panics
///
/// If `every` is zero.
///
/// ```
/// use std::{net::SocketAddr, time::Duration};
/// use tower_lb::discover;
///
/// # async fn ask() -> Result<Vec<SocketAddr>, std::io::Error> {
/// #     Ok(vec![SocketAddr::from(([10, 0, 0, 1], 80))])
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let found = discover::poll(Duration::from_secs(10), ask).named("users").start()?;
/// let first = found.first(Duration::from_secs(5)).await?;
/// assert_eq!(first.len(), 1);
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
#[track_caller]
pub fn poll<Ask, Asked, T, E>(every: Duration, ask: Ask) -> Source<T::Address>
where
    Ask: FnMut() -> Asked + Send + 'static,
    Asked: Future<Output = Result<Vec<T>, E>> + Send,
    T: IntoTarget<Address: Send>,
    E: fmt::Display,
{
    assert!(!every.is_zero(), "the interval must not be zero");
    let lists = stream::unfold(ask, |mut ask| async move {
        let asked = async {
            let asked = guarded(&mut ask)?;
            let answer = guarded_future(asked).await?;
            guarded(|| in_words(answer))
        };
        let answer = match timeout(LONGEST_ANSWER, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(in_panic(&panic)),
            Err(_) => Err(format!("no answer within {LONGEST_ANSWER:?}")),
        };
        Some((answer, ask))
    });
    let mut source = Source::new("poll", Box::pin(lists));
    source.every = every;
    source
}

/// Makes a source of a stream of lists, each of which is the whole set.
///
/// Of lists that are there at once, the newest counts. A large set that changes all the time is
/// taken now and then: one of ten thousand targets twice a second, while the stream may yield 256
/// lists in between.
///
/// After an error the stream is polled again, after the pause of a failed source. When it ends, the
/// last set stays. A panic of the stream ends it.
///
/// ```
/// use tower_lb::discover;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let lists = futures_util::stream::iter([Ok(vec!["a"]), Err("a pause"), Ok(vec!["a", "b"])]);
/// let found = discover::follow(lists).start()?;
/// let mut sets = found.subscribe();
/// sets.wait_for(|set| set.as_ref().is_some_and(|set| set.len() == 2)).await?;
/// # Ok::<_, tower::BoxError>(()) })?;
/// # Ok::<_, tower::BoxError>(())
/// ```
pub fn follow<L, T, E>(lists: L) -> Source<T::Address>
where
    L: Stream<Item = Result<Vec<T>, E>> + Send + 'static,
    T: IntoTarget + 'static,
    E: fmt::Display + 'static,
{
    let mut lists = Some(Box::pin(lists.map(in_words)));
    let guarded_lists = stream::poll_fn(move |cx| {
        let Some(following) = &mut lists else {
            return Poll::Ready(None);
        };
        guarded(|| following.as_mut().poll_next(cx)).unwrap_or_else(|panic| {
            lists = None;
            Poll::Ready(Some(Err(in_panic(&panic))))
        })
    });
    Source::new("follow", Box::pin(guarded_lists))
}

fn in_panic(panic: &Panicked) -> String {
    format!("it panicked: {panic}")
}

fn in_words<T: IntoTarget, E: fmt::Display>(
    answer: Result<Vec<T>, E>,
) -> Result<Vec<Target<T::Address>>, String> {
    match answer {
        Ok(list) => Ok(list.into_iter().map(T::into_target).collect()),
        Err(error) => Err(error.to_string()),
    }
}

impl<A> Source<A> {
    /// Takes what was set for a kind of source.
    #[cfg(any(
        feature = "cloud-map",
        feature = "consul",
        feature = "dns",
        feature = "file",
        feature = "kubernetes"
    ))]
    pub(in crate::discover) fn with(mut self, kind: String, settings: Settings) -> Self {
        self.kind = kind.into();
        self.settings = settings;
        self
    }

    fn new(kind: &str, lists: Lists<A>) -> Self {
        Self {
            kind: kind.into(),
            lists,
            every: Duration::ZERO,
            settings: Settings::REGISTRY,
        }
    }

    source_setters!();
}

impl<A: Address + Clone> Source<A> {
    /// Starts the task that asks. It ends when all that was made of the result is gone.
    ///
    /// # Errors
    ///
    /// If there is no tokio runtime here, or none with timers.
    pub fn start(self) -> Result<Found<A>, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        if timer::start(Duration::ZERO).is_none() {
            return Err(StartError::NoRuntime);
        }
        let (serve, lists) = watch::channel(None);
        let state = Arc::new(Mutex::new(SourceState::default()));
        let keeper = Keeper::new(self.settings.when_empty, self.settings.settle);
        let name = self.settings.name.unwrap_or(self.kind);
        runtime.spawn(task::run(
            self.lists,
            self.every,
            keeper,
            task::Shown {
                name: name.clone(),
                serve,
                state: state.clone(),
            },
        ));
        Ok(Found { name, lists, state })
    }
}

impl Source {
    /// A source that answers once and then never again.
    pub(in crate::discover) fn fixed(addresses: Vec<SocketAddr>) -> Self {
        let answer = Ok::<_, std::convert::Infallible>(addresses);
        follow(stream::iter([answer]).chain(stream::pending()))
    }
}

impl<A> fmt::Debug for Source<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("kind", &self.kind)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A registry that takes longer is as good as gone.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);
