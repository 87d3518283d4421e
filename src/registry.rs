//! Events in, what exists now out: the instances of each service, merged from the
//! configuration file and etcd, with the state of each and its [`Load`].
//!
//! Nothing is lost to a fault on the way. A list replaces what was known only
//! when it is complete, and then by difference, so that the windows of those that
//! are still there live on. A bad record leaves the last good one in place. An
//! instance's silence is judged beside that of the others (see `silence`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{Config, Discover, ServiceConfig, WindowConfig};
use crate::model::{Instance, InstanceReport, Report};
use crate::watcher::{Event, WatchState};
use crate::window::Load;
use crate::wire::{self, Key};

pub(crate) mod rejects;
mod service;
mod silence;

use rejects::Rejects;
use service::{Layer, Service};
use silence::Rule;

/// What a member's place in the ranking rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A fresh status.
    Reporting,
    /// It declares a status and none is fresh; its silence is not laid to it.
    Unknown,
    /// It declares no status and gave none.
    Unreported,
}

impl State {
    /// The name in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reporting => "reporting",
            Self::Unknown => "unknown",
            Self::Unreported => "unreported",
        }
    }
}

/// An instance that may be offered.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// As registered.
    pub instance: &'a Instance,
    /// How much is known of it.
    pub state: State,
    /// What its window says; of a [`State::Reporting`] one only.
    pub load: Option<Load>,
}

/// One service at one moment.
#[derive(Debug, Clone)]
pub struct Reading<'a> {
    /// The default one for a service that the configuration does not name.
    pub config: &'a ServiceConfig,
    /// By id. Without those that drain, were put out for their silence, or have
    /// an address that another one is offered at.
    pub members: Vec<Member<'a>>,
}

/// What exists, by the events so far.
#[derive(Debug)]
pub struct Registry {
    prefix: String,
    discover: Discover,
    window: WindowConfig,
    silence: Rule,
    /// How long after its last status a service's reading changes by itself.
    settled_after_ms: u64,
    started: Instant,

    services: BTreeMap<String, Service>,
    /// The instance and status keys that exist, of services that exist or may.
    keys: HashMap<Vec<u8>, KeyState>,
    /// Counts the lists, complete or not.
    list: u64,
    is_listing: bool,
    has_synced: bool,
    revision: i64,
    /// What is not in `keys` did not exist at this revision, so that a put from
    /// before it is a repetition.
    absent_at: i64,
    watch_state: WatchState,

    rejects: Rejects,
    dirty: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct KeyState {
    mod_revision: i64,
    /// The last list when the key was last put.
    list: u64,
    /// Since when, without a break, a status key's batches name instances that
    /// do not exist.
    strangers_since_ms: Option<u64>,
}

/// An instance's silence may last so many of the exporter's intervals.
const SILENT_INTERVALS: u64 = 3;

/// Where the registry's clock begins, so that the time of receipt less the age
/// of a status does not go below 0.
const CLOCK_START_MS: u64 = wire::MAX_STATUS_AGE.as_millis() as u64;

/// More than the longest good key with a prefix of usual length.
const MAX_PRINTED_BYTES: usize = 512;

/// Enough to see what they are.
const MAX_PRINTED_STRANGERS: usize = 3;

const UNKNOWN_INSTANCE: &str = "unknown_instance";

impl Registry {
    /// The services and instances of the configuration file.
    pub fn new(config: &Config, now: Instant) -> Self {
        let interval_ms = to_ms(config.exporter.interval);
        let limit_ms = SILENT_INTERVALS * interval_ms;
        let window_ms = to_ms(config.window.bucket) * u64::from(config.window.buckets);
        let mut registry = Self {
            prefix: config.etcd.prefix.clone(),
            discover: config.discover.clone(),
            window: config.window.clone(),
            silence: Rule { interval_ms, limit_ms },
            settled_after_ms: limit_ms.max(window_ms),
            started: now,
            services: BTreeMap::new(),
            keys: HashMap::new(),
            list: 0,
            is_listing: false,
            has_synced: false,
            revision: 0,
            absent_at: 0,
            watch_state: WatchState::Connecting,
            rejects: Rejects::default(),
            dirty: config.services.keys().cloned().collect(),
        };
        for (name, service) in &config.services {
            registry.services.insert(name.clone(), Service::configured(service.clone()));
            for instance in &service.instances {
                registry.register(name, instance.clone(), Layer::File, CLOCK_START_MS);
            }
        }
        registry
    }

    /// Takes in one event, received at `now`.
    pub fn apply(&mut self, event: &Event, now: Instant) {
        let now_ms = self.clock_ms(now);
        match event {
            Event::State(state) => self.watch_state = *state,
            Event::Init => {
                self.is_listing = true;
                self.list += 1;
            }
            Event::Put { key, value, mod_revision } => self.put(key, value, *mod_revision, now_ms),
            Event::Delete { key, mod_revision } => self.delete(key, *mod_revision, now_ms),
            Event::InitDone { revision } => self.finish_list(*revision, now_ms),
            Event::Progress { revision } => self.revision = self.revision.max(*revision),
        }
    }

    /// Lets time pass: judges silence, and marks the services whose readings
    /// change by time alone. To be called about once a second.
    pub fn tick(&mut self, now: Instant) {
        let now_ms = self.clock_ms(now);
        let is_watching = self.watch_state == WatchState::Watching;
        for (name, service) in &mut self.services {
            let was_judged = service.judge(self.silence, is_watching, now_ms);
            if service.has_moved(self.settled_after_ms, now_ms) || was_judged {
                self.dirty.insert(name.clone());
            }
        }
    }

    /// The services whose readings may have changed since this was last called,
    /// in order of their names; a service that is gone is among them.
    pub fn take_dirty(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    /// A service as of `now`; `None` if there is none of this name.
    pub fn service(&mut self, name: &str, now: Instant) -> Option<Reading<'_>> {
        let now_ms = self.clock_ms(now);
        let is_watching = self.watch_state == WatchState::Watching;
        let service = self.services.get_mut(name)?;
        service.judge(self.silence, is_watching, now_ms);
        Some(service.reading(self.silence, now_ms))
    }

    /// All services in order, configured ones without instances included.
    pub fn service_names(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// Whether a list was ever complete: before that, instances that exist may be
    /// missing.
    pub fn has_synced(&self) -> bool {
        self.has_synced
    }

    /// The last revision that was taken in; 0 before the first list. Falls only
    /// with a list, after the source was restored.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// What the watcher said last of itself.
    pub fn watch_state(&self) -> WatchState {
        self.watch_state
    }

    /// How many records were dropped, by reason.
    pub fn bad_records(&self) -> &BTreeMap<&'static str, u64> {
        self.rejects.counts()
    }

    fn put(&mut self, key: &[u8], value: &[u8], mod_revision: i64, now_ms: u64) {
        if !self.is_listing {
            let known = self.keys.get(key).map_or(self.absent_at, |key| key.mod_revision);
            if mod_revision <= known {
                return;
            }
            self.revision = self.revision.max(mod_revision);
        }
        match wire::parse_key(&self.prefix, key) {
            Ok(Key::Instance { service, id }) => {
                if self.note_key(key, &service, mod_revision) {
                    self.put_instance(key, &service, &id, value, mod_revision, now_ms);
                }
            }
            Ok(Key::Status { service, .. }) => {
                if self.note_key(key, &service, mod_revision) {
                    self.put_batch(key, &service, value, now_ms);
                }
            }
            // Well-formed, and none of them says what exists.
            Ok(Key::Control { .. } | Key::Policy { .. } | Key::Exporter { .. }) => {}
            Err(error) => self.rejects.reject(&printable(key), error.reason(), error),
        }
    }

    /// Remembers that a key of this service exists; `false` if the service is
    /// none of this gateway's.
    fn note_key(&mut self, key: &[u8], service: &str, mod_revision: i64) -> bool {
        if !self.services.contains_key(service) && !self.discover.allows(service) {
            let error = "the configuration neither names this service nor discovers it";
            self.rejects.reject(service, "unknown_service", error);
            return false;
        }
        let state = self.keys.entry(key.to_vec()).or_default();
        state.mod_revision = mod_revision;
        state.list = self.list;
        true
    }

    fn put_instance(
        &mut self,
        key: &[u8],
        service: &str,
        id: &str,
        value: &[u8],
        mod_revision: i64,
        now_ms: u64,
    ) {
        match wire::decode_instance(id, value) {
            Ok(instance) => {
                self.rejects.forget_except(&printable(key), &[]);
                self.register(service, instance, Layer::Etcd(mod_revision), now_ms);
            }
            // The last good registration stays, as long as the key does.
            Err(error) => self.rejects.reject(&printable(key), error.reason(), error),
        }
    }

    fn register(&mut self, service: &str, instance: Instance, layer: Layer, now_ms: u64) {
        let eclipsed = self
            .services
            .entry(service.to_owned())
            .or_insert_with(Service::discovered)
            .register(instance, layer, &self.window, now_ms);
        self.after_change(service, eclipsed);
    }

    fn after_change(&mut self, service: &str, eclipsed: Option<String>) {
        self.dirty.insert(service.to_owned());
        if let Some(id) = eclipsed {
            let key = Key::Instance { service: service.to_owned(), id }.to_path(&self.prefix);
            let error = "a newer registration has the same address and is offered in its place";
            self.rejects.reject(&key, "duplicate_addr", error);
        }
    }

    fn put_batch(&mut self, key: &[u8], service_name: &str, value: &[u8], now_ms: u64) {
        let batch = match wire::decode_batch(value) {
            Ok(batch) => batch,
            Err(error) => return self.rejects.reject(&printable(key), error.reason(), error),
        };
        let mut has_news = false;
        let mut strangers = Vec::new();
        let mut service = self.services.get_mut(service_name);
        for InstanceReport { id, report, .. } in &batch.reports {
            let Report::Status(status) = report else { continue };
            match service.as_mut().and_then(|service| service.record(id, status, now_ms)) {
                Some(is_news) => has_news |= is_news,
                None => strangers.push(id),
            }
        }
        if has_news {
            self.dirty.insert(service_name.to_owned());
        }

        let are_unknown = self.are_unknown(key, &strangers, now_ms);
        let subject = printable(key);
        let reasons = batch.bad.iter().map(|bad| bad.reason());
        let reasons: Vec<_> = reasons.chain(are_unknown.then_some(UNKNOWN_INSTANCE)).collect();
        self.rejects.forget_except(&subject, &reasons);
        for bad in &batch.bad {
            self.rejects.reject(&subject, bad.reason(), bad);
        }
        if are_unknown {
            let count = strangers.len() as u64;
            let some = &strangers[..strangers.len().min(MAX_PRINTED_STRANGERS)];
            let error =
                format_args!("{count} not registered in {service_name:?}, such as {some:?}");
            self.rejects.reject_many(&subject, UNKNOWN_INSTANCE, count, error);
        }
    }

    /// Whether a batch's strangers are unknown for good. A batch may overtake the
    /// registration of an instance, or be on its way when one leaves; so they are
    /// when the batches of this key have been naming some for longer than an
    /// instance may be silent. Their statuses are not kept for them: the next
    /// batch brings newer ones.
    fn are_unknown(&mut self, key: &[u8], strangers: &[&String], now_ms: u64) -> bool {
        let Some(state) = self.keys.get_mut(key) else { return false };
        let since_ms = state.strangers_since_ms.unwrap_or(now_ms);
        state.strangers_since_ms = (!strangers.is_empty()).then_some(since_ms);
        !strangers.is_empty() && now_ms.saturating_sub(since_ms) > self.silence.limit_ms
    }

    fn delete(&mut self, key: &[u8], mod_revision: i64, now_ms: u64) {
        if self.keys.get(key).is_some_and(|known| known.mod_revision > mod_revision) {
            return;
        }
        self.revision = self.revision.max(mod_revision);
        // Not `mod_revision` itself: a transaction may delete one key and put
        // another.
        self.absent_at = self.absent_at.max(mod_revision - 1);
        self.remove_key(key, now_ms);
    }

    fn finish_list(&mut self, revision: i64, now_ms: u64) {
        let is_gone = |(_, state): &(&Vec<u8>, &KeyState)| state.list != self.list;
        let gone: Vec<_> = self.keys.iter().filter(is_gone).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove_key(&key, now_ms);
        }
        self.is_listing = false;
        self.has_synced = true;
        // A list replaces, also by lower revisions: the source was restored.
        self.revision = revision;
        self.absent_at = revision;
    }

    fn remove_key(&mut self, key: &[u8], now_ms: u64) {
        self.keys.remove(key);
        self.rejects.forget_except(&printable(key), &[]);
        if let Ok(Key::Instance { service: name, id }) = wire::parse_key(&self.prefix, key)
            && let Some(service) = self.services.get_mut(&name)
        {
            let eclipsed = service.deregister(&id, now_ms);
            if service.is_gone() {
                self.services.remove(&name);
            }
            self.after_change(&name, eclipsed);
        }
    }

    fn clock_ms(&self, now: Instant) -> u64 {
        CLOCK_START_MS + to_ms(now.saturating_duration_since(self.started))
    }
}

/// A key for the log: any bytes, of any length, may have been put into etcd.
fn printable(key: &[u8]) -> String {
    key[..key.len().min(MAX_PRINTED_BYTES)].escape_ascii().to_string()
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
