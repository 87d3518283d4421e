//! Follows a prefix as the gateway does, and keeps what it hears.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{EtcdError, EtcdSource};
use ipconfig::watcher::{self, Event, Timing, WatchState};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::wait_until;

/// For whatever is to happen.
pub const SOON: Duration = Duration::from_secs(15);

/// As in production, but for the patience.
pub const TIMING: Timing = Timing {
    idle: Duration::from_millis(300),
    answer: Duration::from_secs(2),
    backoff_base: Duration::from_millis(50),
    backoff_max: Duration::from_millis(500),
    settled: Duration::from_secs(1),
    audit: Duration::from_secs(3600),
    audit_limit: Duration::from_secs(5),
};

/// For keys below `/t`.
pub fn config(endpoints: &[String]) -> EtcdConfig {
    EtcdConfig { endpoints: endpoints.to_vec(), prefix: "/t".into(), ..EtcdConfig::default() }
}

/// Follows `/t/` and keeps what the events amount to.
pub struct Follower {
    pub seen: Arc<Mutex<Seen>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Default)]
/// What was seen so far.
pub struct Seen {
    pub keys: BTreeMap<String, String>,
    list: Option<BTreeMap<String, String>>,
    events: Vec<Event>,
    is_audit: bool,
    /// Audits in which something differed.
    pub audit_differences: usize,
}

impl Seen {
    fn apply(&mut self, event: Event) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match &event {
            Event::Init => self.list = Some(BTreeMap::new()),
            Event::InitDone { .. } => {
                let list = self.list.take().expect("a list that began");
                if std::mem::take(&mut self.is_audit) && list != self.keys {
                    self.audit_differences += 1;
                }
                self.keys = list;
            }
            Event::Put { key, value, .. } => {
                let keys = self.list.as_mut().unwrap_or(&mut self.keys);
                keys.insert(text(key), text(value));
            }
            Event::Delete { key, .. } => {
                self.keys.remove(&text(key));
            }
            Event::Audit => self.is_audit = true,
            Event::State(_) | Event::Progress { .. } => {}
        }
        self.events.push(event);
    }

    pub fn state(&self) -> Option<WatchState> {
        let state =
            |event: &Event| if let Event::State(state) = event { Some(*state) } else { None };
        self.events.iter().rev().find_map(state)
    }
}

impl Follower {
    pub fn start(endpoints: &[String]) -> Self {
        Self::of(&config(endpoints))
    }

    pub fn of(config: &EtcdConfig) -> Self {
        Self::with(config, TIMING)
    }

    pub fn with(config: &EtcdConfig, timing: Timing) -> Self {
        let (sender, mut receiver) = mpsc::channel(64);
        let source = EtcdSource::new(config);
        let rng = SmallRng::seed_from_u64(1);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let applied = Arc::clone(&seen);
        let read = async move {
            while let Some(event) = receiver.recv().await {
                applied.lock().unwrap().apply(event);
            }
        };
        let watch = watcher::run(source, timing, rng, sender);
        Self { seen, tasks: [tokio::spawn(watch), tokio::spawn(read)] }
    }

    pub async fn wait_for(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        wait_until(what, SOON, async || condition(&self.seen.lock().unwrap())).await;
    }

    pub async fn wait_for_key(&self, key: &str, value: &str) {
        let what = format!("{key} = {value}");
        self.wait_for(&what, |seen| seen.keys.get(key).is_some_and(|found| found == value)).await;
    }

    pub fn keys(&self) -> BTreeMap<String, String> {
        self.seen.lock().unwrap().keys.clone()
    }

    pub fn count(&self, condition: impl Fn(&Event) -> bool) -> usize {
        self.seen.lock().unwrap().events.iter().filter(|event| condition(event)).count()
    }

    pub fn lists(&self) -> usize {
        self.count(|event| matches!(event, Event::Init))
    }

    /// The changes since the last list, in order: `+key` and `-key`.
    pub fn changes(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let text = |sign: char, key: &[u8]| format!("{sign}{}", String::from_utf8_lossy(key));
        let mut changes = vec![];
        for event in &seen.events {
            match event {
                Event::InitDone { .. } => changes.clear(),
                Event::Put { key, .. } => changes.push(text('+', key)),
                Event::Delete { key, .. } => changes.push(text('-', key)),
                _ => {}
            }
        }
        changes
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The whole error as it is logged and debugged.
pub fn texts(error: &EtcdError) -> String {
    let mut texts = format!("{error:?} {error}");
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        texts.push_str(&format!(": {error}"));
        cause = error.source();
    }
    texts
}
