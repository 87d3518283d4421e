//! Which instances there are, and which of them this exporter asks.
//!
//! Exporters under one prefix share the work. Each follows the same two kinds of
//! keys, `exporters/` and `instances/`, and each works out by itself who asks
//! whom: an instance belongs to the live exporter that hashes highest with it
//! (rendezvous hashing, Thaler and Ravishankar 1998), so that nobody has to agree
//! on anything, and one that joins or dies moves its own share and no other.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::config::Config;
use crate::model::{Allow, Instance, StatusUrl};
use crate::printable;
use crate::rejects::Rejects;
use crate::rendezvous;
use crate::watcher::{Event, WatchState};
use crate::wire::{self, Key};

/// Whose status is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Its service's name.
    pub service: String,
    /// Unique within the service.
    pub id: String,
}

/// What this exporter has to do differently from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Ask this instance there, over a new connection.
    Ask(Name, StatusUrl),
    /// Do not ask it any more.
    Drop(Name),
    /// Something that this exporter put, its announcement or an instance of the
    /// configuration file, is not there any more.
    Missing,
    /// Another process announces itself under this exporter's id.
    Rival,
}

/// What exists, by the events so far.
#[derive(Debug)]
pub struct Fleet {
    prefix: String,
    own_id: String,
    /// What this exporter announces of itself.
    own_record: Vec<u8>,
    /// Whether that was seen in etcd.
    is_announced: bool,
    allow: Allow,
    /// The instances of the configuration file.
    in_file: BTreeMap<Name, Instance>,
    /// The registrations in etcd, which count before those of the file.
    in_etcd: BTreeMap<Name, Instance>,
    /// Every live exporter, this one always among them.
    exporters: BTreeSet<String>,
    /// The keys of the list that is under way.
    listed: Option<HashSet<Key>>,
    /// Whom this exporter asks, and where.
    mine: BTreeMap<Name, Instance>,
    watch_state: WatchState,
    rejects: Rejects,
}

impl Fleet {
    /// The instances of the configuration file; `announcement` is what this
    /// exporter writes under its own key.
    pub fn new(config: &Config, announcement: &[u8]) -> Self {
        let own_id = config.exporter.id.clone();
        let in_file = config.services.iter().flat_map(|(service, config)| {
            let name = |id: &String| Name { service: service.clone(), id: id.clone() };
            config.instances.iter().map(move |it| (name(&it.id), it.clone()))
        });
        Self {
            prefix: config.etcd.prefix.clone(),
            exporters: BTreeSet::from([own_id.clone()]),
            own_id,
            own_record: announcement.to_owned(),
            is_announced: false,
            allow: config.allow.clone(),
            in_file: in_file.collect(),
            in_etcd: BTreeMap::new(),
            listed: None,
            mine: BTreeMap::new(),
            watch_state: WatchState::Connecting,
            rejects: Rejects::default(),
        }
    }

    /// What the configuration file alone asks for.
    pub fn begin(&mut self) -> Vec<Change> {
        self.settle_all()
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        match event {
            Event::State(state) => self.watch_state = state,
            Event::Init => self.listed = Some(HashSet::new()),
            Event::Put { key, value, mod_revision } => {
                return self.put(&key, &value, mod_revision);
            }
            Event::Delete { key: path, .. } => match wire::parse_key(&self.prefix, &path) {
                Ok(key) => return self.delete(&key),
                Err(_) => self.rejects.forget_except(&printable::key(&path), &[]),
            },
            Event::InitDone { .. } => return self.finish_list(),
            Event::Audit | Event::Progress { .. } => {}
        }
        Vec::new()
    }

    /// Live exporters, this one included.
    pub fn exporters(&self) -> usize {
        self.exporters.len()
    }

    /// Instances that declare a status, whoever asks them.
    pub fn targets(&self) -> usize {
        let of_file = self.in_file.keys().filter(|name| !self.in_etcd.contains_key(*name));
        let names = self.in_etcd.keys().chain(of_file);
        names.filter(|name| self.target(name).is_some()).count()
    }

    /// What the watcher said last of itself.
    pub fn watch_state(&self) -> WatchState {
        self.watch_state
    }

    /// How many registrations were dropped, by reason.
    pub fn bad_records(&self) -> &BTreeMap<&'static str, u64> {
        self.rejects.counts()
    }

    fn put(&mut self, path: &[u8], value: &[u8], mod_revision: i64) -> Vec<Change> {
        let key = match wire::parse_key(&self.prefix, path) {
            Ok(key) => key,
            Err(error) => {
                self.rejects.reject_at(&printable::key(path), mod_revision, error.reason(), error);
                return Vec::new();
            }
        };
        if let Some(listed) = &mut self.listed {
            listed.insert(key.clone());
        }
        match key {
            Key::Instance { service, id } => {
                self.put_instance(Name { service, id }, value, mod_revision)
            }
            Key::Exporter { id } if id == self.own_id => self.see_own(value),
            Key::Exporter { id } => self.see_other(id, path, value, mod_revision),
            Key::Status { .. } | Key::Control { .. } | Key::Policy { .. } | Key::Checks { .. } => {
                Vec::new()
            }
        }
    }

    /// What was there before this exporter's own announcement is an earlier
    /// process's; what comes after it is another one's.
    fn see_own(&mut self, value: &[u8]) -> Vec<Change> {
        let is_own = value == self.own_record;
        let is_rival = self.is_announced && !is_own;
        self.is_announced |= is_own;
        is_rival.then_some(Change::Rival).into_iter().collect()
    }

    /// Whoever announces itself gets a share; what is no announcement does not,
    /// since nobody would ask those instances.
    fn see_other(
        &mut self,
        id: String,
        path: &[u8],
        value: &[u8],
        mod_revision: i64,
    ) -> Vec<Change> {
        if let Err(error) = wire::decode_exporter(value) {
            self.rejects.reject_at(&printable::key(path), mod_revision, error.reason(), error);
            return Vec::new();
        }
        match self.exporters.insert(id) {
            true => self.settle_all(),
            false => Vec::new(),
        }
    }

    /// A registration that is refused leaves the last good one in place.
    fn put_instance(&mut self, name: Name, value: &[u8], mod_revision: i64) -> Vec<Change> {
        let subject = format!("{}/{}", name.service, name.id);
        let instance = match wire::decode_instance(&name.id, value) {
            Ok(instance) => instance,
            Err(error) => {
                self.rejects.reject_at(&subject, mod_revision, error.reason(), error);
                return Vec::new();
            }
        };
        if let Err(outside) = self.allow.check(&instance) {
            self.rejects.reject_at(&subject, mod_revision, "not_allowed", outside);
            return Vec::new();
        }
        self.rejects.forget_except(&subject, &[]);
        self.in_etcd.insert(name.clone(), instance);
        self.settle(name).into_iter().collect()
    }

    fn delete(&mut self, key: &Key) -> Vec<Change> {
        match key {
            Key::Instance { service, id } => {
                let name = Name { service: service.clone(), id: id.clone() };
                self.rejects.forget_except(&format!("{service}/{id}"), &[]);
                self.in_etcd.remove(&name);
                let register = self.in_file.contains_key(&name).then_some(Change::Missing);
                self.settle(name).into_iter().chain(register).collect()
            }
            Key::Exporter { id } if *id == self.own_id => {
                self.is_announced.then_some(Change::Missing).into_iter().collect()
            }
            Key::Exporter { id } if self.exporters.remove(id) => self.settle_all(),
            _ => Vec::new(),
        }
    }

    /// What was known and is not in the complete list is gone.
    fn finish_list(&mut self) -> Vec<Change> {
        let Some(listed) = self.listed.take() else { return Vec::new() };
        let instance = |Name { service, id }: &Name| Key::Instance {
            service: service.clone(),
            id: id.clone(),
        };
        let known = self.in_etcd.keys().map(instance);
        let exporters = self.exporters.iter().map(|id| Key::Exporter { id: id.clone() });
        let gone: Vec<Key> = known.chain(exporters).filter(|key| !listed.contains(key)).collect();
        let mut changes: Vec<Change> = gone.iter().flat_map(|key| self.delete(key)).collect();
        let is_missing = |name: &Name| !self.in_etcd.contains_key(name);
        if self.in_file.keys().any(is_missing) {
            changes.push(Change::Missing);
        }
        changes
    }

    fn names(&self) -> BTreeSet<Name> {
        self.in_file.keys().chain(self.in_etcd.keys()).cloned().collect()
    }

    fn settle_all(&mut self) -> Vec<Change> {
        self.names().into_iter().filter_map(|name| self.settle(name)).collect()
    }

    /// Brings `mine` in line for one instance.
    fn settle(&mut self, name: Name) -> Option<Change> {
        let wanted = self.target(&name).filter(|_| self.is_mine(&name)).cloned();
        let Some(wanted) = wanted else {
            return self.mine.remove(&name).map(|_| Change::Drop(name));
        };
        let url = wanted.status.clone()?;
        let addr = wanted.addr;
        let known = self.mine.insert(name.clone(), wanted);
        // At another address it is another process, also behind the same URL.
        let is_as_before =
            known.is_some_and(|known| known.addr == addr && known.status.as_ref() == Some(&url));
        (!is_as_before).then_some(Change::Ask(name, url))
    }

    /// The registration that counts, if it declares a status.
    fn target(&self, name: &Name) -> Option<&Instance> {
        let instance = self.in_etcd.get(name).or_else(|| self.in_file.get(name))?;
        instance.status.is_some().then_some(instance)
    }

    fn is_mine(&self, name: &Name) -> bool {
        let Name { service, id } = name;
        rendezvous::owner(&self.exporters, service, id) == Some(&self.own_id)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PREFIX: &str = "/ipconfig/v1";
    const OWN_RECORD: &[u8] = b"{}";

    fn name(id: &str) -> Name {
        Name { service: "chat".into(), id: id.into() }
    }

    fn fleet(config: serde_json::Value) -> Fleet {
        let mut config = config;
        config["exporter"]["id"] = json!("me");
        Fleet::new(&Config::parse(&config.to_string()).unwrap(), OWN_RECORD)
    }

    /// Each is another write.
    fn put(fleet: &mut Fleet, path: &str, value: &str) -> Vec<Change> {
        static WRITES: AtomicI64 = AtomicI64::new(100);
        put_at(fleet, WRITES.fetch_add(1, Relaxed), path, value)
    }

    fn put_at(fleet: &mut Fleet, mod_revision: i64, path: &str, value: &str) -> Vec<Change> {
        let key = format!("{PREFIX}/{path}").into_bytes();
        fleet.apply(Event::Put { key, value: value.into(), mod_revision })
    }

    fn delete(fleet: &mut Fleet, path: &str) -> Vec<Change> {
        let key = format!("{PREFIX}/{path}").into_bytes();
        fleet.apply(Event::Delete { key, mod_revision: 2 })
    }

    fn instance(port: u16, status: &str) -> String {
        json!({ "addr": format!("127.0.0.1:{port}"), "status": status }).to_string()
    }

    fn announcement() -> String {
        let record = wire::ExporterRecord {
            version: "0.1.0".into(),
            listen: "127.0.0.1:9180".parse().unwrap(),
            interval_ms: 1000,
            started_unix_ms: 7,
            registrations: String::new(),
        };
        String::from_utf8(wire::encode_exporter(&record)).unwrap()
    }

    #[test]
    fn what_is_no_announcement_gets_no_share() {
        let mut fleet = fleet(json!({ "services": {} }));
        for bad in ["garbage", "{}", "[]", ""] {
            assert_eq!(put(&mut fleet, "exporters/other", bad), []);
        }
        assert_eq!(fleet.exporters(), 1);
        assert_eq!(fleet.bad_records(), &BTreeMap::from([("json", 4)]));
    }

    fn ask(id: &str, url: &str) -> Change {
        Change::Ask(name(id), url.parse().unwrap())
    }

    #[test]
    fn an_instance_is_asked_from_its_registration_to_its_end() {
        let mut fleet = fleet(json!({ "services": {} }));
        let url = "grpc://127.0.0.1:9";
        assert_eq!(put(&mut fleet, "instances/chat/a", &instance(1, url)), [ask("a", url)]);
        assert_eq!(put(&mut fleet, "instances/chat/a", &instance(1, url)), []);
        assert_eq!(put(&mut fleet, "instances/chat/b", r#"{"addr":"127.0.0.1:2"}"#), []);
        assert_eq!(fleet.targets(), 1);
        assert_eq!(delete(&mut fleet, "instances/chat/a"), [Change::Drop(name("a"))]);
        assert_eq!(delete(&mut fleet, "instances/chat/a"), []);
    }

    #[test]
    fn a_changed_address_or_status_url_asks_anew() {
        let mut fleet = fleet(json!({ "services": {} }));
        let (one, other) = ("grpc://127.0.0.1:9", "orcas://127.0.0.1:9");
        put(&mut fleet, "instances/chat/a", &instance(1, one));
        assert_eq!(put(&mut fleet, "instances/chat/a", &instance(2, one)), [ask("a", one)]);
        assert_eq!(put(&mut fleet, "instances/chat/a", &instance(2, other)), [ask("a", other)]);
        let without = r#"{"addr":"127.0.0.1:2"}"#;
        let dropped = put(&mut fleet, "instances/chat/a", without);
        assert_eq!(dropped, [Change::Drop(name("a"))]);
    }

    #[test]
    fn etcd_s_word_counts_before_the_file_s_and_a_lost_one_is_registered_again() {
        let (in_file, in_etcd) = ("grpc://127.0.0.1:8", "grpc://127.0.0.1:9");
        let mut fleet = fleet(json!({ "services": { "chat": { "instances": [
            { "id": "a", "addr": "127.0.0.1:1", "status": in_file } ] } } }));
        assert_eq!(fleet.begin(), [ask("a", in_file)]);
        assert_eq!(put(&mut fleet, "instances/chat/a", &instance(1, in_etcd)), [ask("a", in_etcd)]);
        let changes = delete(&mut fleet, "instances/chat/a");
        assert_eq!(changes, [ask("a", in_file), Change::Missing]);
    }

    #[test]
    fn a_complete_list_replaces_what_was_known() {
        let mut fleet = fleet(json!({ "services": {} }));
        let url = "grpc://127.0.0.1:9";
        for id in ["a", "b"] {
            put(&mut fleet, &format!("instances/chat/{id}"), &instance(1, url));
        }
        put(&mut fleet, "exporters/gone", &announcement());
        fleet.apply(Event::Init);
        put(&mut fleet, "instances/chat/b", &instance(1, url));
        assert_eq!(fleet.exporters(), 2, "until the list is complete nothing is gone");
        fleet.apply(Event::InitDone { revision: 9 });
        assert_eq!((fleet.exporters(), fleet.targets()), (1, 1));
        assert_eq!(fleet.mine.keys().collect::<Vec<_>>(), [&name("b")]);
    }

    #[test]
    fn a_list_that_failed_half_way_takes_nothing_away() {
        let mut fleet = fleet(json!({ "services": {} }));
        put(&mut fleet, "instances/chat/a", &instance(1, "grpc://127.0.0.1:9"));
        fleet.apply(Event::Init);
        fleet.apply(Event::Init);
        assert_eq!(fleet.targets(), 1);
    }

    #[test]
    fn a_bad_registration_leaves_the_last_good_one_and_is_counted() {
        let mut fleet = fleet(json!({ "services": {}, "allow": ["127.0.0.0/8"] }));
        let url = "grpc://127.0.0.1:9";
        put(&mut fleet, "instances/chat/a", &instance(1, url));
        assert_eq!(put(&mut fleet, "instances/chat/a", "{"), []);
        for outside in [
            format!(r#"{{"addr":"10.0.0.1:1","status":"{url}"}}"#),
            r#"{"addr":"127.0.0.1:1","status":"grpc://10.0.0.1:1"}"#.to_owned(),
        ] {
            assert_eq!(put(&mut fleet, "instances/chat/b", &outside), []);
        }
        assert_eq!(fleet.bad_records(), &BTreeMap::from([("json", 1), ("not_allowed", 2)]));
        assert_eq!(fleet.targets(), 1);
    }

    #[test]
    fn what_a_list_repeats_is_not_counted_again() {
        let mut fleet = fleet(json!({ "services": {}, "allow": ["127.0.0.0/8"] }));
        let outside = r#"{"addr":"10.0.0.1:1"}"#;
        let records = [
            (3, "instances/\u{e4}", ""),
            (4, "instances/chat/a", "{"),
            (5, "instances/chat/b", outside),
            (6, "exporters/other", "garbage"),
        ];
        for _ in 0..3 {
            fleet.apply(Event::Audit);
            fleet.apply(Event::Init);
            for (mod_revision, path, value) in records {
                put_at(&mut fleet, mod_revision, path, value);
            }
            fleet.apply(Event::InitDone { revision: 9 });
        }
        let counted = BTreeMap::from([("json", 2), ("key", 1), ("not_allowed", 1)]);
        assert_eq!(fleet.bad_records(), &counted);
        put_at(&mut fleet, 10, "instances/chat/a", "{");
        assert_eq!(fleet.bad_records()["json"], 3, "it was written anew");
    }

    #[test]
    fn a_misshapen_key_that_was_deleted_is_logged_anew() {
        let (reader, writer) = std::io::pipe().unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(Mutex::new(writer)).finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut fleet = fleet(json!({ "services": {} }));
            put(&mut fleet, "instances/\u{e4}", "");
            put(&mut fleet, "instances/\u{e4}", "");
            delete(&mut fleet, "instances/\u{e4}");
            put(&mut fleet, "instances/\u{e4}", "");
            assert_eq!(fleet.bad_records(), &BTreeMap::from([("key", 3)]));
        });
        let log = std::io::read_to_string(reader).unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
    }

    #[test]
    fn another_process_of_the_same_id_is_noticed() {
        let mut fleet = fleet(json!({ "services": {} }));
        let own = String::from_utf8(OWN_RECORD.to_vec()).unwrap();
        let earlier = put(&mut fleet, "exporters/me", r#"{"version":"8"}"#);
        assert_eq!(earlier, [], "its own life before a restart");
        assert_eq!(put(&mut fleet, "exporters/me", &own), []);
        assert_eq!(put(&mut fleet, "exporters/me", r#"{"version":"9"}"#), [Change::Rival]);
        let deleted = delete(&mut fleet, "exporters/me");
        assert_eq!(deleted, [Change::Missing], "it lives, whatever etcd says");
        assert_eq!(fleet.exporters(), 1);
    }

    #[test]
    fn when_an_exporter_dies_exactly_its_share_is_taken_over() {
        let mut fleet = fleet(json!({ "services": {} }));
        put(&mut fleet, "exporters/other", &announcement());
        let url = "grpc://127.0.0.1:9";
        let asked: usize = (0..100)
            .map(|id| put(&mut fleet, &format!("instances/chat/{id}"), &instance(1, url)).len())
            .sum();
        assert!((30..70).contains(&asked), "{asked} of 100");
        let taken_over = delete(&mut fleet, "exporters/other");
        assert_eq!(taken_over.len(), 100 - asked);
        assert!(taken_over.iter().all(|change| matches!(change, Change::Ask(..))));
        let given = put(&mut fleet, "exporters/other", &announcement());
        assert_eq!(given.len(), 100 - asked);
        assert!(given.iter().all(|change| matches!(change, Change::Drop(_))));
    }

    proptest! {
        #[test]
        fn shares_are_even_and_one_that_joins_takes_from_all_and_moves_nothing_else(
            ids in proptest::collection::btree_set("[a-z]{1,10}", 1..6),
            newcomer in "[A-Z]{1,10}",
        ) {
            let names: Vec<Name> = (0..1000).map(|n| name(&format!("i{n}"))).collect();
            let joined: BTreeSet<_> = ids.iter().cloned().chain([newcomer.clone()]).collect();
            let mut taken = 0;
            for name in &names {
                let owner = |of| rendezvous::owner(of, &name.service, &name.id);
                let (before, after) = (owner(&ids), owner(&joined));
                prop_assert!(after == before || after == Some(&newcomer));
                taken += usize::from(after != before);
            }
            let fair = names.len() / joined.len();
            prop_assert!((fair / 2..=fair * 2).contains(&taken), "{} of {}", taken, fair);
        }
    }
}
