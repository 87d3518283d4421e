//! Events in, what exists now out: the instances of each service, merged from the
//! configuration file and etcd, with the state of each and its [`Load`].
//!
//! Nothing is lost to a fault on the way. A list replaces what was known only
//! when it is complete, and then by difference, so that the windows of those that
//! are still there live on. A bad record leaves the last good one in place. Where most
//! of a service is lost at once, that is doubted (see `doubts`). What is said against
//! an instance is judged beside what is said of the others, and no report at all is
//! held against nobody (see `reach`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::{CheckBy, CheckConfig, Config, Discover, Rule, ServiceConfig, WindowConfig};
use crate::model::{Allow, Instance, InstanceReport};
use crate::printable;
use crate::reckon::Figures;
use crate::rejects::Rejects;
use crate::snapshot::{Record, Records, Snapshot};
use crate::watcher::{Event, WatchState};
use crate::window::Load;
use crate::wire::checks::Checks;
use crate::wire::control::Control;
use crate::wire::{self, Key};

pub mod audits;
mod doubts;
pub mod guard;
mod kept;
mod prefixes;
mod reach;
mod service;

use audits::Audits;
use guard::{Loss, Outcome};
use kept::{Kept, Kind};
pub(crate) use prefixes::Prefixes;
use service::{Change, Layer, News, Service};

/// What a member's place in the ranking rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A fresh report that it is well.
    Reporting,
    /// It declares a status and no report is fresh.
    Unknown,
    /// It declares no status and gave none.
    Unreported,
    /// It could not be read when it was last asked, and is offered all the same.
    Unreachable,
    /// It failed too often where this host sent it requests, and rests.
    Ejected,
    /// It fails its checks, by this gateway or by the one that checks it for all.
    Failing,
    /// etcd lost it together with most of its service, and it is offered all the same.
    Doubtful,
}

impl State {
    /// The name in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reporting => "reporting",
            Self::Unknown => "unknown",
            Self::Unreported => "unreported",
            Self::Unreachable => "unreachable",
            Self::Ejected => "ejected",
            Self::Failing => "failing",
            Self::Doubtful => "doubtful",
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
    /// What its window says, while a report is fresh.
    pub load: Option<Load>,
    /// The process that it is, as an exporter heard last: another one after each
    /// start. `None` if none ever did.
    pub boot_id: Option<u64>,
    /// How old the figures of its last good report are, fresh or not; `None` if there
    /// was none.
    pub report_age_ms: Option<u64>,
}

/// A registered instance, offered or not.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// As registered.
    pub instance: &'a Instance,
    /// Why it is not offered; `None` if it is.
    pub absence: Option<Absence>,
    /// Statuses in its window.
    pub samples: u64,
    /// How old the figures of its last good report are.
    pub report_age_ms: Option<u64>,
    /// What its window says; `None` while that is empty.
    pub load: Option<Load>,
}

/// Why a registered instance is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// By its own wish or an operator's, and is otherwise as it was.
    Draining,
    /// By an operator's wish.
    Disabled,
    /// It said that it wants no requests.
    NotServing,
    /// It could not be read for too long.
    Unreachable,
    /// A newer registration has its address.
    Eclipsed,
}

impl Absence {
    /// The name in the HTTP API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Disabled => "disabled",
            Self::NotServing => "not_serving",
            Self::Unreachable => "unreachable",
            Self::Eclipsed => "eclipsed",
        }
    }
}

/// One service at one moment.
#[derive(Debug, Clone)]
pub struct Reading<'a> {
    /// The default one for a service that the configuration does not name.
    pub config: &'a ServiceConfig,
    /// What the operator wants of it.
    pub control: Option<&'a Control>,
    /// By id. Without those that drain or are disabled, were put out for what is said
    /// of them, or have an address that another one is offered at.
    pub members: Vec<Member<'a>>,
}

/// The gateways that share the checks of one service's instances, by their keys
/// `checks/<gateway>/<service>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sharers {
    /// The revision at which one of them came or left last.
    pub since: i64,
    /// What each says last, this gateway among them.
    pub checks: BTreeMap<String, Checks>,
}

/// What exists, by the events so far.
#[derive(Debug)]
pub struct Registry {
    prefixes: Prefixes,
    discover: Discover,
    window: WindowConfig,
    allow: Allow,
    /// The exporter's.
    interval_ms: u64,
    started: Instant,

    services: BTreeMap<String, Service>,
    /// The last good value of each `control/<service>`.
    controls: BTreeMap<String, Control>,
    /// By service.
    sharers: BTreeMap<String, Sharers>,
    /// The instance and status keys that exist, of services that exist or may.
    keys: HashMap<Vec<u8>, KeyState>,
    /// Their values, for the snapshot.
    kept: Kept,
    /// Counts the lists, complete or not.
    list: u64,
    is_listing: bool,
    has_synced: bool,
    /// When a snapshot, in place of a list, was etcd's state: Unix time.
    restored_as_of_ms: Option<u64>,
    revision: i64,
    /// What is not in `keys` did not exist at this revision, so that a put from
    /// before it is a repetition.
    absent_at: i64,
    watch_state: WatchState,
    /// Whether all that is said is heard: a list was just completed, or the watch
    /// is open.
    hears_all: bool,
    audits: Audits,
    guards: guard::Figures,
    /// Services with losses that are to be weighed.
    unsettled: BTreeSet<String>,
    /// What was wanted of services when etcd lost it, and when that was.
    lost_controls: BTreeMap<String, (Control, u64)>,
    /// Services whose control is in force for as long as they have doubtful instances.
    held_controls: BTreeSet<String>,
    /// The time of the last event.
    now_ms: u64,

    rejects: Rejects,
    dirty: BTreeSet<String>,
    /// Those of them in which instances may have come or gone.
    urgent: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct KeyState {
    mod_revision: i64,
    /// The last list when the key was last put.
    list: u64,
    strangers: Option<Strangers>,
}

/// A status key's batches name instances that do not exist.
#[derive(Debug, Clone, Copy)]
struct Strangers {
    since_ms: u64,
    /// Named after this, they are new ones.
    until_ms: u64,
}

/// For so many of the exporter's intervals a batch may name instances that are
/// yet to register, or have left.
const STRANGER_INTERVALS: u64 = 3;

/// Where the registry's clock begins, so that the time of receipt less the age
/// of a status does not go below 0.
const CLOCK_START_MS: u64 = wire::MAX_STATUS_AGE.as_millis() as u64;

/// Enough to see what they are.
const MAX_PRINTED_STRANGERS: usize = 3;

const UNKNOWN_INSTANCE: &str = "unknown_instance";
const NOT_ALLOWED: &str = "not_allowed";

impl Registry {
    /// The services and instances of the configuration file.
    pub fn new(config: &Config, now: Instant) -> Self {
        let interval_ms = to_ms(config.exporter.interval);
        let mut registry = Self {
            prefixes: Prefixes::new(&config.etcd),
            discover: config.discover.clone(),
            window: config.window.clone(),
            allow: config.allow.clone(),
            interval_ms,
            started: now,
            services: BTreeMap::new(),
            controls: BTreeMap::new(),
            sharers: BTreeMap::new(),
            keys: HashMap::new(),
            kept: Kept::new(!config.snapshot.path.is_empty()),
            list: 0,
            is_listing: false,
            has_synced: false,
            restored_as_of_ms: None,
            revision: 0,
            absent_at: 0,
            watch_state: WatchState::Connecting,
            hears_all: false,
            audits: Audits::default(),
            guards: guard::Figures::default(),
            unsettled: BTreeSet::new(),
            lost_controls: BTreeMap::new(),
            held_controls: BTreeSet::new(),
            now_ms: CLOCK_START_MS,
            rejects: Rejects::default(),
            dirty: config.services.keys().cloned().collect(),
            urgent: BTreeSet::new(),
        };
        for (name, config) in &config.services {
            let service = Service::configured(config.clone(), interval_ms);
            registry.services.insert(name.clone(), service);
            for instance in &config.instances {
                registry.register(name, instance.clone(), Layer::File);
            }
        }
        registry
    }

    /// Takes in one event, received at `now`.
    pub fn apply(&mut self, event: &Event, now: Instant) {
        let now_ms = self.clock_ms(now);
        self.now_ms = now_ms;
        match event {
            Event::State(state) => {
                self.watch_state = *state;
                self.hears_all = *state == WatchState::Watching;
            }
            Event::Audit => self.audits.begin(),
            Event::Init => {
                self.is_listing = true;
                self.list += 1;
            }
            Event::Put { key, value, mod_revision } => self.put(key, value, *mod_revision, now_ms),
            Event::Delete { key, mod_revision } => self.delete(key, *mod_revision),
            Event::InitDone { revision } => self.finish_list(*revision),
            Event::Progress { revision } => self.revision = self.revision.max(*revision),
        }
    }

    /// Takes in what etcd held when it was last seen, until a list replaces it: as a
    /// list that precedes all others, so that the next one finds out what is gone. A
    /// key of which something newer is known is left as it is. Returns how many of the
    /// snapshot's values are in force; none if no `snapshot.path` is configured.
    pub fn restore(&mut self, snapshot: &Snapshot, now: Instant) -> usize {
        if self.has_synced {
            return 0;
        }
        let now_ms = self.clock_ms(now);
        let (list, before) = (std::mem::take(&mut self.list), self.kept.len());
        let revision = self.revision;
        let all = |it: &Records| [it.instances.clone(), it.controls.clone()];
        for Record { key, mod_revision, value } in
            snapshot.services.values().flat_map(all).flatten()
        {
            let key = key.as_bytes();
            let is_of_a_kind = matches!(
                self.prefixes.parse(key),
                Some(Ok(Key::Instance { .. } | Key::Control { .. }))
            );
            if is_of_a_kind && !self.keys.contains_key(key) {
                self.put(key, value.as_bytes(), mod_revision, now_ms);
            }
        }
        self.list = list;
        let restored = self.kept.len() - before;
        // Whatever its records say: what was refused was not taken in.
        self.revision = revision;
        if restored > 0 {
            self.revision = revision.max(snapshot.revision);
            self.restored_as_of_ms = Some(snapshot.as_of_ms);
        }
        restored
    }

    /// What etcd holds, as of `as_of_ms`, to be restored one day. Only what is
    /// [whole](Self::is_whole) is worth it.
    pub fn snapshot(&self, as_of_ms: u64) -> Snapshot {
        let prefix = self.prefixes.own().to_owned();
        let (revision, services) = (self.revision, self.kept.by_service());
        Snapshot { as_of_ms, revision, prefix, services, ..Snapshot::default() }
    }

    /// Another number for another [`snapshot`](Self::snapshot).
    pub fn changes(&self) -> u64 {
        self.kept.changes()
    }

    /// Whether all that etcd holds is known: a list was complete, and none is under way
    /// or broke off half-way.
    pub fn is_whole(&self) -> bool {
        self.has_synced && !self.is_listing
    }

    /// When what was restored was etcd's state, in Unix time, until there is a list;
    /// `None` if nothing was.
    pub fn restored_as_of_ms(&self) -> Option<u64> {
        self.restored_as_of_ms.filter(|_| !self.has_synced)
    }

    /// Takes in a load report that a response brought, received at `now`, of an
    /// instance that may be gone by now. It counts where no exporter's figures
    /// are fresh.
    pub fn in_band(&mut self, service_name: &str, id: &str, figures: Figures, now: Instant) {
        let now_ms = self.clock_ms(now);
        let Some(service) = self.services.get_mut(service_name) else { return };
        if service.in_band(id, figures, now, now_ms) >= News::Figures {
            self.dirty.insert(service_name.to_owned());
        }
    }

    /// Lets time pass: marks the services whose readings change by time alone. To
    /// be called about once a second.
    pub fn tick(&mut self, now: Instant) {
        let now_ms = self.clock_ms(now);
        let time = SystemTime::now();
        let lapsed: Vec<String> = self
            .controls
            .extract_if(.., |_, control| control.has_lapsed(time))
            .map(|(service, _)| service)
            .collect();
        for service in &lapsed {
            tracing::info!("the control of {service} has lapsed");
            self.note_change(service);
        }
        self.now_ms = now_ms;
        self.settle();
        self.end_doubts(|service, _| service.expire(now_ms), Outcome::Deregistered);
        let services = &self.services;
        self.lost_controls.retain(|name, (_, lost_ms)| {
            let window = services.get(name).map_or(Duration::ZERO, Service::loss_window);
            now_ms.saturating_sub(*lost_ms) < to_ms(window)
        });
        for (name, service) in &mut self.services {
            service.forget_old_losses(now_ms);
            let was_judged = !self.is_listing && service.judge(self.hears_all, now_ms);
            if service.has_moved(now_ms) || was_judged {
                self.dirty.insert(name.clone());
            }
        }
    }

    /// The services whose readings may have changed since this was last called,
    /// in order of their names; a service that is gone is among them.
    pub fn take_dirty(&mut self) -> Vec<String> {
        self.settle();
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    /// Those among the dirty ones that ought not to wait, since instances may have
    /// come or left, and that were not returned before. None while a list is
    /// under way: it changes what is there once it is complete.
    pub fn take_urgent(&mut self) -> Vec<String> {
        self.settle();
        match self.is_listing {
            true => Vec::new(),
            false => std::mem::take(&mut self.urgent).into_iter().collect(),
        }
    }

    /// A service as of `now`; `None` if there is none of this name.
    pub fn service(&mut self, name: &str, now: Instant) -> Option<Reading<'_>> {
        self.settle();
        let now_ms = self.clock_ms(now);
        let service = self.services.get_mut(name)?;
        // A list is judged as a whole: nobody is to be excused by a part of it.
        if !self.is_listing {
            service.judge(self.hears_all, now_ms);
        }
        Some(service.reading(in_force(&self.controls, name), now_ms))
    }

    /// All registered instances of a service as of `now`, by id, offered or not.
    pub fn known(&mut self, name: &str, now: Instant) -> Vec<Known<'_>> {
        self.settle();
        let now_ms = self.clock_ms(now);
        let control = in_force(&self.controls, name);
        self.services.get_mut(name).map_or_else(Vec::new, |service| service.known(control, now_ms))
    }

    /// How a service's instances are to be checked, and which; `None` if none are. May
    /// change with what [`take_urgent`](Self::take_urgent) names.
    pub fn checked(&self, name: &str) -> Option<(&CheckConfig, impl Iterator<Item = &Instance>)> {
        let service = self.services.get(name).filter(|service| service.check().is_on())?;
        Some((service.check(), service.checked(in_force(&self.controls, name))))
    }

    /// The gateways that share the checks of a service's instances; none of a service
    /// whose checks are not shared. May change with what
    /// [`take_urgent`](Self::take_urgent) names.
    pub fn sharers(&self, name: &str) -> &Sharers {
        static NONE: Sharers = Sharers { since: 0, checks: BTreeMap::new() };
        self.sharers.get(name).unwrap_or(&NONE)
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

    /// What the operator wants of a service, until it lapses.
    pub fn control(&self, name: &str) -> Option<&Control> {
        in_force(&self.controls, name)
    }

    /// Which requests of a service go to which instances: the operator's rules, or
    /// else those of the configuration file.
    pub fn rules(&self, name: &str) -> &[Rule] {
        match self.control(name).and_then(|control| control.rules.as_deref()) {
            Some(rules) => rules,
            None => self.services.get(name).map_or(&[], Service::rules),
        }
    }

    /// The labels of an instance, if there is such a one.
    pub fn labels(&self, service: &str, id: &str) -> Option<&BTreeMap<String, String>> {
        self.services.get(service)?.labels(id)
    }

    /// What the watcher said last of itself.
    pub fn watch_state(&self) -> WatchState {
        self.watch_state
    }

    /// What the audits found so far.
    pub fn audits(&self) -> audits::Figures {
        self.audits.figures
    }

    /// How many records were dropped, by reason.
    pub fn bad_records(&self) -> &BTreeMap<&'static str, u64> {
        self.rejects.counts()
    }

    fn put(&mut self, key: &[u8], value: &[u8], mod_revision: i64, now_ms: u64) {
        let known = self.keys.get(key).map(|key| key.mod_revision);
        if !self.is_listing {
            if mod_revision <= known.unwrap_or(self.absent_at) {
                return;
            }
            self.revision = self.revision.max(mod_revision);
        }
        let Some(parsed) = self.prefixes.parse(key) else { return };
        match parsed {
            Ok(Key::Instance { service, id }) => {
                if self.note_key(key, &service, mod_revision) {
                    self.put_instance(key, &service, &id, value, mod_revision);
                }
            }
            Ok(Key::Status { exporter, service, .. }) => {
                // What a list repeats is no sign of life.
                let is_known = known == Some(mod_revision);
                if self.note_key(key, &service, mod_revision) && !is_known {
                    self.put_batch(key, &exporter, &service, value, now_ms);
                }
            }
            Ok(Key::Control { service }) => {
                if self.note_key(key, &service, mod_revision) {
                    self.put_control(key, &service, value, mod_revision);
                }
            }
            // Of other services, they are other gateways' matter.
            Ok(Key::Checks { gateway, service }) => {
                if self.shares_checks(&service) && self.note_key(key, &service, mod_revision) {
                    self.put_checks(key, gateway, &service, value, mod_revision);
                }
            }
            // Well-formed, and none of them says what exists.
            Ok(Key::Policy { .. } | Key::Exporter { .. }) => {}
            Err(error) => {
                self.rejects.reject_at(&printable::key(key), mod_revision, error.reason(), error);
            }
        }
    }

    /// Remembers that a key of this service exists; `false` if the service is
    /// none of this gateway's.
    fn note_key(&mut self, key: &[u8], service: &str, mod_revision: i64) -> bool {
        if !self.services.contains_key(service) && !self.discover.allows(service) {
            if self.rejects.is_new(&printable::key(key), mod_revision) {
                let error = "the configuration neither names this service nor discovers it";
                self.rejects.reject(service, "unknown_service", error);
            }
            return false;
        }
        let state = self.keys.entry(key.to_vec()).or_default();
        if self.is_listing && state.mod_revision != mod_revision {
            self.audits.differs(key, if state.mod_revision == 0 { "missed" } else { "old" });
        }
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
    ) {
        // Whatever is refused, the last good registration stays, as long as the
        // key does.
        let subject = printable::key(key);
        let mut instance = match wire::decode_instance(id, value) {
            Ok(instance) => instance,
            Err(error) => {
                return self.rejects.reject_at(&subject, mod_revision, error.reason(), error);
            }
        };
        if let Err(outside) = self.allow.check(&instance) {
            return self.rejects.reject_at(&subject, mod_revision, NOT_ALLOWED, outside);
        }
        self.rejects.forget_except(&subject, &[]);
        self.kept.put(key, service, Kind::Instance, value, mod_revision);
        self.prefixes.label(&mut instance);
        self.register(service, instance, Layer::Etcd(mod_revision));
    }

    /// Takes in an operator's value whole, or leaves the one before in force.
    fn put_control(&mut self, key: &[u8], service: &str, value: &[u8], mod_revision: i64) {
        let subject = printable::key(key);
        match wire::control::decode_control(value) {
            Err(error) => self.rejects.reject_at(&subject, mod_revision, error.reason(), error),
            Ok(control) => {
                self.rejects.forget_except(&subject, &[]);
                self.kept.put(key, service, Kind::Control, value, mod_revision);
                self.lost_controls.remove(service);
                self.held_controls.remove(service);
                // Lists and audits repeat one that has lapsed for as long as its key
                // exists.
                if control.has_lapsed(SystemTime::now()) {
                    if self.controls.remove(service).is_some() {
                        self.note_change(service);
                    }
                } else if self.controls.get(service) != Some(&control) {
                    self.controls.insert(service.to_owned(), control);
                    self.note_change(service);
                }
            }
        }
    }

    fn shares_checks(&self, service: &str) -> bool {
        let check = self.services.get(service).map(Service::check);
        check.is_some_and(|check| check.is_on() && check.by == CheckBy::One)
    }

    /// As with an operator's value, the last good one stays.
    fn put_checks(
        &mut self,
        key: &[u8],
        gateway: String,
        service: &str,
        value: &[u8],
        mod_revision: i64,
    ) {
        let subject = printable::key(key);
        match wire::checks::decode_checks(value) {
            Err(error) => self.rejects.reject_at(&subject, mod_revision, error.reason(), error),
            Ok(checks) => {
                self.rejects.forget_except(&subject, &[]);
                let sharers = self.sharers.entry(service.to_owned()).or_default();
                if sharers.checks.insert(gateway, checks).is_none() {
                    sharers.since = sharers.since.max(mod_revision);
                }
                self.note_change(service);
            }
        }
    }

    fn note_change(&mut self, service: &str) {
        self.dirty.insert(service.to_owned());
        self.urgent.insert(service.to_owned());
    }

    fn register(&mut self, name: &str, instance: Instance, layer: Layer) {
        let service = self
            .services
            .entry(name.to_owned())
            .or_insert_with(|| Service::discovered(self.interval_ms));
        let before = service.doubts();
        let change = service.register(instance, layer, &self.window);
        let returned = before.saturating_sub(service.doubts());
        if before > 0 {
            // It may have the address of a doubtful one.
            if self.unsettled.insert(name.to_owned()) {
                service.note_there(in_force(&self.controls, name), self.now_ms);
            }
            self.note_ends(name, returned, Outcome::Returned);
        }
        self.after_change(name, change);
    }

    fn after_change(&mut self, service: &str, change: Change) {
        if change.is_repetition {
            return;
        }
        self.note_change(service);
        if let Some(id) = change.eclipsed {
            let key = self.prefixes.path(service, &id);
            let error = "a newer registration has the same address and is offered in its place";
            self.rejects.reject(&key, "duplicate_addr", error);
        }
    }

    fn put_batch(
        &mut self,
        key: &[u8],
        exporter: &str,
        service_name: &str,
        value: &[u8],
        now_ms: u64,
    ) {
        let mut batch = match wire::decode_batch(value) {
            Ok(batch) => batch,
            Err(error) => return self.rejects.reject(&printable::key(key), error.reason(), error),
        };
        let cluster = self.prefixes.of_exporter(exporter);
        if !cluster.is_empty() {
            batch.reports.iter_mut().for_each(|entry| entry.id.insert_str(0, cluster));
        }
        let mut news = News::None;
        let mut strangers: Vec<&InstanceReport> = Vec::new();
        let mut service = self.services.get_mut(service_name);
        for entry in &batch.reports {
            match service.as_mut().and_then(|service| service.record(entry, exporter, now_ms)) {
                Some(of_this_one) => news = news.max(of_this_one),
                None => strangers.push(entry),
            }
        }
        if news >= News::Figures {
            self.dirty.insert(service_name.to_owned());
        }
        if news >= News::Members {
            self.urgent.insert(service_name.to_owned());
        }

        let are_unknown = self.are_unknown(key, &strangers, now_ms);
        let subject = printable::key(key);
        let reasons = batch.bad.iter().map(|bad| bad.reason());
        let reasons: Vec<_> = reasons.chain(are_unknown.then_some(UNKNOWN_INSTANCE)).collect();
        self.rejects.forget_except(&subject, &reasons);
        for bad in &batch.bad {
            self.rejects.reject(&subject, bad.reason(), bad);
        }
        if are_unknown && !strangers.is_empty() {
            let count = strangers.len() as u64;
            let some: Vec<_> =
                strangers.iter().take(MAX_PRINTED_STRANGERS).map(|entry| &entry.id).collect();
            let error =
                format_args!("{count} not registered in {service_name:?}, such as {some:?}");
            self.rejects.reject_many(&subject, UNKNOWN_INSTANCE, count, error);
        }
    }

    /// Whether a key's strangers are unknown for good. A batch may overtake the
    /// registration of an instance, or be on its way when one leaves; so they are
    /// when the batches of this key have been naming some for a while, and none
    /// was overdue for longer than that. What is said of them is not kept for
    /// them: the next report is newer.
    fn are_unknown(&mut self, key: &[u8], strangers: &[&InstanceReport], now_ms: u64) -> bool {
        let Some(state) = self.keys.get_mut(key) else { return false };
        let limit_ms = STRANGER_INTERVALS * self.interval_ms;
        let known = state.strangers.filter(|known| now_ms <= known.until_ms);
        let longest_ms = strangers.iter().map(|entry| to_ms(entry.interval)).max();
        state.strangers = match longest_ms {
            None => known,
            Some(longest_ms) => Some(Strangers {
                since_ms: known.map_or(now_ms, |known| known.since_ms),
                until_ms: now_ms + longest_ms.max(self.interval_ms) + limit_ms,
            }),
        };
        state.strangers.is_some_and(|known| now_ms.saturating_sub(known.since_ms) > limit_ms)
    }

    fn delete(&mut self, key: &[u8], mod_revision: i64) {
        if self.keys.get(key).is_some_and(|known| known.mod_revision > mod_revision) {
            return;
        }
        self.revision = self.revision.max(mod_revision);
        // Not `mod_revision` itself: a transaction may delete one key and put
        // another.
        self.absent_at = self.absent_at.max(mod_revision.saturating_sub(1));
        self.remove_key(key, Some(Loss { at_ms: self.now_ms, list: self.list }));
    }

    fn finish_list(&mut self, revision: i64) {
        // The first one is believed: what was restored may be old.
        let loss = self.has_synced.then_some(Loss { at_ms: self.now_ms, list: self.list });
        let is_gone = |(_, state): &(&Vec<u8>, &KeyState)| state.list != self.list;
        let gone: Vec<_> = self.keys.iter().filter(is_gone).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.audits.differs(&key, "gone");
            self.remove_key(&key, loss);
        }
        self.settle();
        let list = self.list;
        self.end_doubts(|service, control| service.end_list(list, control), Outcome::Replaced);
        self.audits.end();
        self.is_listing = false;
        self.hears_all = true;
        self.has_synced = true;
        // A list replaces, also by lower revisions: the source was restored.
        for sharers in self.sharers.values_mut() {
            sharers.since = sharers.since.min(revision);
        }
        self.revision = revision;
        self.absent_at = revision;
    }

    fn forget_gone(&mut self, name: &str) {
        if self.services.get(name).is_some_and(Service::is_gone) {
            self.services.remove(name);
            self.note_change(name);
        }
    }

    fn remove_key(&mut self, key: &[u8], loss: Option<Loss>) {
        self.keys.remove(key);
        self.kept.remove(key);
        self.rejects.forget_except(&printable::key(key), &[]);
        match self.prefixes.parse(key) {
            Some(Ok(Key::Instance { service: name, id })) => {
                let Some(service) = self.services.get_mut(&name) else { return };
                let control = in_force(&self.controls, &name);
                if loss.is_some() && self.unsettled.insert(name.clone()) {
                    service.note_there(control, self.now_ms);
                }
                let change = service.deregister(&id, loss, control);
                self.forget_gone(&name);
                self.after_change(&name, change);
            }
            Some(Ok(Key::Control { service })) => {
                let Some(control) = self.controls.remove(&service) else { return };
                self.note_change(&service);
                if loss.is_some() {
                    self.lost_controls.insert(service, (control, self.now_ms));
                }
            }
            Some(Ok(Key::Checks { gateway, service })) => {
                let Some(sharers) = self.sharers.get_mut(&service) else { return };
                if sharers.checks.remove(&gateway).is_some() {
                    sharers.since = sharers.since.max(self.revision);
                    self.note_change(&service);
                }
            }
            _ => {}
        }
    }

    fn clock_ms(&self, now: Instant) -> u64 {
        CLOCK_START_MS + to_ms(now.saturating_duration_since(self.started))
    }
}

fn in_force<'a>(controls: &'a BTreeMap<String, Control>, name: &str) -> Option<&'a Control> {
    controls.get(name).filter(|control| !control.has_lapsed(SystemTime::now()))
}

fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
