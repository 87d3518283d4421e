//! What etcd held at an earlier time, in place of a list.

use super::*;
use crate::config::SnapshotConfig;
use crate::snapshot::{Record, Records, Snapshot};

fn with_snapshot() -> Config {
    let snapshot = SnapshotConfig { path: "/snapshot".into() };
    let services = BTreeMap::from([("chat".to_owned(), ServiceConfig::default())]);
    Config { snapshot, services, ..Config::default() }
}

/// A gateway whose etcd has these instances, at revisions from 11 on.
fn watching(ids: &[&str]) -> Fixture {
    let mut fixture = Fixture::with(with_snapshot());
    fixture.apply(Event::Init);
    for id in ids {
        fixture.put(&key(id), instance_json(id));
    }
    fixture.end_list();
    fixture
}

fn key(id: &str) -> Key {
    Key::Instance { service: "chat".into(), id: id.into() }
}

fn control_key() -> Key {
    Key::Control { service: "chat".into() }
}

fn instance_json(id: &str) -> Vec<u8> {
    format!(r#"{{"addr":"10.0.0.{}:80","weight":2}}"#, id.as_bytes()[0]).into()
}

/// A start: nothing but the snapshot, as it comes back from the disk.
fn started_with(snapshot: &Snapshot) -> Fixture {
    let snapshot = Snapshot::decode(&snapshot.encode()).expect("a sound file");
    let now = Instant::now();
    let mut registry = Registry::new(&with_snapshot(), now);
    registry.restore(&snapshot, now);
    Fixture { registry, now, revision: 100 }
}

fn offered(fixture: &mut Fixture) -> Vec<String> {
    let reading = fixture.registry.service("chat", fixture.now).expect("it is configured");
    reading.members.iter().map(|member| member.instance.id.clone()).collect()
}

#[test]
fn a_start_without_a_list_offers_what_etcd_held_with_the_operators_control() {
    let mut before = watching(&["a", "b", "c"]);
    before.put(&control_key(), br#"{"drain": ["b"], "strategy": "random"}"#.to_vec());
    let snapshot = before.registry.snapshot(1234);
    assert_eq!((snapshot.as_of_ms, snapshot.revision), (1234, 14));

    let mut after = started_with(&snapshot);
    assert_eq!(offered(&mut after), offered(&mut before));
    assert_eq!(after.registry.control("chat"), before.registry.control("chat"));
    assert_eq!(after.registry.take_urgent(), ["chat"]);
    let registry = &after.registry;
    assert_eq!((registry.revision(), registry.restored_as_of_ms()), (14, Some(1234)));
    assert!(!registry.has_synced() && !registry.is_whole(), "it is no list");
    let reading = after.registry.service("chat", after.now).unwrap();
    assert_eq!(
        (reading.members[0].instance.weight, reading.members[0].state),
        (2.0, State::Unreported)
    );
}

#[test]
fn a_complete_list_replaces_what_was_restored_by_difference() {
    let mut fixture = started_with(&watching(&["a", "b"]).registry.snapshot(1));
    fixture.apply(Event::Init);
    fixture.put_at(11, &key("a"), instance_json("a"));
    fixture.put_at(50, &key("c"), instance_json("c"));
    assert_eq!(offered(&mut fixture), ["a", "b", "c"], "b may yet come");
    fixture.apply(Event::InitDone { revision: 60 });
    assert_eq!(offered(&mut fixture), ["a", "c"]);
    let registry = &fixture.registry;
    assert_eq!((registry.revision(), registry.restored_as_of_ms()), (60, None));
    assert!(registry.is_whole());
}

#[test]
fn a_list_that_breaks_off_takes_nothing_away_and_is_not_kept() {
    let mut fixture = watching(&["a", "b"]);
    fixture.apply(Event::Init);
    fixture.put_at(11, &key("a"), instance_json("a"));
    fixture.apply(Event::State(WatchState::Backoff));
    assert!(!fixture.registry.is_whole());
    assert_eq!(offered(&mut fixture), ["a", "b"]);
}

#[test]
fn etcd_s_restored_state_of_lower_revisions_replaces_what_was_read_from_the_disk() {
    let mut fixture = started_with(&watching(&["a", "b"]).registry.snapshot(1));
    fixture.apply(Event::Init);
    fixture.put_at(2, &key("b"), instance_json("x"));
    fixture.apply(Event::InitDone { revision: 3 });
    assert_eq!(offered(&mut fixture), ["b"]);
    let reading = fixture.registry.service("chat", fixture.now).unwrap();
    assert_eq!(reading.members[0].instance.addr.to_string(), "10.0.0.120:80");
}

#[test]
fn the_last_good_value_of_a_key_is_kept_for_as_long_as_the_key_exists() {
    let mut fixture = watching(&["a", "b"]);
    let changes = fixture.registry.changes();
    fixture.put(&key("a"), b"{".to_vec());
    assert_eq!(fixture.registry.changes(), changes);
    let mut after = started_with(&fixture.registry.snapshot(1));
    assert_eq!(offered(&mut after), ["a", "b"]);
    // And stays when the list has the bad value alone.
    after.apply(Event::Init);
    after.put_at(13, &key("a"), b"{".to_vec());
    after.apply(Event::InitDone { revision: 60 });
    assert_eq!(offered(&mut after), ["a"]);

    let revision = fixture.revision + 1;
    fixture.apply(Event::Delete { key: key("a").to_path(PREFIX).into(), mod_revision: revision });
    assert!(fixture.registry.changes() > changes);
    assert_eq!(offered(&mut started_with(&fixture.registry.snapshot(1))), ["b"]);
}

#[test]
fn what_does_not_change_who_is_there_is_no_change() {
    let mut fixture = watching(&["a"]);
    let changes = fixture.registry.changes();
    fixture.put(&key("a"), instance_json("a"));
    fixture.put(&Key::Exporter { id: "e".into() }, b"{}".to_vec());
    fixture.put(&Key::Status { exporter: "e".into(), service: "chat".into(), shard: 0 }, vec![]);
    fixture.put(&Key::Instance { service: "others".into(), id: "x".into() }, instance_json("x"));
    assert_eq!(fixture.registry.changes(), changes);
    let snapshot = fixture.registry.snapshot(1);
    assert_eq!(snapshot.size(), (1, 1));
    assert_eq!(snapshot.services["chat"].instances[0].mod_revision, 12, "the newest one");
    fixture.put(&key("a"), instance_json("b"));
    assert!(fixture.registry.changes() > changes);
}

#[test]
fn what_is_read_from_the_disk_passes_the_checks_that_etcd_s_values_do() {
    let record = |key: &str, value: &str| Record {
        key: format!("{PREFIX}/{key}").into(),
        mod_revision: 5,
        value: value.into(),
    };
    let instances = vec![
        record("instances/chat/a", r#"{"addr":"10.0.0.1:80"}"#),
        record("instances/chat/b", r#"{"addr":"nowhere"}"#),
        record("instances/others/c", r#"{"addr":"10.0.0.3:80"}"#),
        record("instances/chat/d/e", r#"{"addr":"10.0.0.4:80"}"#),
        record("status/e/chat/0", "x"),
        record("../elsewhere", "x"),
    ];
    let records = Records { instances, controls: vec![record("control/chat", "[")] };
    let services = [("chat".to_owned(), records)].into();
    let mut fixture = started_with(&Snapshot { services, ..Snapshot::default() });
    assert_eq!(offered(&mut fixture), ["a"]);
    assert_eq!(fixture.registry.control("chat"), None);
    let reasons: Vec<_> = fixture.registry.bad_records().keys().copied().collect();
    assert_eq!(reasons, ["addr", "control", "unknown_service"]);
}

#[test]
fn a_list_that_came_first_is_newer_than_the_disk() {
    let snapshot = watching(&["a", "b"]).registry.snapshot(1);
    let mut fixture = watching(&["c"]);
    assert_eq!(fixture.registry.restore(&snapshot, fixture.now), 0);
    assert_eq!(offered(&mut fixture), ["c"]);

    // Half-way: what the list has said stays, and what it does not say goes.
    let mut fixture = Fixture::with(with_snapshot());
    fixture.apply(Event::Init);
    fixture.put(&key("a"), instance_json("x"));
    assert_eq!(fixture.registry.restore(&snapshot, fixture.now), 1);
    assert_eq!(offered(&mut fixture), ["a", "b"]);
    fixture.put(&key("c"), instance_json("c"));
    fixture.end_list();
    assert_eq!(offered(&mut fixture), ["a", "c"]);
    let reading = fixture.registry.service("chat", fixture.now).unwrap();
    assert_eq!(reading.members[0].instance.addr.to_string(), "10.0.0.120:80");
}

#[test]
fn without_a_path_nothing_is_kept() {
    let mut fixture = Fixture::new(&[]);
    fixture.put(&key("a"), instance_json("a"));
    assert_eq!(fixture.registry.snapshot(1).size(), (0, 0));
}

#[test]
fn a_snapshot_takes_the_revision_to_its_own_and_not_to_what_its_records_say() {
    let restored = |value: &str| {
        let key = "/ipconfig/v1/instances/chat/a".into();
        let instances = vec![Record { key, mod_revision: i64::MAX, value: value.into() }];
        let services = [("chat".to_owned(), Records { instances, controls: vec![] })].into();
        let snapshot = Snapshot { revision: 17, services, ..Snapshot::default() };
        started_with(&snapshot).registry.revision()
    };
    assert_eq!(restored(r#"{"addr":"10.0.0.1:80"}"#), 17);
    assert_eq!(restored(r#"{"addr":"nowhere"}"#), 0, "nothing was taken in");
}
