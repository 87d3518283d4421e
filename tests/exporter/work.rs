//! What it does while all is well, or an instance is not.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Etcd, free_port, wait_until};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::parts::*;

#[tokio::test]
async fn a_status_is_in_etcd_within_two_intervals_of_a_change() {
    let etcd = Etcd::start().await;
    let (service, addr) = Service::start(Manner::Answers).await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    first_status(&etcd).await;

    // The median, as a machine may stand still for longer than that.
    let mut took = Vec::new();
    for requests in [1000, 2000, 3000, 4000, 5000] {
        service.requests.store(requests, Ordering::Relaxed);
        let changed = Instant::now();
        while first_status(&etcd).await.requests != requests {
            assert!(changed.elapsed() < PATIENCE, "the change is never seen");
        }
        took.push(changed.elapsed());
    }
    took.sort_unstable();
    assert!(took[2] < 2 * INTERVAL, "they took {took:?}");
    let (id, status) = statuses(&etcd).await.unwrap().remove(0);
    assert_eq!(id, "chat-1");
    assert_eq!((status.boot_id, status.in_flight), (7, Some(3)));
    assert_eq!(status.cpu_limit_cores, None, "what the service does not tell stays unknown");
}

#[tokio::test]
async fn hostile_instances_are_not_put_and_delay_nobody() {
    let etcd = Etcd::start().await;
    let (well, well_addr) = Service::start(Manner::Answers).await;
    let statuses_at = [
        well_addr,
        Service::start(Manner::Never).await.1,
        Service::start(Manner::Late(INTERVAL * 3)).await.1,
        Service::start(Manner::NotANumber).await.1,
        Service::start(Manner::Unimplemented).await.1,
        start_garbage().await,
        start_mute().await,
        SocketAddr::from(([127, 0, 0, 1], free_port())),
    ];
    let exporter = Exporter::start(&config(&etcd.endpoint(), &statuses_at));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    let asked = well.asked.load(Ordering::Relaxed);
    let mut seen = std::collections::BTreeMap::new();
    let begun = Instant::now();
    while begun.elapsed() < 20 * INTERVAL {
        let statuses = statuses(&connection).await.unwrap();
        let ids: Vec<&str> = statuses.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["chat-1"]);
        let status = &statuses[0].1;
        seen.insert(status.seq, status.age);
        sleep(Duration::from_millis(5)).await;
    }
    let asked = (well.asked.load(Ordering::Relaxed) - asked) as f64;
    // A machine that stands still for a while makes some of them late, and skips some.
    // Who waited for the others would be late with all, and skip two of three.
    let intervals = begun.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
    let (few, many) = (intervals / 2.0, intervals * 1.1 + 2.0);
    assert!((few..many).contains(&asked), "asked {asked} times in {intervals} intervals");
    assert!(seen.len() as f64 > few, "written {} times in {intervals} intervals", seen.len());
    let mut ages: Vec<_> = seen.into_values().collect();
    ages.sort_unstable();
    assert!(ages[ages.len() / 2] < 2 * INTERVAL, "it waits for the others: {ages:?}");

    let (_, page) = exporter.page("/metrics").await;
    for id in 2..=8 {
        let line = format!("instance_up{{service=\"chat\",instance=\"chat-{id}\"}} 0.0");
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn who_answers_only_a_later_try_is_put_with_the_next_batch() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::SecondTry).await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    first_status(&etcd).await;

    let end = Instant::now() + 10 * INTERVAL;
    while Instant::now() < end {
        let statuses = statuses(&etcd).await.unwrap();
        assert_eq!(statuses.len(), 1, "a batch went out without it");
        let age = statuses[0].1.age;
        assert!((TIMEOUT / 2..2 * INTERVAL).contains(&age), "it waited {age:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_instance_is_put_while_it_answers_and_not_while_it_is_silent() {
    let etcd = Etcd::start().await;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    let empty = async || {
        wait_until("an empty batch", PATIENCE, async || {
            statuses(&etcd).await.is_some_and(|statuses| statuses.is_empty())
        })
        .await;
    };
    empty().await;
    let (service, _) = Service::start_at(addr, Manner::Answers).await;
    first_status(&etcd).await;
    service.turn(Manner::Never);
    empty().await;
    service.turn(Manner::Answers);
    first_status(&etcd).await;
}

#[tokio::test]
async fn instances_are_registered_as_configured_and_the_exporter_announces_itself() {
    let etcd = Etcd::start().await;
    let mut config = config(&etcd.endpoint(), &[]);
    config["services"]["chat"]["instances"] = json!([
        { "id": "full", "addr": "127.0.0.1:9001", "weight": 2.5, "zone": "a",
          "labels": { "version": "1.4" }, "status": "grpc://127.0.0.1:1", "drain": true },
        { "id": "plain", "addr": "[::1]:9002" },
    ]);
    let exporter = Exporter::start(&config);
    let etcd = connect(&etcd).await;
    let read = async |key: &str| {
        wait_until(key, PATIENCE, async || exists(&etcd, key).await).await;
        let record = etcd.get(key).await.unwrap().unwrap();
        serde_json::from_slice::<Value>(&record.value).unwrap()
    };
    assert_eq!(
        read("/ipconfig/v1/instances/chat/full").await,
        json!({ "addr": "127.0.0.1:9001", "weight": 2.5, "zone": "a",
                "labels": { "version": "1.4" }, "status": "grpc://127.0.0.1:1", "drain": true })
    );
    assert_eq!(
        read("/ipconfig/v1/instances/chat/plain").await,
        json!({ "addr": "[::1]:9002", "weight": 1.0, "drain": false })
    );
    let announcement = read("/ipconfig/v1/exporters/exporter-1").await;
    assert_eq!(announcement["listen"], json!(exporter.listen));
    assert_eq!(announcement["interval_ms"], json!(200));
}

#[tokio::test]
async fn the_metrics_page_has_every_series_and_healthz_says_well() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    first_status(&connect(&etcd).await).await;

    let (code, page) = exporter.page("/metrics").await;
    assert_eq!(code, 200);
    assert!(page.contains("application/openmetrics-text"), "{page}");
    for line in [
        r#"ipconfig_exporter_instance_up{service="chat",instance="chat-1"} 1.0"#,
        r#"ipconfig_exporter_instance_in_flight{service="chat",instance="chat-1"} 3.0"#,
        r#"ipconfig_exporter_instance_cpu_used_cores{service="chat",instance="chat-1"} 0.5"#,
        r#"ipconfig_exporter_instance_latency_sum_seconds{service="chat",instance="chat-1"} 1.5"#,
        r#"ipconfig_exporter_collect_tries_total{service="chat"}"#,
        r#"ipconfig_exporter_collect_failures_total{service="chat"} 0"#,
        "ipconfig_exporter_etcd_put_failures_total 0",
        "ipconfig_exporter_lease_grants_total 1",
        "ipconfig_exporter_ticks_skipped_total",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("instance_queue{"), "a gauge that it does not tell: {page}");
    assert!(exporter.metric("ipconfig_exporter_etcd_puts_total").await >= 3.0);
    assert!(exporter.metric("ipconfig_exporter_etcd_put_bytes_total").await > 100.0);

    let (code, body) = exporter.page("/healthz").await;
    assert_eq!(code, 200, "{body}");
    assert!(body.contains(r#""ready":true"#), "{body}");
    assert_eq!(exporter.page("/elsewhere").await.0, 404);
}
