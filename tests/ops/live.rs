//! A Prometheus as the example configures it, on all that it scrapes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use serde_json::Value;

use crate::pages::{System, get};
use crate::parts::PATIENCE;
use crate::support::{Process, free_port, wait_until};

/// The values of a query, which is to need no escapes, by one of their labels.
async fn query(prometheus: SocketAddr, query: &str, label: &str) -> Vec<(String, String)> {
    let answer = get(prometheus, &format!("/api/v1/query?query={query}")).await;
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut values: Vec<_> = results
        .iter()
        .map(|result| (text(&result["metric"][label]), text(&result["value"][1])))
        .collect();
    values.sort_unstable();
    values
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn prometheus_scrapes_all_three_and_tells_its_instances_from_the_services() {
    let system = System::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = include_str!("../../examples/prometheus/prometheus.yml").to_owned();
    for (shipped, here) in [
        ("15s", "1s".to_owned()),
        ("127.0.0.1:8080", system.gateway.to_string()),
        ("127.0.0.1:9180", system.exporter.listen.clone()),
        ("127.0.0.1:2379", system.etcd.address().to_string()),
    ] {
        assert!(config.contains(shipped), "{shipped} is not in prometheus.yml");
        config = config.replace(shipped, &here);
    }
    let rules = "ipconfig.rules.yml";
    fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    fs::copy(format!("examples/prometheus/{rules}"), dir.path().join(rules)).unwrap();
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut prometheus = Command::new("prometheus");
    prometheus
        .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address={addr}"));
    let _prometheus = Process::start(&mut prometheus, &dir.path().join("log"));

    let jobs = ["ipconfig-etcd", "ipconfig-exporter", "ipconfig-gateway"];
    wait_until("Prometheus has scraped all three", PATIENCE, async || {
        query(addr, "up", "job").await == jobs.map(|job| (job.to_owned(), "1".to_owned()))
    })
    .await;
    // The pages' `instance` is the service's, and Prometheus' own is where it asked.
    let up = "ipconfig_exporter_instance_up";
    let expected = pairs(&[("chat-1", "1"), ("chat-2", "0")]);
    assert_eq!(query(addr, up, "exported_instance").await, expected);
    let of_exporter = query(addr, up, "instance").await;
    assert!(of_exporter.iter().all(|(at, _)| *at == system.exporter.listen), "{of_exporter:?}");
    let record = "service:ipconfig_exporter_instance_up:avg";
    wait_until("a rule is evaluated", PATIENCE, async || {
        query(addr, record, "service").await == pairs(&[("chat", "0.5")])
    })
    .await;
}
