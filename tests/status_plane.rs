//! The status plane from end to end: real services, real exporters, a real etcd,
//! and a gateway's ranking.

#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/python.rs"]
mod python;
mod support;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use gateway::Gateway;
use ipconfig::service::Reporter;
use python::OrcaServer;
use serde_json::{Value, json};
use support::{Etcd, Process, free_port, wait_until};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const INTERVAL: Duration = Duration::from_millis(500);
const LEASE_TTL: Duration = Duration::from_secs(3);
/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// One configuration file for gateway and exporters.
fn config(etcd: &Etcd, instances: Vec<Value>) -> Value {
    json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "services": { "chat": { "instances": instances } },
        "exporter": { "interval": "500ms", "timeout": "250ms", "lease_ttl": "3s" },
    })
}

fn start_exporter(dir: &TempDir, config: &Value, id: &str) -> Process {
    let mut config = config.clone();
    config["exporter"]["id"] = json!(id);
    config["exporter"]["listen"] = json!(format!("127.0.0.1:{}", free_port()));
    let file = dir.path().join(format!("{id}.json"));
    fs::write(&file, config.to_string()).expect("a file in the directory");
    let log = dir.path().join(format!("{id}.log"));
    File::create(&log).expect("a log file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"));
    Process::start(command.arg("--config").arg(&file).env("RUST_LOG", "info"), &log)
}

/// How many of the ranking are in this state.
fn count(ranking: &[Value], state: &str) -> usize {
    ranking.iter().filter(|instance| instance["state"] == state).count()
}

#[tokio::test]
async fn of_a_hundred_instances_none_leaves_when_one_of_two_exporters_is_killed() {
    const INSTANCES: usize = 100;
    let etcd = Etcd::start().await;
    let dir = TempDir::with_prefix("ipconfig-exporters-").expect("a temporary directory");
    let reporter = Reporter::new().expect("a reporter");
    let status = SocketAddr::from(([127, 0, 0, 1], free_port()));
    tokio::spawn(reporter.serve(status).expect("a free port"));
    let instance = |n: usize| {
        json!({ "id": format!("chat-{n}"), "addr": format!("127.0.0.1:{}", 40_000 + n),
                "status": format!("grpc://{status}") })
    };
    let config = config(&etcd, (0..INSTANCES).map(instance).collect());
    let _one = start_exporter(&dir, &config, "exporter-1");
    let mut two = start_exporter(&dir, &config, "exporter-2");
    // The gateway's own file does not name them, so that it has but etcd's word. On a
    // busy machine an exporter may reach none of them for a second or two.
    let mut gateways = config.clone();
    gateways["services"] = json!({ "chat": { "status": { "missed": 20 } } });
    let gateway = Gateway::start(&gateways).await;
    let reporting = async || count(&gateway.ranking().await, "reporting");
    wait_until("all report", PATIENCE, async || reporting().await == INSTANCES).await;
    let share = async |id: &str| {
        let entries =
            etcd.ctl(&["get", "--prefix", "--keys-only", &format!("/ipconfig/v1/status/{id}/")]);
        entries.lines().filter(|line| !line.is_empty()).count()
    };
    wait_until("both write", PATIENCE, async || {
        share("exporter-1").await > 0 && share("exporter-2").await > 0
    })
    .await;

    two.kill();
    let killed = Instant::now();
    let mut unknown = 0;
    while killed.elapsed() < 3 * LEASE_TTL + 6 * INTERVAL {
        let ranking = gateway.ranking().await;
        assert_eq!(ranking.len(), INSTANCES, "after {:?}", killed.elapsed());
        unknown = unknown.max(count(&ranking, "unknown"));
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(share("exporter-2").await, 0, "its lease has ended");
    wait_until("all report again", PATIENCE, async || reporting().await == INSTANCES).await;
    println!("at most {unknown} of {INSTANCES} were unknown for a while");
}

#[tokio::test]
async fn a_stock_grpc_server_of_another_language_is_ranked_by_its_orca_reports() {
    let etcd = Etcd::start().await;
    let dir = TempDir::with_prefix("ipconfig-exporters-").expect("a temporary directory");
    let busy = OrcaServer::start(&["--cpu", "0.9"]);
    let idle = OrcaServer::start(&["--cpu", "0.1"]);
    let instance = |id: &str, server: &OrcaServer| {
        json!({ "id": id, "addr": server.addr.to_string(),
                "status": format!("orca://{}", server.addr) })
    };
    let config = config(&etcd, vec![instance("busy", &busy), instance("idle", &idle)]);
    let _exporter = start_exporter(&dir, &config, "exporter-1");
    let gateway = Gateway::start(&config).await;
    wait_until("the idle one leads", PATIENCE, async || {
        let ranking = gateway.ranking().await;
        count(&ranking, "reporting") == 2
            && ranking[0]["id"] == "idle"
            && ranking[0]["weight"].as_f64() > ranking[1]["weight"].as_f64()
    })
    .await;
}

#[tokio::test]
async fn an_instance_that_dies_leaves_and_is_back_with_its_first_report() {
    let etcd = Etcd::start().await;
    let dir = TempDir::with_prefix("ipconfig-exporters-").expect("a temporary directory");
    let reporter = Reporter::new().expect("a reporter");
    let [well, other] =
        [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    tokio::spawn(reporter.serve(well).expect("a free port"));
    let serving = tokio::spawn(reporter.serve(other).expect("a free port"));
    let instance = |id: &str, status: SocketAddr, port: u16| json!({ "id": id, "addr": format!("127.0.0.1:{port}"), "status": format!("grpc://{status}") });
    let instances = vec![
        instance("a", well, 40_001),
        instance("b", well, 40_002),
        instance("c", other, 40_003),
    ];
    let config = config(&etcd, instances);
    let _exporter = start_exporter(&dir, &config, "exporter-1");
    let mut gateway = Gateway::start(&config).await;
    wait_until("all report", PATIENCE, async || count(&gateway.ranking().await, "reporting") == 3)
        .await;

    serving.abort();
    gateway.wait_until_ranked(&["a", "b"]).await;
    tokio::spawn(reporter.serve(other).expect("the port is free again"));
    gateway.wait_until_ranked(&["a", "b", "c"]).await;
}
