//! What is written into etcd, and what is left out.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ipconfig::model::Report;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::parts::*;
use crate::support::{Etcd, free_port, wait_until};

#[tokio::test]
async fn an_instance_that_is_as_it_was_is_left_out_until_the_refresh_and_a_change_is_not() {
    let etcd = Etcd::start().await;
    let (service, addr) = Service::start(Manner::Answers).await;
    let mut config = config(&etcd.endpoint(), &[addr]);
    config["exporter"]["deadband"] = json!(0.05);
    config["exporter"]["refresh"] = json!("2s");
    let exporter = Exporter::start(&config);
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    sleep(5 * INTERVAL).await; // until its rates are known

    let puts = async || exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    let (before, asked) = (puts().await, service.asked.load(Ordering::Relaxed));
    sleep(20 * INTERVAL).await;
    let (written, asked) = (puts().await - before, service.asked.load(Ordering::Relaxed) - asked);
    assert!(asked >= 15, "asked {asked} times in 20 intervals");
    assert!((1.0..=4.0).contains(&written), "{written} puts in 4 s with a refresh of 2 s");
    assert!(exporter.metric("ipconfig_exporter_unchanged_total").await >= 10.0);
    let interval = reports(&connection, STATUS_KEY).await.unwrap()[0].interval;
    assert_eq!(interval, Duration::from_secs(2), "it says when to expect the next one");

    service.requests.fetch_add(1000, Ordering::Relaxed);
    let changed = Instant::now();
    let requests = service.requests.load(Ordering::Relaxed);
    while first_status(&connection).await.requests != requests {
        assert!(changed.elapsed() < PATIENCE, "the change is never written");
    }
    assert!(changed.elapsed() < 4 * INTERVAL, "it took {:?}", changed.elapsed());
}

#[tokio::test]
async fn an_instance_that_cannot_be_read_is_reported_so_with_how_long_and_back_at_its_first_word() {
    let etcd = Etcd::start().await;
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    let silent_for = async || match &reports(&connection, STATUS_KEY).await?[..] {
        [it] => match it.report {
            Report::Unreachable { silent_for } => Some(silent_for),
            _ => None,
        },
        reports => panic!("{reports:?}"),
    };
    wait_until("it is reported", PATIENCE, async || silent_for().await.is_some()).await;
    wait_until("its silence grows", PATIENCE, async || {
        silent_for().await.is_some_and(|it| it > 3 * INTERVAL)
    })
    .await;
    let (service, _) = Service::start_at(addr, Manner::Answers).await;
    first_status(&connection).await;
    service.turn(Manner::Never);
    wait_until("it is reported again", PATIENCE, async || silent_for().await.is_some()).await;
    assert!(silent_for().await.unwrap() < 10 * INTERVAL, "it counts from the last answer");
}

#[tokio::test]
async fn a_hundred_and_fifty_instances_are_two_shards_and_no_put_more_than_that_an_interval() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr; 150]));
    let connection = connect(&etcd).await;
    let count = async |shard: u32| {
        let key = format!("/ipconfig/v1/status/exporter-1/chat/{shard}");
        reports(&connection, &key).await.map_or(0, |reports| reports.len())
    };
    wait_until("both shards", PATIENCE, async || (count(0).await, count(1).await) == (100, 50))
        .await;
    assert_eq!(count(2).await, 0);
    let puts = async || exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    let before = puts().await;
    sleep(10 * INTERVAL).await;
    let written = puts().await - before;
    assert!(written <= 22.0, "{written} puts of 2 shards in 10 intervals");
}

#[tokio::test]
async fn an_etcd_without_compaction_is_warned_of_at_the_start_and_one_with_it_is_not() {
    for compacted in [false, true] {
        let etcd = Etcd::start().await;
        if compacted {
            etcd.ctl(&["put", "a", "1"]);
            etcd.ctl(&["put", "a", "2"]);
            etcd.ctl(&["compact", "3"]);
        }
        let (_, addr) = Service::start(Manner::Answers).await;
        let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
        first_status(&connect(&etcd).await).await;
        let log = std::fs::read_to_string(&exporter.log).unwrap();
        assert_eq!(log.contains("--auto-compaction-mode=periodic"), !compacted, "{log}");
    }
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_put_leaves_nothing_behind() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    for _ in 0..3 {
        let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr; 150]));
        let connection = connect(&etcd).await;
        first_status(&connection).await;
        etcd.pause();
        sleep(2 * INTERVAL).await; // puts are under way now
        exporter.signal("TERM").await;
        sleep(INTERVAL).await;
        etcd.resume();
        assert_eq!(exporter.end().await.0, Some(0));
        let left = async || connection.list("/ipconfig/v1/").await.unwrap();
        wait_until("an empty prefix", PATIENCE, async || left().await.is_empty()).await;
        sleep(INTERVAL).await;
        assert_eq!(left().await, [], "a late put");
    }
}
