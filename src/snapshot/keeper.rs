//! When the file is read and written, and what is told of it.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot::{Receiver, channel, error::TryRecvError};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::{Loaded, Miss, SaveError, Saved, Snapshot, load, save};
use crate::clock::unix_ms;
use crate::config::Config;
use crate::error::with_causes;

/// How often the file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Changes are collected for so long.
    pub changed: Duration,
    /// What has not changed is written after so long: that the file is old is to say
    /// that etcd was not seen since.
    pub unchanged: Duration,
    /// So long a service is to have lost most of its instances for the file to lose
    /// them too.
    pub loss_stands: Duration,
    /// The longest rest after failures; the first is as long as `changed`, and each
    /// further one twice as long as the one before it.
    pub backoff_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            changed: Duration::from_secs(5),
            unchanged: Duration::from_secs(60),
            loss_stands: Duration::from_secs(600),
            backoff_max: Duration::from_secs(300),
        }
    }
}

/// What [`Report::loaded`] may be, once the disk has answered.
pub const LOADED: [&str; 3] = ["newest", "older", "none"];

/// What the keys of [`Report::writes`] may be: written, or a
/// [`SaveError::reason`].
pub const RESULTS_OF_A_WRITE: [&str; 6] =
    [WRITTEN, "no_space", "denied", "no_folder", "too_large", "failed"];

const WRITTEN: &str = "written";

/// What is told of the file, on the pages and in `status()`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Where it is.
    pub path: String,
    /// What the thread began with: `newest`, `older` or `none`; empty while the disk
    /// has not answered.
    pub loaded: String,
    /// Why it was not the newest, or none.
    pub misses: Vec<Missed>,
    /// Unix time at which what the file holds was etcd's state; 0: not known.
    pub as_of_ms: u64,
    /// How long ago that was, when this was published; not known without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// How the writes ended: `written`, or why they failed.
    pub writes: BTreeMap<String, u64>,
    /// Why the last write failed; empty if it did not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// A file that was not used.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Missed {
    /// Its path.
    pub path: String,
    /// [`Miss::reason`].
    pub reason: String,
    /// The whole of it, in words.
    pub error: String,
}

/// Reads the file once and keeps it up to date; for one writer.
pub struct Keeper {
    path: PathBuf,
    prefix: String,
    timing: Timing,
    /// Whether a service is one of this gateway's.
    serves: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    is_on: bool,
    loading: Option<Receiver<Loaded>>,
    saving: Option<Saving>,
    /// The services that the file has more of than etcd.
    doubted: Vec<String>,
    /// What was written last.
    saved: Option<u64>,
    /// When the last attempt ended.
    last: Option<Instant>,
    failures: u32,
    report: Report,
}

struct Saving {
    changes: u64,
    ended: Receiver<Result<Saved, SaveError>>,
}

impl Keeper {
    /// One that does nothing if the configuration has no `snapshot.path`.
    pub fn new(config: &Config, timing: Timing) -> Self {
        let path = &config.snapshot.path;
        let named: HashSet<_> = config.services.keys().cloned().collect();
        let discover = config.discover.clone();
        Self {
            path: path.into(),
            prefix: config.etcd.prefix.clone(),
            timing,
            serves: Arc::new(move |name| named.contains(name) || discover.allows(name)),
            is_on: !path.is_empty(),
            loading: None,
            saving: None,
            doubted: Vec::new(),
            saved: None,
            last: None,
            failures: 0,
            report: Report { path: path.clone(), ..Report::default() },
        }
    }

    /// Whether a file is kept at all.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Where the file is, or is to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to begin with, once; `None` if there is nothing. Never ready again after
    /// that, or if no file is kept. Dropping the future loses nothing.
    pub async fn loaded(&mut self) -> Option<Snapshot> {
        if !self.is_on || !self.report.loaded.is_empty() {
            return std::future::pending().await;
        }
        let loading = self.loading.get_or_insert_with(|| {
            let (path, prefix) = (self.path.clone(), self.prefix.clone());
            in_background(move || load(&path, &prefix))
        });
        let loaded = loading.await;
        self.loading = None;
        self.report.loaded = "none".to_owned();
        let Ok(loaded) = loaded else {
            tracing::error!("reading the snapshot {} panicked", self.report.path);
            return None;
        };
        let is_first = loaded.found.is_none()
            && loaded.misses.iter().all(|(_, miss)| matches!(miss, Miss::Missing));
        for (path, miss) in loaded.misses {
            let (path, error) = (path.display().to_string(), with_causes(&miss));
            if !is_first {
                tracing::warn!("the snapshot {path} is not used: {error}");
            }
            let reason = miss.reason().to_owned();
            self.report.misses.push(Missed { path, reason, error });
        }
        if is_first {
            tracing::info!("there is no snapshot {} yet", self.report.path);
        }
        let (generation, snapshot) = loaded.found?;
        self.report.loaded = generation.as_str().to_owned();
        self.report.as_of_ms = snapshot.as_of_ms;
        Some(snapshot)
    }

    /// Begins to write what etcd holds if it is time, and takes in how the last write
    /// ended. `changes` is another number for another `view`; `is_watched` says that
    /// there are no changes that are not in it. To be called about once a second, while
    /// the view is whole.
    pub fn look(
        &mut self,
        changes: u64,
        is_watched: bool,
        now: Instant,
        view: impl FnOnce() -> Snapshot,
    ) {
        if !self.is_on || !self.has_ended(now) || !self.is_due(changes, is_watched, now) {
            return;
        }
        let snapshot = view();
        let (path, stands) = (self.path.clone(), self.timing.loss_stands);
        let serves = Arc::clone(&self.serves);
        let ended = in_background(move || save(&path, snapshot, stands, &*serves));
        self.saving = Some(Saving { changes, ended });
    }

    #[cfg(test)]
    pub(super) fn serves(&self, service: &str) -> bool {
        (self.serves)(service)
    }

    #[cfg(test)]
    pub(super) fn is_writing(&self) -> bool {
        self.saving.is_some()
    }

    /// What is told of the file; `None` if none is kept.
    pub fn report(&self) -> Option<Report> {
        let as_of_ms = self.report.as_of_ms;
        let age_ms = (as_of_ms != 0).then(|| unix_ms().saturating_sub(as_of_ms));
        self.is_on.then(|| Report { age_ms, ..self.report.clone() })
    }

    fn is_due(&self, changes: u64, is_watched: bool, now: Instant) -> bool {
        let is_saved = self.saved == Some(changes);
        let rest = if self.failures > 0 {
            let factor = 2_u32.checked_pow(self.failures - 1).unwrap_or(u32::MAX);
            self.timing.changed.saturating_mul(factor).min(self.timing.backoff_max)
        } else if is_saved {
            self.timing.unchanged
        } else {
            self.timing.changed
        };
        // What is not watched is no newer for being written anew.
        (!is_saved || is_watched) && self.last.is_none_or(|last| now >= last + rest)
    }

    /// Whether no write is under way; one that ended now is taken in.
    fn has_ended(&mut self, now: Instant) -> bool {
        let Some(saving) = &mut self.saving else { return true };
        let ended = match saving.ended.try_recv() {
            Err(TryRecvError::Empty) => return false,
            Err(TryRecvError::Closed) => None,
            Ok(ended) => Some(ended),
        };
        let changes = saving.changes;
        self.saving = None;
        self.last = Some(now);
        match ended {
            Some(Ok(saved)) => self.succeeded(saved, changes),
            Some(Err(error)) => self.failed(error.reason(), with_causes(&error)),
            None => self.failed("failed", "the write panicked".to_owned()),
        }
        true
    }

    fn succeeded(&mut self, saved: Saved, changes: u64) {
        let Report { path, .. } = &self.report;
        if let Some(miss) = &saved.put_aside {
            tracing::warn!("{path} was no snapshot and is {path}.bad now: {miss}");
        }
        for service in &saved.doubted {
            if !self.doubted.contains(service) {
                tracing::warn!(
                    "{service} has lost most of its instances; the snapshot {path} keeps them \
                     for {:?}",
                    self.timing.loss_stands
                );
            }
        }
        if self.failures > 0 {
            tracing::info!("the snapshot {path} is written again");
        }
        self.failures = 0;
        self.saved = Some(changes);
        self.doubted = saved.doubted;
        self.report.as_of_ms = saved.as_of_ms;
        self.report.error.clear();
        if saved.is_written {
            self.count(WRITTEN);
        }
    }

    fn failed(&mut self, reason: &'static str, error: String) {
        if self.report.error != error {
            let path = &self.report.path;
            tracing::warn!("the snapshot {path} stays as it was, and is tried again: {error}");
        }
        self.failures = self.failures.saturating_add(1);
        self.report.error = error;
        self.count(reason);
    }

    fn count(&mut self, result: &str) {
        *self.report.writes.entry(result.to_owned()).or_default() += 1;
    }
}

/// Does what may wait for a disk on a thread of its own. The receiver is closed if it
/// panics.
fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = channel();
    spawn_blocking(move || {
        // Whoever waited may be gone.
        let _ = sender.send(work());
    });
    receiver
}
