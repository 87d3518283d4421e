//! The parts together: services, exporter, etcd, gateway, with a fleet of one
//! size.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ipconfig::config::EtcdConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::nginx::{self, Nginx};
use crate::servers::{self, Servers};
use crate::support::{Etcd, Process, free_ports, wait_until};
use crate::{http, usage};

pub const SERVICE: &str = "fleet";

/// As the exporter packs them.
const INSTANCES_PER_SHARD: usize = 100;

/// How long it may take until every instance has reported.
pub const START: Duration = Duration::from_secs(120);

/// From then on until everything is in step: a window is 5 s, and each instance
/// is written at least every 3 s.
const SETTLE: Duration = Duration::from_secs(5);

/// Everything that runs; stopped when dropped, whoever writes first.
pub struct Stage {
    pub exporter: Process,
    pub gateway: Gateway,
    pub servers: Servers,
    pub etcd: Etcd,
    pub size: usize,
    pub metrics_port: u16,
    _dir: TempDir,
}

/// An nginx with one worker.
pub struct Gateway {
    _nginx: Nginx,
    pub port: u16,
    pub worker: u32,
    /// The plugin's.
    pub thread: u32,
}

impl Stage {
    /// Returns when every instance has reported for a while; `None` if some shard
    /// of them has not after [`START`].
    pub async fn start(size: usize) -> Option<Self> {
        let dir = TempDir::with_prefix("ipconfig-bench-").expect("a temporary directory");
        let [status_port, metrics_port] = free_ports();
        let etcd = Etcd::start().await;
        let servers = Servers::start(status_port, size);
        let config = dir.path().join("ipconfig.json");
        let text = fleet_config(&etcd, size, status_port, metrics_port);
        fs::write(&config, text).expect("a file in the directory");
        let log = dir.path().join("exporter.log");
        let exporter = Process::start(&mut exporter_command(&config), &log);
        let gateway = Gateway::start(&config).await;
        let mut stage = Stage { exporter, gateway, servers, etcd, size, metrics_port, _dir: dir };
        if !stage.do_all_report(&log).await {
            let log = fs::read_to_string(&log).unwrap_or_default();
            eprintln!("the exporter's log begins with:");
            log.lines().take(5).for_each(|line| eprintln!("{line}"));
            return None;
        }
        sleep(SETTLE).await;
        Some(stage)
    }

    /// Waits until every shard was written and the gateway has all instances. Not
    /// for the gateway's whole list: what its worker needs to print one stays in
    /// the memory that is to be measured.
    async fn do_all_report(&mut self, log: &Path) -> bool {
        let deadline = Instant::now() + START;
        while self.keys("status") < self.size.div_ceil(INSTANCES_PER_SHARD)
            || self.keys("instances") < self.size
            || count(self.gateway.port) != self.size
        {
            let log = || fs::read_to_string(log).unwrap_or_default();
            assert!(self.exporter.is_running(), "the exporter ended; its log:\n{}", log());
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(200)).await;
        }
        true
    }

    /// How many keys of a kind there are in etcd.
    fn keys(&self, kind: &str) -> usize {
        let prefix = format!("{}/{kind}/", EtcdConfig::default().prefix);
        self.etcd.ctl(&["get", "--prefix", "--keys-only", &prefix]).split_whitespace().count()
    }

    /// How many instances the gateway ranks by their own reports.
    pub fn reporting(&self) -> usize {
        let view = view(self.gateway.port, "");
        let instances = view["instances"].as_array().map_or(&[][..], Vec::as_slice);
        instances.iter().filter(|it| it["state"] == "reporting").count()
    }

    /// Another part of the instances changes from now on.
    pub async fn change(&mut self, part: f64) {
        self.servers.change(part);
        sleep(SETTLE).await;
    }
}

impl Gateway {
    pub async fn start(config: &Path) -> Self {
        let [port] = free_ports();
        let nginx = Nginx::start(None, &gateway_http(port, config)).await;
        let worker = nginx.worker_pid();
        let mut thread = None;
        let has_begun = async || {
            thread = usage::thread_named(worker, "ipconfig");
            thread.is_some()
        };
        wait_until("the plugin's thread runs", START, has_begun).await;
        let thread = thread.expect("it has begun");
        Gateway { _nginx: nginx, port, worker, thread }
    }

    /// Memory of the worker and its thread that they share with nobody.
    pub fn memory_mb(&self) -> f64 {
        usage::memory_mb(self.worker, "RssAnon")
    }
}

/// What a gateway without any service takes.
pub async fn empty_gateway_mb() -> f64 {
    let dir = TempDir::with_prefix("ipconfig-bench-").expect("a temporary directory");
    let etcd = Etcd::start().await;
    let config = dir.path().join("ipconfig.json");
    let text = json!({ "etcd": { "endpoints": [etcd.endpoint()] }, "services": {} });
    fs::write(&config, text.to_string()).expect("a file in the directory");
    let gateway = Gateway::start(&config).await;
    let is_ready = async || http::get(gateway.port, "/ipconfig/healthz").is_ok();
    wait_until("an empty gateway is ready", START, is_ready).await;
    gateway.memory_mb()
}

/// How many instances the gateway has of the service.
fn count(port: u16) -> usize {
    view(port, "?n=0")["count"].as_u64().and_then(|count| count.try_into().ok()).unwrap_or(0)
}

/// The service in the gateway's API; null if there is no answer.
fn view(port: u16, query: &str) -> Value {
    let page = http::get(port, &format!("/ipconfig/v1/services/{SERVICE}{query}"));
    serde_json::from_str(&page.unwrap_or_default()).unwrap_or_default()
}

pub fn id(index: usize) -> String {
    format!("fleet-{index:05}")
}

/// The index that an id was made of.
pub fn index(id: &str) -> Option<usize> {
    id.strip_prefix("fleet-")?.parse().ok()
}

/// One file for the exporter and the gateway.
fn fleet_config(etcd: &Etcd, size: usize, status_port: u16, metrics_port: u16) -> String {
    let instance = |index| {
        let address = servers::address(index);
        json!({
            "id": id(index),
            "addr": SocketAddr::from((address, 8080)),
            "status": format!("grpc://{address}:{status_port}"),
        })
    };
    json!({
        "etcd": { "endpoints": [etcd.endpoint()] },
        "services": { SERVICE: { "instances": (0..size).map(instance).collect::<Vec<_>>() } },
        "exporter": { "interval": "1s", "listen": format!("127.0.0.1:{metrics_port}") },
    })
    .to_string()
}

fn exporter_command(config: &Path) -> Command {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_ipconfig-exporter"));
    let mut command = Command::new(program);
    // A line for each instance that answers is more than anybody reads here.
    command.arg("--config").arg(config).env("RUST_LOG", "warn");
    command
}

fn gateway_http(port: u16, config: &Path) -> String {
    let repository = env!("CARGO_MANIFEST_DIR");
    let gateway = nginx::gateway_http(config);
    format!(
        r#"
{gateway}
    server {{
        listen 127.0.0.1:{port};
        include {repository}/nginx/ipconfig_api.conf;
    }}
"#
    )
}
