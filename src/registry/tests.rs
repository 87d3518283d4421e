use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::*;
use crate::model::Status;

const PREFIX: &str = "/ipconfig/v1";

/// A registry and its clock.
struct Fixture {
    registry: Registry,
    now: Instant,
    revision: i64,
}

impl Fixture {
    /// A gateway for the service `chat`, with these instances in its file.
    fn new(in_file: &[Instance]) -> Self {
        let chat = ServiceConfig { instances: in_file.to_vec(), ..ServiceConfig::default() };
        let services = BTreeMap::from([("chat".to_owned(), chat)]);
        Self::with(Config { services, ..Config::default() })
    }

    fn with(config: Config) -> Self {
        let now = Instant::now();
        let mut fixture = Self { registry: Registry::new(&config, now), now, revision: 10 };
        fixture.apply(Event::State(WatchState::Watching));
        fixture
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
        let statuses: Vec<_> = statuses
            .iter()
            .map(|(id, status)| InstanceReport::new(*id, status.clone().into()))
            .collect();
        self.put(&batch_key("chat"), wire::encode_batch(&statuses));
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
    }
}

/// The same, with one.
fn reporting(id: &str, port: u16) -> Instance {
    let status = Some(format!("grpc://127.0.0.1:{}", port + 100).parse().unwrap());
    Instance { status, ..instance(id, port) }
}

fn status(seq: u64) -> Status {
    Status { boot_id: 1, seq, requests: 100 * seq, in_flight: Some(2), ..Status::default() }
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
fn keys_of_other_kinds_are_ignored_and_not_counted_unless_misshapen() {
    let mut fixture = Fixture::new(&[]);
    fixture.put(&Key::Control { service: "chat".into() }, b"?".to_vec());
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
fn a_status_that_is_no_news_keeps_nobody_alive() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    let mut seq = 0;
    (0..10).for_each(|_| {
        seq += 1;
        let statuses = [("a", status(seq)), ("b", status(seq)), ("c", status(1))];
        fixture.report(&statuses);
        fixture.pass(1000);
    });
    assert_eq!(fixture.ids(), ["a", "b"]);
}

#[test]
fn an_aged_status_counts_from_when_its_figures_were_taken() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    let aged = |seq, seconds| Status { age: Duration::from_secs(seconds), ..status(seq) };
    fixture.report(&[("a", status(1)), ("b", status(1)), ("c", aged(1, 4))]);
    let states: Vec<State> = fixture.offered().iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [State::Reporting, State::Reporting, State::Unknown]);
    for seq in 2..10 {
        fixture.report(&[("a", status(seq)), ("b", status(seq)), ("c", aged(seq, 4))]);
        fixture.pass(1000);
    }
    assert_eq!(fixture.ids(), ["a", "b"]);
    fixture.report(&[("c", aged(10, 1))]);
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
}

// Silence, end to end; the rule has tests of its own.

#[test]
fn an_instance_silent_for_three_intervals_leaves_until_it_reports_again() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.second(&["a", "b", "c"]);
    (0..2).for_each(|_| fixture.second(&["a", "b"]));
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
    fixture.second(&["a", "b"]);
    assert_eq!(fixture.ids(), ["a", "b"]);
    fixture.report(&[("c", status(999))]);
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
}

#[test]
fn when_all_fall_silent_together_all_stay_as_unknown() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    fixture.put_instance(&reporting("b", 2));
    (0..3).for_each(|_| fixture.second(&["a", "b"]));
    fixture.pass(60_000);
    let unknown = |id: &str| (id.to_owned(), State::Unknown);
    assert_eq!(fixture.offered(), [unknown("a"), unknown("b")]);
}

#[test]
fn an_instance_without_declared_status_never_leaves_for_silence() {
    let mut fixture = Fixture::new(&[instance("plain", 1), reporting("a", 2), reporting("b", 3)]);
    fixture.second(&["plain", "a", "b"]);
    (0..9).for_each(|_| fixture.second(&["a", "b"]));
    assert_eq!(fixture.ids(), ["a", "b", "plain"]);
}

#[test]
fn a_new_status_address_is_given_time_to_answer() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2)]);
    fixture.put_instance(&reporting("c", 3));
    (0..9).for_each(|_| fixture.second(&["a", "b"]));
    assert_eq!(fixture.ids(), ["a", "b"]);
    fixture.put_instance(&reporting("c", 4));
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
}

#[test]
fn draining_instances_do_not_vote_the_last_one_out() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    for (id, port) in [("b", 2), ("c", 3)] {
        fixture.put_instance(&Instance { drain: true, ..reporting(id, port) });
    }
    (0..9).for_each(|_| fixture.second(&["b", "c"]));
    assert_eq!(fixture.offered(), [("a".to_owned(), State::Unknown)]);
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
    assert_eq!(before.len(), 2);
}

#[test]
fn an_instance_that_leaves_for_silence_shows_as_dirty_without_any_report() {
    let mut fixture = Fixture::new(&[reporting("a", 1)]);
    fixture.pass(2000);
    fixture.put_instance(&reporting("b", 2));
    fixture.put_instance(&reporting("c", 3));
    fixture.registry.take_dirty();
    fixture.pass(1000);
    assert!(fixture.registry.take_dirty().is_empty());
    fixture.pass(250);
    assert_eq!(fixture.ids(), ["b", "c"]);
    assert_eq!(fixture.registry.take_dirty(), ["chat"]);
}

#[test]
fn the_watch_state_is_what_the_watcher_said_last() {
    let mut fixture = Fixture::new(&[]);
    assert_eq!(fixture.registry.watch_state(), WatchState::Watching);
    fixture.apply(Event::State(WatchState::Backoff));
    assert_eq!(fixture.registry.watch_state(), WatchState::Backoff);
}

#[test]
fn without_a_watch_nobody_leaves_for_silence() {
    let mut fixture = Fixture::new(&[reporting("a", 1), reporting("b", 2), reporting("c", 3)]);
    fixture.second(&["a", "b", "c"]);
    fixture.second(&["a", "b"]);
    fixture.apply(Event::State(WatchState::Backoff));
    fixture.pass(60_000);
    assert_eq!(fixture.ids(), ["a", "b", "c"]);
}
