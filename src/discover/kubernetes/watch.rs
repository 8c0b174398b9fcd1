use std::{fmt, path::PathBuf, pin::Pin, time::Duration};

use futures_util::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Config,
    config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError},
    runtime::watcher::{self, Event},
};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::slices::{NoSuchPort, Reading, Slices};
use crate::endpoint::Target;

/// Where the API server is, and which service is watched.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) service: String,
    pub(super) namespace: Option<String>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) context: Option<String>,
}

/// Watches the slices of a service.
pub(super) struct Watch {
    place: Place,
    reading: Reading,
    /// `None` at first, and after a failure: credentials may be others then.
    watching: Option<Watching>,
}

struct Watching {
    events: Pin<Box<dyn Stream<Item = watcher::Result<Event<EndpointSlice>>> + Send>>,
    slices: Slices,
    /// What is being listed. It takes the place of `slices` once it is complete.
    listed: Option<Slices>,
    /// When the last list was complete, or the watch last broke.
    since: Option<Instant>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    Kubeconfig(KubeconfigError),
    Inferred(InferConfigError),
    Client(kube::Error),
    Watch(watcher::Error),
    Port(NoSuchPort),
    Slow,
}

impl Watch {
    pub(super) const fn new(place: Place, reading: Reading) -> Self {
        Self {
            place,
            reading,
            watching: None,
        }
    }

    /// Waits for the next complete set.
    pub(super) async fn next(&mut self) -> Result<Vec<Target>, Failed> {
        let mut watching = match self.watching.take() {
            Some(watching) => watching,
            None => {
                let opened = timeout(LONGEST_ANSWER, self.place.open()).await;
                opened.unwrap_or(Err(Failed::Slow))?
            }
        };
        watching.next(&self.reading).await?;
        // One change is often several events, and often there are several changes.
        while let Some(event) = watching.events.next().now_or_never().flatten() {
            watching.take(event, &self.reading)?;
        }
        if watching.listed.is_some() {
            watching.next(&self.reading).await?;
        }
        let targets = watching.slices.targets(&self.reading);
        self.watching = Some(watching);
        targets.map_err(Failed::Port)
    }
}

impl Place {
    async fn config(&self) -> Result<Config, Failed> {
        if self.kubeconfig.is_none() && self.context.is_none() {
            return Config::infer().await.map_err(Failed::Inferred);
        }
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(Failed::Kubeconfig)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        config.map_err(Failed::Kubeconfig)
    }

    async fn open(&self) -> Result<Watching, Failed> {
        let mut config = self.config().await?;
        // The watcher limits how long a watch is idle, but not how long the server takes to begin.
        config.read_timeout = Some(LONGEST_IDLE);
        config.reset_reader_on_write = true;
        let namespace = match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => config.default_namespace.clone(),
        };
        let client = Client::try_from(config).map_err(Failed::Client)?;
        let slices: Api<EndpointSlice> = Api::namespaced(client, &namespace);
        let selected = format!("kubernetes.io/service-name={}", self.service);
        let config = watcher::Config::default()
            .labels(&selected)
            .timeout(WATCH_SECS);
        Ok(Watching {
            events: Box::pin(watcher::watcher(slices, config)),
            slices: Slices::default(),
            listed: Some(Slices::default()),
            since: None,
        })
    }
}

impl Watching {
    /// Waits for events until there is another complete set.
    async fn next(&mut self, reading: &Reading) -> Result<(), Failed> {
        loop {
            let event = self.events.next();
            let event = match self.listed {
                // A list is an answer; a change may take for ever.
                Some(_) => timeout(LONGEST_ANSWER, event)
                    .await
                    .map_err(|_| Failed::Slow)?,
                None => event.await,
            };
            let Some(event) = event else {
                return Err(Failed::Watch(watcher::Error::NoResourceVersion));
            };
            if self.take(event, reading)? {
                return Ok(());
            }
        }
    }

    /// Takes an event; returns whether it has changed the set.
    fn take(
        &mut self,
        event: watcher::Result<Event<EndpointSlice>>,
        reading: &Reading,
    ) -> Result<bool, Failed> {
        match event {
            Ok(Event::Init) => self.listed = Some(Slices::default()),
            Ok(Event::InitApply(slice)) => {
                let listed = self.listed.get_or_insert_default();
                listed.insert(&slice, reading);
            }
            Ok(Event::InitDone) => {
                self.slices = self.listed.take().unwrap_or_default();
                self.since = Some(Instant::now());
            }
            Ok(Event::Apply(slice)) => self.slices.insert(&slice, reading),
            Ok(Event::Delete(slice)) => self.slices.remove(&slice),
            Err(error) => {
                let now = Instant::now();
                let lasted = self.since.map(|since| now.saturating_duration_since(since));
                if !is_routine(&error) || lasted.is_none_or(|lasted| lasted < ROUTINE) {
                    return Err(Failed::Watch(error));
                }
                debug!(%error, "the watch goes on");
                self.since = Some(now);
            }
        }
        Ok(self.listed.is_none())
    }
}

/// Returns whether a watch goes on by itself after an error: one that broke where it was, and one
/// that is too old with another list.
fn is_routine(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchFailed(_) => true,
        watcher::Error::WatchError(status) => status.code == GONE,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == GONE,
        _ => false,
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig(error) => write!(f, "{error}{}", Causes(error)),
            Self::Inferred(error) => write!(f, "{error}{}", Causes(error)),
            Self::Client(kube::Error::TlsRequired) => f.write_str(
                "the API server is reached by TLS: turn on the feature `kubernetes-rustls`",
            ),
            Self::Client(error) => write!(f, "{error}{}", Causes(error)),
            Self::Watch(error) => write!(f, "{error}{}", Causes(error)),
            Self::Port(error) => write!(f, "{error}"),
            Self::Slow => write!(f, "no answer within {LONGEST_ANSWER:?}"),
        }
    }
}

/// Prints the causes of an error that it does not print itself.
struct Causes<'a>(&'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !printed.contains(&text) {
                write!(f, ": {text}")?;
                printed = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// An API server that takes longer is as good as gone.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// A watch is asked for again after so long, and is taken for dead 5 s later.
const WATCH_SECS: u32 = 60;

/// A connection that is idle for longer is dead.
const LONGEST_IDLE: Duration = Duration::from_secs(75);

/// A watch that has gone on for so long may break without being a failure.
const ROUTINE: Duration = Duration::from_secs(5);

/// HTTP's status for a version that is too old to be watched from.
const GONE: u16 = 410;
