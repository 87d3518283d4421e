//! Several clusters' prefixes, merged into one service.

use super::*;
use crate::config::EtcdConfig;

fn fixture() -> Fixture {
    let prefixes = [("west".to_owned(), "/west/v1".to_owned())].into();
    let etcd = EtcdConfig { prefixes, ..EtcdConfig::default() };
    let services = BTreeMap::from([("chat".to_owned(), ServiceConfig::default())]);
    Fixture::with(Config { etcd, services, ..Config::default() })
}

fn put(fixture: &mut Fixture, key: &str, value: &[u8]) {
    fixture.revision += 1;
    let (key, mod_revision) = (key.as_bytes().to_vec(), fixture.revision);
    fixture.apply(Event::Put { key, value: value.to_vec(), mod_revision });
}

fn delete(fixture: &mut Fixture, key: &str) {
    fixture.revision += 1;
    let (key, mod_revision) = (key.as_bytes().to_vec(), fixture.revision);
    fixture.apply(Event::Delete { key, mod_revision });
}

/// Each id, the cluster that it is labelled with, and its state.
fn members(fixture: &mut Fixture) -> Vec<(String, String, State)> {
    let now = fixture.now;
    let reading = fixture.registry.service("chat", now).unwrap();
    let member = |it: &Member<'_>| {
        let cluster = it.instance.labels.get("cluster").cloned().unwrap_or_default();
        (it.instance.id.clone(), cluster, it.state)
    };
    reading.members.iter().map(member).collect()
}

const OWN: &str = r#"{"addr": "10.0.0.1:80"}"#;
const WEST: &str = r#"{"addr": "10.1.0.1:80", "status": "grpc://10.1.0.1:90"}"#;

#[test]
fn instances_and_statuses_of_all_clusters_are_one_services() {
    let mut fixture = fixture();
    put(&mut fixture, "/ipconfig/v1/instances/chat/a", OWN.as_bytes());
    put(&mut fixture, "/west/v1/instances/chat/a", WEST.as_bytes());
    let of = |fixture: &mut Fixture, state| {
        let west = ("west:a".to_owned(), "west".to_owned(), state);
        assert_eq!(members(fixture)[1..], [west]);
        assert_eq!(members(fixture)[0].0, "a");
        assert_eq!(members(fixture)[0].1, "", "the own cluster has no label");
    };
    of(&mut fixture, State::Unknown);
    let batch = wire::encode_batch(&[InstanceReport::new("a", status(1).into())]);
    put(&mut fixture, "/west/v1/status/exporter-1/chat/0", &batch);
    of(&mut fixture, State::Reporting);
    assert!(fixture.registry.bad_records().is_empty());
    delete(&mut fixture, "/west/v1/instances/chat/a");
    assert_eq!(members(&mut fixture).len(), 1);
}

#[test]
fn what_operators_say_is_below_the_own_prefix_alone() {
    let mut fixture = fixture();
    put(&mut fixture, "/west/v1/instances/chat/a", WEST.as_bytes());
    put(&mut fixture, "/west/v1/control/chat", br#"{"disable": ["west:a"]}"#);
    assert_eq!(members(&mut fixture).len(), 1);
    put(&mut fixture, "/ipconfig/v1/control/chat", br#"{"disable": ["west:a"]}"#);
    assert_eq!(members(&mut fixture).len(), 0);
    delete(&mut fixture, "/west/v1/control/chat");
    assert_eq!(members(&mut fixture).len(), 0);
    assert!(fixture.registry.bad_records().is_empty());
}

#[test]
fn keys_between_the_prefixes_are_nobodys() {
    let mut fixture = fixture();
    put(&mut fixture, "/other/v1/instances/chat/a", OWN.as_bytes());
    put(&mut fixture, "/west/v10/instances/chat/a", OWN.as_bytes());
    delete(&mut fixture, "/other/v1/instances/chat/a");
    assert!(members(&mut fixture).is_empty() && fixture.registry.bad_records().is_empty());
}

#[test]
fn an_own_instance_does_not_pass_for_another_clusters() {
    let mut fixture = fixture();
    put(&mut fixture, "/ipconfig/v1/instances/chat/west:a", OWN.as_bytes());
    assert!(members(&mut fixture).is_empty());
    put(&mut fixture, &format!("/west/v1/instances/chat/{}", "x".repeat(126)), WEST.as_bytes());
    assert!(members(&mut fixture).is_empty(), "too long with the cluster's name");
    assert_eq!(fixture.registry.bad_records().values().sum::<u64>(), 2);
}

#[test]
fn a_list_takes_away_what_is_gone_of_any_cluster() {
    let mut fixture = fixture();
    put(&mut fixture, "/ipconfig/v1/instances/chat/b", OWN.as_bytes());
    put(&mut fixture, "/west/v1/instances/chat/a", WEST.as_bytes());
    fixture.apply(Event::Init);
    put(&mut fixture, "/ipconfig/v1/instances/chat/b", OWN.as_bytes());
    fixture.end_list();
    assert_eq!(members(&mut fixture).len(), 1);
}
