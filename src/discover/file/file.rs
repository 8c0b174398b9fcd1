use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::stream;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::debug;

use super::format::{self, BadFile};
use crate::{
    discover::source::{Source, follow, settings::Settings},
    endpoint::Target,
};

/// Makes a source of a file that lists targets, in JSON or as plain text.
///
/// The file is read again when it changes, and every 30 s in any case. It may be replaced by a
/// rename, and may be a link into a Kubernetes config map. A file that is missing, half-written or
/// bad keeps the last set; the source's error then names line and column. An empty list keeps the
/// last set as well, unless [`when_empty`](Source::when_empty) says otherwise.
///
/// # In production
///
/// Write a new file beside the old one and rename it: readers then never see half of it. A writer
/// that has died is not seen from here; watch the file's age where that matters.
///
/// # Formats
///
/// A file that begins with `[` is JSON: a list of addresses, of objects, or of groups as in
/// Prometheus' `file_sd`, whose labels `weight`, `zone`, `priority` and `hash_key` count:
///
/// ```json
/// [
///   "10.0.0.1:80",
///   { "address": "10.0.0.2:80", "weight": 3, "zone": "eu-1a", "priority": 1, "hash_key": "b" },
///   { "targets": ["10.0.0.3:80", "10.0.0.4:80"], "labels": { "zone": "eu-1b", "job": "users" } }
/// ]
/// ```
///
/// Any other file has a target in each line, and comments:
///
/// ```text
/// 10.0.0.1:80
/// 10.0.0.2:80 weight=3 zone=eu-1a priority=1   # the new one
/// ```
pub fn file(path: impl Into<PathBuf>) -> Source {
    let path = path.into();
    let name = format!("file {}", path.display());
    let reading = Reading {
        path: path.into(),
        changed: Arc::default(),
        watcher: None,
        has_read: false,
    };
    let lists = stream::unfold(reading, |mut reading| async move {
        let list = reading.next().await;
        Some((list, reading))
    });
    follow(lists).with(name, Settings::LIST)
}

struct Reading {
    path: Arc<Path>,
    changed: Arc<Notify>,
    /// Tells `changed` while it is kept.
    watcher: Option<RecommendedWatcher>,
    has_read: bool,
}

impl Reading {
    /// Waits for a change, or for the interval, and reads the file.
    async fn next(&mut self) -> Result<Vec<Target<SocketAddr>>, BadFile> {
        if self.has_read {
            let changed = timeout(EVERY, self.changed.notified()).await;
            if changed.is_ok() {
                // A writer is often not done yet, and one change is often several events.
                sleep(WRITTEN_AFTER).await;
            }
        }
        self.has_read = true;
        // Before the file is read, so that no change after that is missed.
        self.watch();
        let path = self.path.clone();
        let read = move || {
            let text = fs::read_to_string(&path).map_err(BadFile::Unread)?;
            format::targets(&text)
        };
        match spawn_blocking(read).await {
            Ok(targets) => targets,
            Err(panic) => Err(BadFile::Unread(io::Error::other(panic))),
        }
    }

    /// Watches the folder: a rename or a changed link is a change of the folder.
    fn watch(&mut self) {
        if self.watcher.is_some() {
            return;
        }
        let changed = self.changed.clone();
        let tell = move |event: notify::Result<notify::Event>| {
            // Reading is an event too.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                changed.notify_one();
            }
        };
        let folder = self.path.parent().filter(|folder| *folder != Path::new(""));
        let folder = folder.unwrap_or(Path::new("."));
        let watcher = notify::recommended_watcher(tell).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => debug!(?folder, %error, "not watched: read at an interval"),
        }
    }
}

/// For folders that tell of no change, such as some of network file systems.
const EVERY: Duration = Duration::from_secs(30);

const WRITTEN_AFTER: Duration = Duration::from_millis(20);
