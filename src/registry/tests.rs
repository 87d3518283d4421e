use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::*;
use crate::config::{GuardConfig, StatusConfig, Unreachable};
use crate::model::{Report, Status};

mod checks;
mod clusters;
mod control;
mod guarded;
mod in_band;
mod restore;

const PREFIX: &str = "/ipconfig/v1";

/// A registry and its clock.
struct Fixture {
    registry: Registry,
    now: Instant,
    revision: i64,
}

impl Fixture {
    /// A gateway for the service `chat`, with these instances in its file. What is lost
    /// is believed, or one instance could not be looked at alone; see `guarded`.
    fn new(in_file: &[Instance]) -> Self {
        let guard = GuardConfig { max_loss: 100, ..GuardConfig::default() };
        let chat = ServiceConfig { instances: in_file.to_vec(), guard, ..ServiceConfig::default() };
        let services = BTreeMap::from([("chat".to_owned(), chat)]);
        Self::with(Config { services, ..Config::default() })
    }

    fn with(config: Config) -> Self {
        let now = Instant::now();
        let mut fixture = Self { registry: Registry::new(&config, now), now, revision: 10 };
        fixture.apply(Event::State(WatchState::Watching));
        fixture
    }

    /// A gateway that starts: it reads its first list.
    fn starting() -> Self {
        let mut fixture = Self::new(&[]);
        fixture.apply(Event::State(WatchState::Listing));
        fixture.apply(Event::Init);
        fixture
    }

    fn end_list(&mut self) {
        self.apply(Event::InitDone { revision: self.revision });
    }

    fn apply(&mut self, event: Event) {
        self.registry.apply(&event, self.now);
    }

    fn put(&mut self, key: &Key, value: Vec<u8>) {
        self.revision += 1;
        self.put_at(self.revision, key, value);
    }

    fn put_at(&mut self, mod_revision: i64, key: &Key, value: Vec<u8>) {
        self.apply(Event::Put { key: key.to_path(PREFIX).into(), value, mod_revision });
    }

    fn put_instance(&mut self, instance: &Instance) {
        self.put(&instance_key("chat", &instance.id), wire::encode_instance(instance));
    }

    fn delete(&mut self, key: &Key) {
        self.revision += 1;
        let mod_revision = self.revision;
        self.apply(Event::Delete { key: key.to_path(PREFIX).into(), mod_revision });
    }

    fn delete_instance(&mut self, id: &str) {
        self.delete(&instance_key("chat", id));
    }

    fn report(&mut self, statuses: &[(&str, Status)]) {
        let reports: Vec<_> =
            statuses.iter().map(|(id, status)| (*id, status.clone().into())).collect();
        self.tell("exporter-1", &reports);
    }

    fn tell(&mut self, exporter: &str, reports: &[(&str, Report)]) {
        let entry = |(id, report): &(&str, Report)| InstanceReport::new(*id, report.clone());
        self.tell_entries(exporter, &reports.iter().map(entry).collect::<Vec<_>>());
    }

    fn tell_entries(&mut self, exporter: &str, entries: &[InstanceReport]) {
        let (exporter, service) = (exporter.into(), "chat".into());
        let key = Key::Status { exporter, service, shard: 0 };
        self.put(&key, wire::encode_batch(entries));
    }

    /// The same for each of the seconds that it has lasted by now.
    fn lose(&mut self, id: &str, seconds: u64) {
        for second in 1..=seconds {
            self.pass(1000);
            self.tell("exporter-1", &[(id, unreachable(1000 * second + 20))]);
        }
    }

    /// One batch with a new status of each of these, then time until the next.
    fn second(&mut self, ids: &[&str]) {
        let seq = self.revision as u64;
        let statuses: Vec<_> = ids.iter().map(|id| (*id, status(seq))).collect();
        self.report(&statuses);
        self.pass(1000);
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 250 {
            self.now += Duration::from_millis(250);
            self.registry.tick(self.now);
        }
    }

    fn list(&mut self, revision: i64, records: &[(&Key, Vec<u8>, i64)]) {
        self.apply(Event::Init);
        for (key, value, mod_revision) in records {
            self.put_at(*mod_revision, key, value.clone());
        }
        self.apply(Event::InitDone { revision });
    }

    fn offered(&mut self) -> Vec<(String, State)> {
        let reading = self.registry.service("chat", self.now).unwrap();
        reading.members.iter().map(|member| (member.instance.id.clone(), member.state)).collect()
    }

    fn ids(&mut self) -> Vec<String> {
        self.offered().into_iter().map(|(id, _)| id).collect()
    }

    fn state(&mut self, id: &str) -> Option<State> {
        self.offered().into_iter().find(|(it, _)| it == id).map(|(_, state)| state)
    }

    fn load(&mut self, id: &str) -> Option<Load> {
        let members = self.registry.service("chat", self.now).unwrap().members;
        members.iter().find(|member| member.instance.id == id)?.load
    }

    fn bad(&self, reason: &str) -> u64 {
        self.registry.bad_records().get(reason).copied().unwrap_or(0)
    }
}

fn instance_key(service: &str, id: &str) -> Key {
    Key::Instance { service: service.into(), id: id.into() }
}

fn batch_key(service: &str) -> Key {
    Key::Status { exporter: "exporter-1".into(), service: service.into(), shard: 0 }
}

/// An instance without status, at a port of its own.
fn instance(id: &str, port: u16) -> Instance {
    Instance {
        id: id.into(),
        addr: SocketAddr::from(([127, 0, 0, 1], port)),
        weight: 1.0,
        zone: String::new(),
        labels: BTreeMap::new(),
        status: None,
        drain: false,
        max_in_flight: 0,
    }
}

/// The same, with one.
fn reporting(id: &str, port: u16) -> Instance {
    let status = Some(format!("grpc://127.0.0.1:{}", port + 100).parse().unwrap());
    Instance { status, ..instance(id, port) }
}

fn status_1() -> Status {
    status(1)
}

fn status(seq: u64) -> Status {
    Status { boot_id: 1, seq, requests: 100 * seq, in_flight: Some(2), ..Status::default() }
}

fn unreachable(silent_ms: u64) -> Report {
    Report::Unreachable { silent_for: Duration::from_millis(silent_ms) }
}

// Instances.

#[test]
fn instances_of_the_file_and_of_etcd_are_offered_side_by_side() {
    let mut fixture = Fixture::new(&[instance("a", 1)]);
    fixture.put_instance(&instance("b", 2));
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn etcd_wins_over_the_file_and_the_file_comes_back() {
    let mut fixture = Fixture::new(&[instance("a", 1)]);
    fixture.put_instance(&instance("a", 2));
    let addr = |fixture: &mut Fixture| {
        fixture.registry.service("chat", fixture.now).unwrap().members[0].instance.addr.port()
    };
    assert_eq!(addr(&mut fixture), 2);
    fixture.delete_instance("a");
    assert_eq!(addr(&mut fixture), 1);
}

#[test]
fn a_deleted_instance_is_offered_no_more() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    fixture.delete_instance("a");
    assert!(fixture.ids().is_empty());
}

#[test]
fn a_draining_instance_is_not_offered_until_it_stops_draining() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&Instance { drain: true, ..instance("a", 1) });
    assert!(fixture.ids().is_empty());
    fixture.put_instance(&instance("a", 1));
    assert_eq!(fixture.ids(), ["a"]);
}

#[test]
fn a_bad_new_value_leaves_the_last_good_one_and_is_counted() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    fixture.put(&instance_key("chat", "a"), b"{".to_vec());
    assert_eq!(fixture.ids(), ["a"]);
    assert_eq!(fixture.bad("json"), 1);
    fixture.delete_instance("a");
    assert!(fixture.ids().is_empty());
}

#[test]
fn what_a_list_repeats_is_not_counted_again() {
    let allow = Allow(vec!["127.0.0.0/8".parse().unwrap()]);
    let text = r#"{"services": {"chat": {"check": {"tcp": true, "by": "one"}}}}"#;
    let mut fixture = Fixture::with(Config { allow, ..Config::parse(text).unwrap() });
    let outside = Instance { addr: "10.0.0.1:1".parse().unwrap(), ..instance("b", 1) };
    let control = Key::Control { service: "chat".into() };
    let checks = Key::Checks { gateway: "gw-1".into(), service: "chat".into() };
    let key = instance_key("chat", "a");
    let records = [
        (&key, b"{".to_vec(), 3),
        (&instance_key("chat", "b"), wire::encode_instance(&outside), 4),
        (&instance_key("mail", "a"), b"{}".to_vec(), 5),
        (&instance_key("mail", "b"), b"{}".to_vec(), 6),
        (&batch_key("chat"), b"\xff\xff".to_vec(), 7),
        (&control, b"[".to_vec(), 8),
        (&checks, b"?".to_vec(), 9),
    ];
    let misshapen = || Event::Put {
        key: format!("{PREFIX}/instances/chat/a/b").into(),
        value: vec![],
        mod_revision: 2,
    };
    let wanted = BTreeMap::from([
        ("checks", 1),
        ("control", 1),
        ("json", 1),
        ("key", 1),
        ("not_allowed", 1),
        ("protobuf", 1),
        ("unknown_service", 2),
    ]);
    for _ in 0..3 {
        fixture.apply(Event::Audit);
        fixture.apply(Event::Init);
        fixture.apply(misshapen());
        for (key, value, mod_revision) in &records {
            fixture.put_at(*mod_revision, key, value.clone());
        }
        fixture.apply(Event::InitDone { revision: 20 });
        assert_eq!(fixture.registry.bad_records(), &wanted);
    }
    fixture.put_at(21, &key, b"{".to_vec());
    assert_eq!(fixture.bad("json"), 2, "it was written anew");
    fixture.list(30, &[(&key, b"{".to_vec(), 25)]);
    assert_eq!(fixture.bad("json"), 3, "and once more, unseen");
}

#[test]
fn a_bad_value_in_a_list_keeps_the_last_good_one_too() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    fixture.list(20, &[(&instance_key("chat", "a"), b"{".to_vec(), 15)]);
    assert_eq!(fixture.ids(), ["a"]);
}

#[test]
fn bad_records_do_not_touch_their_neighbours() {
    let mut fixture = Fixture::new(&[]);
    fixture.put(&instance_key("chat", "bad"), b"[]".to_vec());
    let key = format!("{PREFIX}/instances/chat/a/b").into();
    fixture.apply(Event::Put { key, value: b"{}".to_vec(), mod_revision: 90 });
    fixture.revision = 90;
    fixture.put(&batch_key("chat"), b"\xff\xff".to_vec());
    fixture.put_instance(&instance("a", 1));
    assert_eq!(fixture.ids(), ["a"]);
    assert_eq!((fixture.bad("json"), fixture.bad("key"), fixture.bad("protobuf")), (1, 1, 1));
}

#[test]
fn a_registration_outside_of_allow_is_dropped_and_the_last_good_one_stays() {
    let allow = Allow(vec!["127.0.0.0/8".parse().unwrap()]);
    let services = BTreeMap::from([("chat".to_owned(), ServiceConfig::default())]);
    let outside = |id| Instance { addr: "10.0.0.1:1".parse().unwrap(), ..instance(id, 1) };
    let log = logged(|| {
        let mut fixture = Fixture::with(Config { allow, services, ..Config::default() });
        fixture.put_instance(&instance("a", 1));
        let mapped = "[::ffff:127.0.0.1]:2".parse().unwrap();
        fixture.put_instance(&Instance { addr: mapped, ..instance("b", 2) });
        for id in ["a", "a", "c"] {
            fixture.put_instance(&outside(id));
        }
        assert_eq!(fixture.ids(), ["a", "b"]);
        let members = fixture.registry.service("chat", fixture.now).unwrap().members;
        assert_eq!(members[0].instance.addr.to_string(), "127.0.0.1:1");
        assert_eq!(fixture.bad("not_allowed"), 3);
        fixture.delete_instance("a");
        assert_eq!(fixture.ids(), ["b"]);
    });
    assert_eq!(log.lines().count(), 2, "once for each key: {log}");
    assert!(log.contains("10.0.0.1:1 is outside of allow: 127.0.0.0/8"), "{log}");
}

#[test]
fn keys_of_other_kinds_are_ignored_and_not_counted_unless_misshapen() {
    let mut fixture = Fixture::new(&[]);
    fixture.put(&Key::Policy { service: "chat".into() }, b"?".to_vec());
    fixture.put(&Key::Exporter { id: "exporter-1".into() }, b"?".to_vec());
    assert!(fixture.registry.bad_records().is_empty());
    let key = format!("{PREFIX}/control/chat/more").into();
    fixture.apply(Event::Put { key, value: Vec::new(), mod_revision: 90 });
    assert_eq!(fixture.bad("key"), 1);
}

#[test]
fn a_bad_record_is_logged_once_with_key_and_reason_and_anew_after_a_good_one() {
    let key = instance_key("chat", "a");
    let log = logged(|| {
        let mut fixture = Fixture::new(&[]);
        (0..3).for_each(|_| fixture.put(&key, b"{".to_vec()));
        fixture.put_instance(&instance("a", 1));
        fixture.put(&key, b"{".to_vec());
        fixture.delete_instance("a");
        fixture.put(&key, b"{".to_vec());
        assert_eq!(fixture.bad("json"), 5);
    });
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 3, "{log}");
    let key = key.to_path(PREFIX);
    assert!(lines.iter().all(|line| line.contains(&key) && line.contains("json")), "{log}");
}

#[test]
fn a_misshapen_key_that_was_deleted_is_logged_anew() {
    let long = [format!("{PREFIX}/").as_bytes(), &[b'\n'; 10_000]].concat();
    for key in [b"/\xff".to_vec(), long] {
        let log = logged(|| {
            let mut fixture = Fixture::new(&[]);
            let put = |mod_revision| Event::Put { key: key.clone(), value: vec![], mod_revision };
            fixture.apply(put(20));
            fixture.apply(put(21));
            fixture.apply(Event::Delete { key: key.clone(), mod_revision: 22 });
            fixture.apply(put(23));
        });
        assert_eq!(log.lines().count(), 2, "{log}");
    }
}

#[test]
fn a_bad_status_is_dropped_alone_counted_each_time_and_logged_once() {
    let log = logged(|| {
        let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
        let bad = |seq| Status { cpu_used_cores: Some(f64::NAN), ..status(seq) };
        fixture.report(&[("a", bad(1)), ("b", status(1))]);
        fixture.report(&[("a", bad(2)), ("b", status(2))]);
        fixture.report(&[("a", status(3)), ("b", status(3))]);
        fixture.report(&[("a", bad(4)), ("b", status(4))]);
        assert_eq!(fixture.bad("status"), 3);
        assert!(fixture.offered().iter().all(|(_, state)| *state == State::Reporting));
    });
    assert_eq!(log.lines().count(), 2, "{log}");
}

#[test]
fn what_is_logged_of_a_hostile_key_is_short_and_printable() {
    let log = logged(|| {
        let mut fixture = Fixture::new(&[]);
        let key = [b"/\n\x1b[31m\xff".as_slice(), &[b'x'; 100_000]].concat();
        fixture.apply(Event::Put { key, value: Vec::new(), mod_revision: 90 });
        assert_eq!(fixture.bad("key"), 1);
    });
    let printed = log.split("key=").nth(1).unwrap();
    assert!(printed.contains(r"\\n") && printed.len() < 4096, "{log}");
}

/// A place to log to.
struct Shared(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What `act` logs, a line an event.
fn logged(act: impl FnOnce()) -> String {
    let log = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer({
        let log = Arc::clone(&log);
        move || Shared(Arc::clone(&log))
    });
    tracing::subscriber::with_default(subscriber.finish(), act);
    let bytes = log.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

// Services.

#[test]
fn a_service_unknown_to_the_configuration_is_ignored_and_counted() {
    let mut fixture = Fixture::new(&[]);
    fixture.put(&instance_key("mail", "a"), wire::encode_instance(&instance("a", 1)));
    fixture.put(&batch_key("mail"), Vec::new());
    assert_eq!(fixture.bad("unknown_service"), 2);
    assert_eq!(fixture.registry.service_names().collect::<Vec<_>>(), ["chat"]);
    assert!(fixture.registry.keys.is_empty());
}

#[test]
fn a_discovered_service_exists_as_long_as_it_has_instances() {
    let discover = Discover::Names(vec!["mail*".into()]);
    let mut fixture = Fixture::with(Config { discover, ..Config::default() });
    fixture.put(&batch_key("mail-1"), Vec::new());
    assert_eq!(fixture.registry.service_names().count(), 0);
    fixture.put(&instance_key("mail-1", "a"), wire::encode_instance(&instance("a", 1)));
    let reading = fixture.registry.service("mail-1", fixture.now).unwrap();
    assert_eq!((reading.config, reading.members.len()), (&ServiceConfig::default(), 1));
    fixture.registry.take_dirty();
    let drains = Instance { drain: true, ..instance("a", 1) };
    fixture.put(&instance_key("mail-1", "a"), wire::encode_instance(&drains));
    fixture.delete(&instance_key("mail-1", "a"));
    assert!(fixture.registry.service("mail-1", fixture.now).is_none());
    assert_eq!(fixture.registry.take_dirty(), ["mail-1"]);
}

#[test]
fn a_configured_service_exists_without_instances() {
    let mut fixture = Fixture::new(&[]);
    assert_eq!(fixture.registry.take_dirty(), ["chat"]);
    assert!(fixture.registry.service("chat", fixture.now).unwrap().members.is_empty());
    assert!(fixture.registry.service("mail", fixture.now).is_none());
}

// Addresses.

#[test]
fn of_two_instances_with_one_address_the_newest_registration_is_offered() {
    let mut fixture = Fixture::new(&[instance("file", 1)]);
    fixture.put_instance(&instance("old", 1));
    fixture.put_instance(&instance("new", 1));
    assert_eq!(fixture.ids(), ["new"]);
    assert_eq!(fixture.bad("duplicate_addr"), 2);
    fixture.delete_instance("new");
    assert_eq!(fixture.ids(), ["old"]);
    fixture.delete_instance("old");
    assert_eq!(fixture.ids(), ["file"]);
    assert_eq!(fixture.bad("duplicate_addr"), 2);
}

#[test]
fn an_instance_without_an_address_to_itself_is_counted_once() {
    let mut fixture = Fixture::new(&[instance("file", 1)]);
    fixture.put_instance(&instance("a", 1));
    fixture.put_instance(&Instance { weight: 7.0, ..instance("a", 1) });
    assert_eq!(fixture.bad("duplicate_addr"), 1);
    fixture.put_instance(&instance("a", 2));
    assert_eq!(fixture.ids(), ["a", "file"]);
    fixture.put_instance(&instance("a", 1));
    assert_eq!(fixture.bad("duplicate_addr"), 2);
}

#[test]
fn of_two_in_the_file_the_smaller_id_is_offered() {
    let mut fixture = Fixture::new(&[instance("b", 1), instance("a", 1)]);
    assert_eq!(fixture.ids(), ["a"]);
    assert_eq!(fixture.bad("duplicate_addr"), 1);
}

#[test]
fn an_instance_that_falls_back_to_the_file_gives_its_address_up() {
    let mut fixture = Fixture::new(&[instance("a", 1)]);
    fixture.put_instance(&instance("b", 1));
    fixture.put_instance(&instance("a", 1));
    assert_eq!((fixture.ids(), fixture.bad("duplicate_addr")), (vec!["a".to_owned()], 2));
    fixture.delete_instance("a");
    assert_eq!((fixture.ids(), fixture.bad("duplicate_addr")), (vec!["b".to_owned()], 3));
}

#[test]
fn a_draining_instance_leaves_its_address_to_its_successor() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("old", 1));
    fixture.put_instance(&instance("new", 1));
    fixture.put_instance(&Instance { drain: true, ..instance("old", 1) });
    assert_eq!(fixture.ids(), ["new"]);
}

#[test]
fn an_eclipsed_instance_is_not_counted_again_by_a_list() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    fixture.put_instance(&instance("b", 1));
    let value = |id| wire::encode_instance(&instance(id, 1));
    let (a, b) = (instance_key("chat", "a"), instance_key("chat", "b"));
    fixture.list(5, &[(&a, value("a"), 3), (&b, value("b"), 4)]);
    assert_eq!((fixture.ids(), fixture.bad("duplicate_addr")), (vec!["b".to_owned()], 1));
}

#[test]
fn one_address_in_two_services_is_no_duplicate() {
    let mut fixture = Fixture::with(Config { discover: Discover::All, ..Config::default() });
    for service in ["chat", "mail"] {
        fixture.put(&instance_key(service, "a"), wire::encode_instance(&instance("a", 1)));
        assert_eq!(fixture.registry.service(service, fixture.now).unwrap().members.len(), 1);
    }
    assert_eq!(fixture.bad("duplicate_addr"), 0);
}

// Lists and revisions.

#[test]
fn a_list_removes_what_is_not_in_it_and_only_when_it_is_complete() {
    let mut fixture = Fixture::new(&[instance("file", 9)]);
    fixture.put_instance(&instance("a", 1));
    fixture.put_instance(&instance("b", 2));
    fixture.apply(Event::Init);
    let b = instance("b", 2);
    fixture.put_at(20, &instance_key("chat", "b"), wire::encode_instance(&b));
    assert_eq!(fixture.ids(), ["a", "b", "file"]);
    assert!(!fixture.registry.has_synced());
    fixture.apply(Event::InitDone { revision: 20 });
    assert_eq!(fixture.ids(), ["b", "file"]);
    assert!(fixture.registry.has_synced());
    assert_eq!(fixture.registry.revision(), 20);
}

#[test]
fn a_list_that_broke_off_removes_nothing_and_does_not_count_for_the_next() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    fixture.put_instance(&instance("b", 2));
    fixture.apply(Event::Init);
    fixture.put_at(11, &instance_key("chat", "a"), wire::encode_instance(&instance("a", 1)));
    let b = wire::encode_instance(&instance("b", 2));
    fixture.list(20, &[(&instance_key("chat", "b"), b, 12)]);
    assert_eq!(fixture.ids(), ["b"]);
}

#[test]
fn the_window_and_state_of_those_in_a_list_live_on() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&reporting("a", 1));
    fixture.second(&["a"]);
    fixture.second(&["a"]);
    let rate = |fixture: &mut Fixture| {
        fixture.registry.service("chat", fixture.now).unwrap().members[0].load.unwrap().rate
    };
    let before = rate(&mut fixture);
    assert!(before.is_some());
    let a = wire::encode_instance(&reporting("a", 1));
    fixture.list(20, &[(&instance_key("chat", "a"), a, 11)]);
    assert_eq!(rate(&mut fixture), before);
}

#[test]
fn a_list_replaces_even_with_lower_revisions() {
    let mut fixture = Fixture::new(&[]);
    fixture.revision = 1000;
    fixture.put_instance(&instance("a", 1));
    let a = wire::encode_instance(&instance("a", 2));
    fixture.list(5, &[(&instance_key("chat", "a"), a, 3)]);
    let members = fixture.registry.service("chat", fixture.now).unwrap().members;
    assert_eq!(members[0].instance.addr.port(), 2);
    assert_eq!(fixture.registry.revision(), 5);
    fixture.put_at(6, &instance_key("chat", "b"), wire::encode_instance(&instance("b", 3)));
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn an_audit_counts_what_it_puts_right_and_a_list_counts_nothing() {
    let mut world = Fixture::new(&[]);
    let keys = ["a", "b", "c", "d"].map(|id| instance_key("chat", id));
    let value = |id: &str, port| wire::encode_instance(&instance(id, port));
    let [a, b, c, d] = &keys;
    world.list(10, &[(a, value("a", 1), 3), (b, value("b", 2), 4), (c, value("c", 3), 5)]);
    assert_eq!(world.registry.audits(), audits::Figures::default());
    world.apply(Event::Audit);
    world.list(10, &[(a, value("a", 1), 3), (b, value("b", 2), 4), (c, value("c", 3), 5)]);
    assert_eq!(world.registry.audits(), audits::Figures { complete: 1, differences: 0 });

    // `b` is another one, `c` is gone, `d` was missed.
    world.apply(Event::Audit);
    world.list(10, &[(a, value("a", 1), 3), (b, value("b", 9), 8), (d, value("d", 4), 7)]);
    assert_eq!(world.registry.audits(), audits::Figures { complete: 2, differences: 3 });
    assert_eq!(world.ids(), ["a", "b", "d"]);
    world.list(20, &[(a, value("a", 1), 3)]);
    assert_eq!(world.registry.audits(), audits::Figures { complete: 2, differences: 3 });
}

#[test]
fn an_older_event_changes_nothing_also_after_a_delete() {
    let mut fixture = Fixture::new(&[]);
    let key = instance_key("chat", "a");
    let value = |port| wire::encode_instance(&instance("a", port));
    fixture.put_at(20, &key, value(1));
    fixture.put_at(19, &key, value(2));
    fixture.apply(Event::Delete { key: key.to_path(PREFIX).into(), mod_revision: 18 });
    let members = fixture.registry.service("chat", fixture.now).unwrap().members;
    assert_eq!(members[0].instance.addr.port(), 1);
    fixture.apply(Event::Delete { key: key.to_path(PREFIX).into(), mod_revision: 21 });
    fixture.put_at(20, &key, value(1));
    assert!(fixture.ids().is_empty());
    fixture.put_at(22, &key, value(1));
    assert_eq!(fixture.ids(), ["a"]);
}

#[test]
fn a_put_of_the_transaction_that_deleted_another_key_counts() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    let key = instance_key("chat", "a").to_path(PREFIX).into();
    fixture.apply(Event::Delete { key, mod_revision: 30 });
    fixture.put_at(30, &instance_key("chat", "b"), wire::encode_instance(&instance("b", 1)));
    assert_eq!(fixture.ids(), ["b"]);
}

#[test]
fn a_delete_at_the_first_revision_that_there_is_changes_nothing() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    let key = instance_key("chat", "b").to_path(PREFIX).into();
    fixture.apply(Event::Delete { key, mod_revision: i64::MIN });
    assert_eq!(fixture.ids(), ["a"]);
}

#[test]
fn a_put_from_before_the_list_does_not_bring_back_what_the_list_did_not_have() {
    let mut fixture = Fixture::new(&[]);
    fixture.list(20, &[]);
    fixture.put_at(19, &instance_key("chat", "a"), wire::encode_instance(&instance("a", 1)));
    assert!(fixture.ids().is_empty());
}

#[test]
fn progress_moves_the_revision_and_nothing_else() {
    let mut fixture = Fixture::new(&[instance("a", 1)]);
    fixture.registry.take_dirty();
    fixture.apply(Event::Progress { revision: 77 });
    assert_eq!(fixture.registry.revision(), 77);
    assert!(fixture.registry.take_dirty().is_empty());
}

// Statuses.

#[test]
fn a_reported_instance_has_a_load_and_one_that_declares_no_status_needs_none() {
    let mut fixture = Fixture::new(&[instance("plain", 1), reporting("a", 2), reporting("b", 3)]);
    fixture.second(&["a"]);
    let offered = fixture.offered();
    let states: Vec<State> = offered.iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [State::Reporting, State::Unknown, State::Unreported]);
    let members = fixture.registry.service("chat", fixture.now).unwrap().members;
    assert_eq!(members[0].load.unwrap().in_flight, Some(2.0));
    assert_eq!((members[1].load, members[2].load), (None, None));
}

#[test]
fn a_batch_that_comes_before_its_instance_is_dropped_and_not_counted() {
    let mut fixture = Fixture::new(&[]);
    fixture.report(&[("a", status(1))]);
    fixture.pass(500);
    fixture.put_instance(&reporting("a", 1));
    assert_eq!(fixture.offered(), [("a".to_owned(), State::Unknown)]);
    fixture.second(&["a"]);
    assert_eq!(fixture.offered(), [("a".to_owned(), State::Reporting)]);
    assert_eq!(fixture.bad("unknown_instance"), 0);
}

#[test]
fn a_batch_that_comes_after_its_instance_left_is_not_counted() {
    let mut fixture = Fixture::new(&[reporting("b", 2)]);
    fixture.put_instance(&reporting("a", 1));
    fixture.second(&["a", "b"]);
    fixture.delete_instance("a");
    fixture.second(&["a", "b"]);
    (0..9).for_each(|_| fixture.second(&["b"]));
    fixture.second(&["a", "b"]);
    assert_eq!(fixture.bad("unknown_instance"), 0);
}

#[test]
fn an_instance_that_batches_go_on_naming_without_its_being_there_is_counted() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    (0..4).for_each(|_| fixture.second(&["a", "ghost"]));
    assert_eq!(fixture.bad("unknown_instance"), 0);
    fixture.second(&["a", "ghost"]);
    assert_eq!(fixture.bad("unknown_instance"), 1);
    assert_eq!(fixture.offered(), [("a".to_owned(), State::Reporting)]);
}

#[test]
fn a_stranger_is_counted_though_batches_between_its_own_leave_it_out() {
    let log = logged(|| {
        let mut fixture = Fixture::new(&[reporting("a", 1)]);
        for seq in 0..12 {
            let entry = |id: &str| InstanceReport {
                interval: Duration::from_secs(3),
                ..InstanceReport::new(id, status(seq).into())
            };
            let ghost = seq.is_multiple_of(3).then(|| entry("ghost"));
            let entries: Vec<_> = ghost.into_iter().chain([entry("a")]).collect();
            fixture.tell_entries("exporter-1", &entries);
            fixture.pass(1000);
        }
        assert_eq!(fixture.bad("unknown_instance"), 2, "of seconds 6 and 9");
    });
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("1 not registered in"), "{log}");
}

#[test]
fn a_repeated_status_is_a_sign_of_life_as_of_the_time_that_its_age_says() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    for seconds in 0..6 {
        let old = Status { age: Duration::from_secs(seconds), ..status(1) };
        fixture.report(&[("a", status(1)), ("b", old)]);
        fixture.pass(1000);
    }
    assert_eq!(fixture.state("a"), Some(State::Reporting));
    assert_eq!(fixture.load("a").unwrap().rate, None, "and no news for the window");
    assert_eq!(fixture.state("b"), Some(State::Unknown));
}

#[test]
fn what_a_list_repeats_is_no_sign_of_life() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    let batch = wire::encode_batch(&[InstanceReport::new("a", status(1).into())]);
    let key = batch_key("chat");
    fixture.put_at(20, &key, batch.clone());
    fixture.pass(4000);
    fixture.list(30, &[(&key, batch.clone(), 20)]);
    assert_eq!(fixture.state("a"), Some(State::Unknown));
    fixture.list(40, &[(&key, batch, 35)]);
    assert_eq!(fixture.state("a"), Some(State::Reporting));
}

#[test]
fn an_aged_status_counts_from_when_its_figures_were_taken() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    let aged = |seq, seconds| Status { age: Duration::from_secs(seconds), ..status(seq) };
    fixture.report(&[("a", status(1)), ("b", status(1)), ("c", aged(1, 4))]);
    let states: Vec<State> = fixture.offered().iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [State::Reporting, State::Reporting, State::Unknown]);
    fixture.report(&[("c", aged(2, 1))]);
    assert_eq!(fixture.state("c"), Some(State::Reporting));
    fixture.pass(2250);
    assert_eq!(fixture.state("c"), Some(State::Unknown));
}

#[test]
fn a_report_is_fresh_for_as_long_as_its_interval_allows() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    let entry = |id, seconds| InstanceReport {
        interval: Duration::from_secs(seconds),
        ..InstanceReport::new(id, status(1).into())
    };
    fixture.tell_entries("exporter-1", &[entry("a", 0), entry("b", 3)]);
    fixture.pass(9000);
    assert_eq!(fixture.state("a"), Some(State::Unknown));
    assert_eq!(fixture.state("b"), Some(State::Reporting));
    assert_eq!(fixture.load("b"), Some(Load::default()), "its window has passed");
    fixture.pass(250);
    assert_eq!(fixture.state("b"), Some(State::Unknown));
}

#[test]
fn an_instance_that_serves_and_has_no_figures_reports_and_has_an_empty_load() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    fixture.tell("exporter-1", &[("a", Report::Serving)]);
    assert_eq!(fixture.state("a"), Some(State::Reporting));
    assert_eq!(fixture.load("a"), Some(Load::default()));
}

// Several exporters.

#[test]
fn two_exporters_that_make_up_their_counters_do_not_disturb_each_other() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    let of_other = |seq| Status { boot_id: 2, ..status(seq) };
    for seq in 1..10 {
        fixture.tell("exporter-1", &[("a", status(seq).into())]);
        fixture.pass(500);
        fixture.tell("exporter-2", &[("a", of_other(seq).into())]);
        fixture.pass(500);
    }
    assert_eq!(fixture.load("a").unwrap().rate, Some(100.0));
    // The first one dies, and is not waited for.
    for seq in 10..20 {
        fixture.tell("exporter-2", &[("a", of_other(3 * seq).into())]);
        fixture.pass(1000);
    }
    assert_eq!(fixture.load("a").unwrap().rate, Some(300.0));
    assert!(fixture.registry.bad_records().is_empty());
}

#[test]
fn what_the_instance_counts_itself_is_taken_from_either_exporter() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    for seq in 1..10 {
        for exporter in ["exporter-1", "exporter-2"] {
            fixture.tell(exporter, &[("a", status(seq).into())]);
        }
        fixture.pass(1000);
    }
    assert_eq!(fixture.load("a").unwrap().rate, Some(100.0));
}

#[test]
fn a_restart_is_seen_at_once_by_its_own_exporter() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    (0..3).for_each(|_| fixture.second(&["a"]));
    let restarted = |seq| Status { boot_id: 9, ..status(seq) };
    fixture.report(&[("a", restarted(1))]);
    assert_eq!(fixture.load("a").unwrap().rate, None, "a baseline and no more");
    fixture.pass(1000);
    fixture.report(&[("a", restarted(2))]);
    assert_eq!(fixture.load("a").unwrap().rate, Some(100.0));
}

#[test]
fn an_instance_that_one_exporter_reaches_stays_though_another_one_does_not() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.second(&["a", "b", "c"]);
    for second in 1..20 {
        fixture.tell("exporter-2", &[("c", unreachable(second * 1000))]);
        fixture.second(&["a", "b", "c"]);
        assert_eq!(fixture.state("c"), Some(State::Reporting));
    }
}

// Who is out, end to end; the rule has tests of its own.

#[test]
fn an_instance_unreachable_for_three_intervals_leaves_until_its_next_good_report() {
    for good in [status(999).into(), Report::Serving] {
        let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
        fixture.report(&[("a", status(1)), ("b", status(1)), ("c", status(1))]);
        fixture.lose("c", 2);
        assert_eq!(fixture.ids(), ["a", "b", "c"]);
        fixture.lose("c", 3);
        assert_eq!(fixture.ids(), ["a", "b"]);
        fixture.tell("exporter-1", &[("c", good)]);
        assert_eq!(fixture.state("c"), Some(State::Reporting));
    }
}

#[test]
fn an_exporter_that_asks_less_often_is_given_as_many_of_its_own_intervals() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    let tell = |fixture: &mut Fixture, silent_ms| {
        let interval = Duration::from_secs(5);
        let entry = InstanceReport { interval, ..InstanceReport::new("c", unreachable(silent_ms)) };
        fixture.tell_entries("exporter-1", &[entry]);
    };
    tell(&mut fixture, 15_000);
    assert_eq!(fixture.state("c"), Some(State::Unreachable));
    tell(&mut fixture, 15_001);
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn one_that_was_down_for_more_than_a_day_is_out_as_well() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.tell("exporter-1", &[("c", unreachable(25 * 3_600_000))]);
    assert_eq!(fixture.ids(), ["a", "b"]);
    assert!(fixture.registry.bad_records().is_empty());
}

#[test]
fn silence_alone_makes_an_instance_unknown_and_puts_nobody_out() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.second(&["a", "b", "c"]);
    for _ in 0..60 {
        fixture.second(&["a", "b"]);
        assert_eq!(fixture.ids(), ["a", "b", "c"]);
    }
    assert_eq!(fixture.state("c"), Some(State::Unknown));
    fixture.pass(60_000);
    let unknown = |id: &str| (id.to_owned(), State::Unknown);
    assert_eq!(fixture.offered(), [unknown("a"), unknown("b"), unknown("c")]);
}

#[test]
fn an_instance_that_wants_no_requests_leaves_at_once_and_comes_back_as_soon() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    fixture.report(&[("a", status(1)), ("b", status(1))]);
    fixture.tell("exporter-1", &[("b", Report::NotServing)]);
    assert_eq!(fixture.ids(), ["a"]);
    fixture.tell("exporter-1", &[("b", unreachable(20))]);
    assert_eq!(fixture.ids(), ["a"], "its process has ended");
    fixture.tell("exporter-1", &[("b", Report::Serving)]);
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn when_most_are_unreachable_all_stay_and_show_it() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.second(&["a", "b", "c"]);
    for second in 1..60 {
        let lost = unreachable(second * 1000);
        fixture.tell("exporter-1", &[("b", lost.clone()), ("c", lost)]);
        fixture.second(&["a"]);
        assert_eq!(fixture.ids(), ["a", "b", "c"]);
    }
    let states: Vec<State> = fixture.offered().iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [State::Reporting, State::Unreachable, State::Unreachable]);
    assert_eq!(fixture.load("b"), None);
}

#[test]
fn a_service_says_after_how_many_intervals_and_whether_at_all() {
    let fixture = |status| {
        let instances = vec![reporting("a", 1), reporting("b", 2), reporting("c", 3)];
        let chat = ServiceConfig { instances, status, ..ServiceConfig::default() };
        let services = BTreeMap::from([("chat".to_owned(), chat)]);
        let mut fixture = Fixture::with(Config { services, ..Config::default() });
        fixture.report(&[("a", status_1()), ("b", status_1()), ("c", status_1())]);
        fixture
    };
    let mut patient = fixture(StatusConfig { missed: 5, ..StatusConfig::default() });
    patient.lose("c", 4);
    assert_eq!(patient.state("c"), Some(State::Reporting));
    patient.lose("c", 5);
    assert_eq!(patient.ids(), ["a", "b"]);

    let keep = StatusConfig { unreachable: Unreachable::Keep, ..StatusConfig::default() };
    let mut keeping = fixture(keep);
    keeping.lose("c", 10);
    assert_eq!(keeping.state("c"), Some(State::Unreachable));
}

#[test]
fn an_instance_without_declared_status_is_never_put_out() {
    let mut fixture = Fixture::new(&[instance("plain", 1), reporting("a", 2), reporting("b", 3)]);
    fixture.second(&["a", "b"]);
    fixture.lose("plain", 9);
    fixture.tell("exporter-1", &[("plain", Report::NotServing)]);
    assert_eq!(fixture.state("plain"), Some(State::Unreported));
}

#[test]
fn a_new_status_address_is_given_time_to_answer() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    fixture.put_instance(&reporting("c", 3));
    fixture.lose("c", 4);
    assert_eq!(fixture.ids(), ["a", "b"]);
    fixture.put_instance(&reporting("c", 4));
    assert_eq!(fixture.state("c"), Some(State::Unknown));
}

#[test]
fn draining_instances_do_not_vote_the_last_one_out() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    for (id, port) in [("b", 2), ("c", 3)] {
        fixture.put_instance(&Instance { drain: true, ..reporting(id, port) });
    }
    fixture.second(&["b", "c"]);
    fixture.lose("a", 9);
    assert_eq!(fixture.offered(), [("a".to_owned(), State::Unreachable)]);
}

// What the next stage goes by.

#[test]
fn only_services_that_may_have_changed_are_dirty() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.registry.take_dirty();
    fixture.report(&[("a", status(1))]);
    assert_eq!(fixture.registry.take_dirty(), ["chat"]);
    assert!(fixture.registry.take_dirty().is_empty());
    fixture.report(&[("a", status(1))]);
    assert!(fixture.registry.take_dirty().is_empty());
    // The window moves on, and then there is nothing left in it.
    fixture.pass(5250);
    assert_eq!(fixture.registry.take_dirty(), ["chat"]);
    fixture.pass(1000);
    assert!(fixture.registry.take_dirty().is_empty());
}

#[test]
fn time_alone_shows_every_change_of_state_as_dirty() {
    let mut fixture = Fixture::new(&[instance("plain", 1), reporting("a", 2), reporting("b", 3)]);
    fixture.second(&["a", "b"]);
    let mut before = fixture.offered();
    for second in 0..40 {
        if second < 20 {
            fixture.report(&[("b", status(1000 + second))]);
        }
        fixture.registry.take_dirty();
        for _ in 0..4 {
            fixture.pass(250);
            let after = fixture.offered();
            let is_dirty = !fixture.registry.take_dirty().is_empty();
            assert!(is_dirty || after == before, "{before:?} became {after:?} in second {second}");
            before = after;
        }
    }
    let states: Vec<State> = before.iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [State::Unknown, State::Unknown, State::Unreported]);
}

#[test]
fn a_report_that_is_fresh_for_long_shows_as_dirty_when_it_no_longer_is() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    let interval = Duration::from_secs(20);
    let entry = InstanceReport { interval, ..InstanceReport::new("a", Report::Serving) };
    fixture.tell_entries("exporter-1", &[entry]);
    fixture.pass(60_000);
    assert_eq!(fixture.state("a"), Some(State::Reporting));
    fixture.registry.take_dirty();
    fixture.pass(250);
    assert_eq!(fixture.state("a"), Some(State::Unknown));
    assert_eq!(fixture.registry.take_dirty(), ["chat"]);
    fixture.pass(1000);
    assert!(fixture.registry.take_dirty().is_empty());
}

#[test]
fn a_repetition_that_wins_an_address_back_is_urgent() {
    let mut fixture = Fixture::new(&[]);
    fixture.put_instance(&instance("a", 1));
    fixture.put_instance(&instance("b", 1));
    fixture.registry.take_urgent();
    fixture.put_instance(&instance("a", 1));
    assert_eq!(
        (fixture.ids(), fixture.registry.take_urgent()),
        (vec!["a".into()], vec!["chat".into()])
    );
}

#[test]
fn only_those_who_come_or_leave_are_urgent() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    let urgent = |fixture: &mut Fixture| !fixture.registry.take_urgent().is_empty();
    assert!(urgent(&mut fixture) && !urgent(&mut fixture));
    fixture.report(&[("a", status(1)), ("b", status(1))]);
    fixture.tell("exporter-1", &[("b", unreachable(9000))]);
    assert!(!urgent(&mut fixture));
    fixture.tell("exporter-1", &[("b", Report::NotServing)]);
    assert!(urgent(&mut fixture));
    fixture.tell("exporter-1", &[("b", Report::NotServing)]);
    assert!(!urgent(&mut fixture));

    fixture.put_instance(&instance("c", 3));
    assert!(urgent(&mut fixture));
    fixture.registry.take_dirty();
    fixture.put_instance(&instance("c", 3));
    assert!(!urgent(&mut fixture) && fixture.registry.take_dirty().is_empty(), "a repetition");
    fixture.put_instance(&Instance { drain: true, ..instance("c", 3) });
    assert!(urgent(&mut fixture));
    assert_eq!(fixture.registry.take_dirty(), ["chat"], "what is urgent is dirty, too");
    fixture.delete_instance("c");
    assert!(urgent(&mut fixture));
}

#[test]
fn a_list_is_urgent_when_it_is_complete() {
    let mut fixture = Fixture::new(&[]);
    fixture.registry.take_urgent();
    fixture.apply(Event::Init);
    fixture.put_instance(&instance("a", 1));
    assert!(fixture.registry.take_urgent().is_empty());
    fixture.apply(Event::InitDone { revision: 20 });
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
}

#[test]
fn the_watch_state_is_what_the_watcher_said_last() {
    let mut fixture = Fixture::new(&[]);
    assert_eq!(fixture.registry.watch_state(), WatchState::Watching);
    fixture.apply(Event::State(WatchState::Backoff));
    assert_eq!(fixture.registry.watch_state(), WatchState::Backoff);
}

// Lists as evidence.

#[test]
fn who_is_long_out_is_not_brought_back_by_a_gateway_that_starts() {
    let mut fixture = Fixture::starting();
    for (id, port) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        fixture.put_instance(&reporting(id, port));
    }
    fixture.tell("exporter-1", &[("c", unreachable(3_600_000)), ("d", Report::NotServing)]);
    // The list takes its time, and is looked at meanwhile.
    fixture.pass(2000);
    assert_eq!(fixture.ids(), ["a", "b", "c", "d"]);
    fixture.end_list();
    assert_eq!(fixture.ids(), ["a", "b"], "before there is a watch");
    fixture.apply(Event::State(WatchState::Watching));
    fixture.pass(10_000);
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn a_list_is_judged_as_a_whole() {
    let mut fixture = Fixture::starting();
    let lost = |id| InstanceReport::new(id, unreachable(3_600_000));
    for (port, (id, shard)) in (1..).zip([("a", 0), ("b", 0), ("c", 1), ("d", 2)]) {
        fixture.put_instance(&reporting(id, port));
        let (exporter, service) = ("exporter-1".into(), "chat".into());
        let key = Key::Status { exporter, service, shard };
        fixture.put(&key, wire::encode_batch(&[lost(id)]));
        assert_eq!(fixture.ids().len(), usize::from(port));
    }
    fixture.end_list();
    assert_eq!(fixture.ids(), ["a", "b", "c", "d"], "it is likelier to be the exporter");
}

#[test]
fn a_list_that_broke_off_or_was_not_followed_by_a_watch_puts_nobody_out() {
    let registered = || {
        let mut fixture = Fixture::starting();
        for (id, port) in [("a", 1), ("b", 2), ("c", 3)] {
            fixture.put_instance(&reporting(id, port));
        }
        fixture
    };
    let mut broken = registered();
    broken.tell("exporter-1", &[("c", unreachable(3_600_000))]);
    broken.apply(Event::State(WatchState::Backoff));
    broken.pass(10_000);
    assert_eq!(broken.ids(), ["a", "b", "c"]);

    let mut unwatched = registered();
    unwatched.end_list();
    unwatched.apply(Event::State(WatchState::Backoff));
    unwatched.lose("c", 10);
    assert_eq!(unwatched.ids(), ["a", "b", "c"]);
}

#[test]
fn without_a_watch_nobody_leaves() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.second(&["a", "b", "c"]);
    fixture.apply(Event::State(WatchState::Backoff));
    fixture.lose("c", 5);
    fixture.tell("exporter-1", &[("b", Report::NotServing)]);
    fixture.pass(60_000);
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
}

#[test]
fn whoever_may_be_offered_some_day_is_checked() {
    let check = CheckConfig { tcp: true, ..CheckConfig::default() };
    let chat = ServiceConfig { check, ..ServiceConfig::default() };
    let services = [("chat".to_owned(), chat), ("mail".to_owned(), ServiceConfig::default())];
    let mut fixture = Fixture::with(Config { services: services.into(), ..Config::default() });
    let checked = |fixture: &Fixture| {
        let (_, instances) = fixture.registry.checked("chat").unwrap();
        instances.map(|instance| instance.id.clone()).collect::<Vec<_>>()
    };
    fixture.put_instance(&reporting("a", 1));
    fixture.put_instance(&reporting("b", 2));
    fixture.put_instance(&Instance { drain: true, ..instance("c", 3) });
    fixture.put_instance(&instance("d", 4));
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    fixture.tell("exporter-1", &[("a", Report::NotServing)]);
    assert_eq!(fixture.ids(), ["b", "d"]);
    assert_eq!(checked(&fixture), ["a", "b", "c", "d"], "out, or draining");

    fixture.registry.take_urgent();
    fixture.put(
        &Key::Control { service: "chat".into() },
        br#"{"disable": ["b"], "drain": ["d"]}"#.into(),
    );
    assert_eq!(checked(&fixture), ["a", "c", "d"], "not disabled ones");
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    fixture.put_instance(&instance("e", 4));
    assert_eq!(checked(&fixture), ["a", "c", "e"], "one of each address");
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);
    fixture.delete_instance("e");
    assert_eq!(checked(&fixture), ["a", "c", "d"]);
    assert_eq!(fixture.registry.take_urgent(), ["chat"]);

    assert!(fixture.registry.checked("mail").is_none(), "without a check");
    assert!(fixture.registry.checked("gone").is_none());
}
