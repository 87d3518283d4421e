//! Several exporters that share the instances and cover for each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipconfig::etcd::Connection;
use ipconfig::model::Report;
use ipconfig::wire::{Key, decode_batch, parse_key};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::parts::*;
use crate::support::{Etcd, free_port, wait_until};

/// The configuration of another exporter of the same file.
fn another(config: &Value, id: &str) -> Value {
    let mut config = config.clone();
    config["exporter"]["id"] = json!(id);
    config["exporter"]["listen"] = json!(format!("127.0.0.1:{}", free_port()));
    config
}

/// By exporter: the instances that it has reported as answering, as of now.
async fn reporters(etcd: &Connection) -> BTreeMap<String, BTreeSet<String>> {
    let mut reporters: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in etcd.list("/ipconfig/v1/status/").await.unwrap() {
        let key = parse_key("/ipconfig/v1", entry.key.as_bytes()).unwrap();
        let Key::Status { exporter, .. } = key else { panic!("{key:?}") };
        let reports = decode_batch(&entry.value).unwrap().reports;
        let answering = reports.into_iter().filter(|it| matches!(it.report, Report::Status(_)));
        reporters.entry(exporter).or_default().extend(answering.map(|it| it.id));
    }
    reporters
}

async fn ids(etcd: &Connection) -> BTreeSet<String> {
    let entries = etcd.list("/ipconfig/v1/instances/").await.unwrap();
    entries.into_iter().map(|it| it.key).collect()
}

async fn services<const N: usize>() -> Vec<SocketAddr> {
    let mut addrs = Vec::new();
    for _ in 0..N {
        addrs.push(Service::start(Manner::Answers).await.1);
    }
    addrs
}

/// Waits until every instance is reported by exactly one of these exporters, and
/// each of them reports some.
async fn shared_by(etcd: &Connection, exporters: &[&str], instances: usize) {
    let mut last = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reporters = reporters(etcd).await;
        let all: BTreeSet<_> = reporters.values().flatten().collect();
        let count: usize = reporters.values().map(BTreeSet::len).sum();
        let is_shared =
            exporters.iter().all(|id| reporters.get(*id).is_some_and(|it| !it.is_empty()));
        if reporters.len() == exporters.len()
            && is_shared
            && all.len() == instances
            && count == instances
        {
            return;
        }
        if Instant::now() > deadline {
            panic!("not shared by {exporters:?}: {last:?}");
        }
        last = reporters;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn one_that_joins_takes_its_share_and_one_that_is_killed_is_stood_in_for() {
    let etcd = Etcd::start().await;
    let addrs = services::<20>().await;
    let config = config(&etcd.endpoint(), &addrs);
    let _one = Exporter::start(&config);
    let connection = connect(&etcd).await;
    shared_by(&connection, &["exporter-1"], 20).await;

    let mut two = Exporter::start(&another(&config, "exporter-2"));
    shared_by(&connection, &["exporter-1", "exporter-2"], 20).await;

    let registered = ids(&connection).await;
    assert_eq!(registered.len(), 20);
    two.signal("KILL").await;
    two.end().await;
    let killed = Instant::now();
    while reporters(&connection).await.get("exporter-1").is_none_or(|it| it.len() != 20) {
        assert_eq!(ids(&connection).await, registered, "an instance left with its exporter");
        assert!(killed.elapsed() < PATIENCE, "nobody stands in for it");
    }
    // etcd's own lateness included: it looks for ended leases twice a second.
    let limit = LEASE_TTL + INTERVAL + Duration::from_secs(2);
    assert!(killed.elapsed() < limit, "it took {:?}", killed.elapsed());
    tokio::time::sleep(2 * LEASE_TTL).await;
    assert_eq!(ids(&connection).await, registered, "the shared lease is not kept");
}

#[tokio::test]
async fn one_that_ends_by_sigterm_is_stood_in_for_at_once_and_takes_nothing_with_it() {
    let etcd = Etcd::start().await;
    let config = config(&etcd.endpoint(), &services::<10>().await);
    let mut one = Exporter::start(&config);
    let mut two = Exporter::start(&another(&config, "exporter-2"));
    let connection = connect(&etcd).await;
    shared_by(&connection, &["exporter-1", "exporter-2"], 10).await;

    let registered = ids(&connection).await;
    one.signal("TERM").await;
    assert_eq!(one.end().await.0, Some(0));
    let ended = Instant::now();
    shared_by(&connection, &["exporter-2"], 10).await;
    assert!(ended.elapsed() < LEASE_TTL, "it took {:?}", ended.elapsed());
    assert_eq!(ids(&connection).await, registered);

    two.signal("TERM").await;
    assert_eq!(two.end().await.0, Some(0));
    assert!(ids(&connection).await.is_empty(), "the last one takes the registrations out");
}

#[tokio::test]
async fn exporters_of_different_files_each_keep_their_own_instances() {
    let etcd = Etcd::start().await;
    let addrs = services::<6>().await;
    let config = config(&etcd.endpoint(), &addrs);
    let mut other = another(&config, "exporter-2");
    other["services"] = json!({ "mail": { "instances": [
        { "id": "mail-1", "addr": "127.0.0.1:9900", "status": format!("grpc://{}", addrs[0]) } ] } });
    let _one = Exporter::start(&config);
    let mut two = Exporter::start(&other);
    let connection = connect(&etcd).await;
    wait_until("all registrations", PATIENCE, async || ids(&connection).await.len() == 7).await;

    two.signal("TERM").await;
    two.end().await;
    let left = ids(&connection).await;
    assert!(left.len() == 6 && left.iter().all(|key| key.contains("/chat/")), "{left:?}");
}

#[tokio::test]
async fn exporters_can_share_one_file_by_ids_of_the_command_line() {
    let etcd = Etcd::start().await;
    let config = config(&etcd.endpoint(), &services::<10>().await);
    let _one = Exporter::start_with(&config, &["--id", "one"]);
    let _two = Exporter::start_with(&another(&config, "not-this"), &["--id", "two"]);
    shared_by(&connect(&etcd).await, &["one", "two"], 10).await;
}

#[tokio::test]
async fn an_instance_that_registers_itself_is_asked_at_once_and_dropped_when_it_leaves() {
    let etcd = Etcd::start().await;
    let (first, addr) = Service::start(Manner::Answers).await;
    let (second, moved) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[]));
    let connection = connect(&etcd).await;
    let page = async || exporter.page("/metrics").await.1;
    let announced = "/ipconfig/v1/exporters/exporter-1";
    wait_until("its start", PATIENCE, async || exists(&connection, announced).await).await;
    wait_until("its watch", PATIENCE, async || page().await.contains("watching 1")).await;

    let key = "/ipconfig/v1/instances/mail/m";
    let put = async |addr: SocketAddr| {
        let record = json!({ "addr": "127.0.0.1:9900", "status": format!("grpc://{addr}") });
        connection.put(key, record.to_string(), None).await.unwrap();
    };
    let asked = |service: &Service| service.asked.load(std::sync::atomic::Ordering::Relaxed);
    put(addr).await;
    let status = "/ipconfig/v1/status/exporter-1/mail/0";
    wait_until("its status", PATIENCE, async || reports(&connection, status).await.is_some()).await;

    put(moved).await;
    wait_until("its new place", PATIENCE, async || asked(&second) > 1).await;
    let before = asked(&first);
    tokio::time::sleep(3 * INTERVAL).await;
    assert_eq!(asked(&first), before, "it is still asked where it was");

    connection.delete(key).await.unwrap();
    wait_until("its end", PATIENCE, async || reports(&connection, status).await.is_none()).await;
    assert!(!page().await.contains("mail"), "a series outlives its instance");
}

#[tokio::test]
async fn an_instance_that_moves_each_moment_is_followed_and_costs_no_other_its_report() {
    let etcd = Etcd::start().await;
    let addrs = services::<2>().await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &addrs[..1]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    for port in 0..50 {
        let record = json!({ "addr": format!("127.0.0.1:{}", 9000 + port),
                             "status": format!("grpc://{}", addrs[1]) });
        let key = "/ipconfig/v1/instances/chat/restless";
        connection.put(key, record.to_string(), None).await.unwrap();
        tokio::time::sleep(INTERVAL / 10).await;
    }
    wait_until("both", PATIENCE, async || {
        statuses(&connection).await.is_some_and(|statuses| statuses.len() == 2)
    })
    .await;
}

#[tokio::test]
async fn a_registration_of_the_file_that_was_deleted_is_put_again() {
    let etcd = Etcd::start().await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &services::<1>().await));
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    let key = "/ipconfig/v1/instances/chat/chat-1";
    assert!(connection.delete(key).await.unwrap());
    wait_until("it is back", PATIENCE, async || exists(&connection, key).await).await;
}

#[tokio::test]
async fn what_an_operator_wrote_into_a_registration_stays_when_another_exporter_starts() {
    let etcd = Etcd::start().await;
    let config = config(&etcd.endpoint(), &services::<1>().await);
    let _one = Exporter::start(&config);
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    let key = "/ipconfig/v1/instances/chat/chat-1";
    let entry = connection.get(key).await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
    record["drain"] = json!(true);
    let drained = record.to_string();
    assert!(
        connection.replace(key, drained.clone(), entry.mod_revision, entry.lease).await.unwrap()
    );

    let _two = Exporter::start(&another(&config, "exporter-2"));
    let two = "/ipconfig/v1/exporters/exporter-2";
    wait_until("the other one", PATIENCE, async || exists(&connection, two).await).await;
    tokio::time::sleep(2 * INTERVAL).await;
    let kept = connection.get(key).await.unwrap().unwrap();
    assert_eq!(kept.value, drained.into_bytes());
}

#[tokio::test]
async fn a_drain_stays_also_when_the_file_has_changed() {
    let etcd = Etcd::start().await;
    let mut config = config(&etcd.endpoint(), &services::<2>().await);
    let mut one = Exporter::start(&config);
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    let key = "/ipconfig/v1/instances/chat/chat-1";
    let entry = connection.get(key).await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&entry.value).unwrap();
    record["drain"] = json!(true);
    let drained = record.to_string();
    assert!(connection.replace(key, drained, entry.mod_revision, entry.lease).await.unwrap());

    config["services"]["chat"]["instances"][0]["weight"] = json!(7);
    let _two = Exporter::start(&another(&config, "exporter-2"));
    let read = async || -> Value {
        serde_json::from_slice(&connection.get(key).await.unwrap().unwrap().value).unwrap()
    };
    wait_until("the new file's weight", PATIENCE, async || read().await["weight"] == 7.0).await;
    assert_eq!(read().await["drain"], true);
    // The exporter of the old file neither takes it back nor away.
    one.signal("TERM").await;
    one.end().await;
    assert_eq!((&read().await["weight"], &read().await["drain"]), (&json!(7.0), &json!(true)));
}

#[tokio::test]
async fn two_of_one_id_are_named_in_the_log_and_counted() {
    let etcd = Etcd::start().await;
    let config = config(&etcd.endpoint(), &services::<1>().await);
    let one = Exporter::start(&config);
    first_status(&connect(&etcd).await).await;
    let _two = Exporter::start(&another(&config, "exporter-1"));
    wait_until("the count", PATIENCE, async || {
        one.metric("ipconfig_exporter_rivals_total").await >= 1.0
    })
    .await;
    let log = std::fs::read_to_string(&one.log).unwrap();
    assert!(log.contains("give each an exporter.id of its own"), "{log}");
}
