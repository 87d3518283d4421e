//! The gateways of each side: four of one worker, kept alive to the fleet, with
//! no second try that would hide a slow first one.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::http;
use crate::nginx::{self, Code, Nginx};
use crate::servers::{self, Address};
use crate::support::{Etcd, Process, free_port, wait_until};

pub const GATEWAYS: usize = 4;

const SERVICE: &str = "fleet";

const START: Duration = Duration::from_secs(20);

/// The window holds the reports of 5 s, each a second after the last, and begins
/// with those of another side.
const REPORTS_ARE_NEW: Duration = Duration::from_secs(7);

/// Until connections are open and the queues are as long as they will be.
const CONNECTIONS_ARE_OPEN: Duration = Duration::from_secs(1);

/// nginx's own ways: name, and the line of the upstream that chooses it.
const NGINX_METHODS: [(&str, &str); 3] = [
    ("nginx round robin", ""),
    (NGINX_LEAST_CONN, "least_conn;"),
    ("nginx random two", "random two least_conn;"),
];

const NGINX_LEAST_CONN: &str = "nginx least_conn";

const HAPROXY: &str = "HAProxy leastconn";

/// One way to the fleet.
pub struct Side {
    pub name: String,
    pub is_ours: bool,
    /// One for each gateway.
    pub ports: Vec<u16>,
    /// The processes that carry its requests.
    pub pids: Vec<u32>,
    /// Requests before those that count.
    pub warm_up: Duration,
    _running: Vec<Running>,
}

#[expect(dead_code, reason = "held for the end of what it stands for")]
enum Running {
    Nginx(Nginx),
    Process(Process),
}

/// Which sides there can be, peers first, without starting them.
pub fn names() -> Vec<String> {
    let methods = NGINX_METHODS.iter().map(|(name, _)| (*name).to_owned());
    methods.chain([HAPROXY.to_owned()]).chain(ours().into_iter().map(|it| it.name)).collect()
}

/// Whether a side takes part everywhere: ours, and those peers that count what is
/// in flight on every instance.
pub fn is_of_the_few(name: &str) -> bool {
    !NGINX_METHODS.iter().any(|(method, _)| *method == name) || name == NGINX_LEAST_CONN
}

/// One of our sides.
struct Ours {
    strategy: String,
    code: Code,
    name: String,
}

/// Those named by PEERS_STRATEGIES; `adaptive` by default. Strategies are not
/// checked: another library may know others.
fn ours() -> Vec<Ours> {
    let names = std::env::var("PEERS_STRATEGIES").unwrap_or_else(|_| "adaptive".into());
    let from = |name| std::env::var_os(name).map(PathBuf::from);
    let of = |name: &str| {
        let (strategy, library) = match name.split_once('@') {
            Some((strategy, library)) => (strategy, Some(PathBuf::from(library))),
            None => (name, from("PEERS_LIB_DIR")),
        };
        let library = library.unwrap_or_else(nginx::library_dir);
        let lua = from("PEERS_LUA_DIR").unwrap_or_else(nginx::lua_dir);
        Ours {
            strategy: strategy.to_owned(),
            code: Code { library, lua },
            name: format!("ipconfig {name}"),
        }
    };
    names.split(',').map(|name| of(name.trim())).collect()
}

/// Our parts beside the gateways.
pub struct ControlPlane {
    pub etcd: Etcd,
    pub exporter: Process,
    instances: serde_json::Value,
    dir: TempDir,
}

impl ControlPlane {
    /// Starts etcd and the exporter, which asks the fleet each second.
    pub async fn start(fleet: &[Address]) -> Self {
        let etcd = Etcd::start().await;
        let dir = TempDir::with_prefix("ipconfig-bench-").expect("a temporary directory");
        let instance = |(index, Address { http, status }): (usize, &Address)| json!({ "id": format!("i-{index:02}"), "addr": http, "status": format!("grpc://{status}") });
        let instances = fleet.iter().enumerate().map(instance).collect();
        let config = json!({
            "etcd": { "endpoints": [etcd.endpoint()] },
            "services": { SERVICE: { "instances": &instances } },
            "exporter": { "interval": "1s", "listen": format!("127.0.0.1:{}", free_port()) },
        });
        let path = dir.path().join("exporter.json");
        fs::write(&path, config.to_string()).expect("a file in the directory");
        let mut command = Command::new(PathBuf::from(env!("CARGO_BIN_EXE_ipconfig-exporter")));
        command.arg("--config").arg(&path).env("RUST_LOG", "warn");
        let exporter = Process::start(&mut command, &dir.path().join("exporter.log"));
        ControlPlane { etcd, exporter, instances, dir }
    }

    /// The configuration of a gateway with this strategy.
    fn gateway_config(&self, strategy: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{strategy}.json"));
        let config = json!({
            "etcd": { "endpoints": [self.etcd.endpoint()] },
            "services": { SERVICE: {
                "balance": { "strategy": strategy },
                "instances": self.instances,
            } },
        });
        fs::write(&path, config.to_string()).expect("a file in the directory");
        path
    }
}

/// Starts the sides whose names are wanted.
pub async fn start(
    fleet: &[Address],
    control: &ControlPlane,
    is_wanted: impl Fn(&str) -> bool,
) -> Vec<Side> {
    let addresses: Vec<_> = fleet.iter().map(|it| it.http).collect();
    let mut sides = Vec::new();
    for (name, method) in NGINX_METHODS {
        if is_wanted(name) {
            sides.push(start_nginx(name, method, &addresses).await);
        }
    }
    if is_wanted(HAPROXY) {
        sides.push(start_haproxy(&addresses).await);
    }
    for ours in ours() {
        if is_wanted(&ours.name) {
            sides.push(start_ours(&ours, control, fleet.len()).await);
        }
    }
    sides
}

async fn start_nginx(name: &str, method: &str, fleet: &[SocketAddr]) -> Side {
    let servers: String = fleet.iter().map(|addr| format!("server {addr}; ")).collect();
    let upstream = format!("    upstream fleet {{ {method} {servers} keepalive 64; }}\n");
    let mut side = Side::new(name, false, CONNECTIONS_ARE_OPEN);
    for _ in 0..GATEWAYS {
        let port = free_port();
        let nginx = Nginx::start(None, &(upstream.clone() + &server(port, "fleet", ""))).await;
        side.add_nginx(port, nginx);
    }
    side
}

async fn start_ours(ours: &Ours, control: &ControlPlane, size: usize) -> Side {
    let config = control.gateway_config(&ours.strategy);
    let http = nginx::gateway_http_with(&ours.code, &config);
    let extra = format!(
        r#"
        include {}/nginx/ipconfig_api.conf;
        set $ipconfig_service {SERVICE};
        log_by_lua_block {{ require("resty.ipconfig").log() }}"#,
        env!("CARGO_MANIFEST_DIR")
    );
    let mut side = Side::new(&ours.name, true, REPORTS_ARE_NEW);
    for _ in 0..GATEWAYS {
        let port = free_port();
        let nginx = Nginx::start(None, &(http.clone() + &server(port, "ipconfig", &extra))).await;
        nginx::wait_until_live(port, SERVICE, size).await;
        side.add_nginx(port, nginx);
    }
    side
}

fn server(port: u16, upstream: &str, extra: &str) -> String {
    format!(
        r#"
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {extra}
        location /work/ {{
            proxy_pass http://{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
"#
    )
}

async fn start_haproxy(fleet: &[SocketAddr]) -> Side {
    let servers: String =
        fleet.iter().map(|addr| format!("    server s{} {addr}\n", addr.port())).collect();
    let mut side = Side::new(HAPROXY, false, CONNECTIONS_ARE_OPEN);
    for _ in 0..GATEWAYS {
        let port = free_port();
        // It has read the file when it answers.
        let dir = TempDir::with_prefix("ipconfig-haproxy-").expect("a temporary directory");
        let path = dir.path().join("haproxy.cfg");
        fs::write(&path, haproxy_config(port, &servers)).expect("a file in the directory");
        let process = start_haproxy_on(port, &path, &dir.path().join("log")).await;
        side.ports.push(port);
        side.pids.push(process.id());
        side._running.push(Running::Process(process));
    }
    side
}

async fn start_haproxy_on(port: u16, config: &Path, log: &Path) -> Process {
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    let mut process = Process::start(&mut command, log);
    let is_up = async || {
        let said = || fs::read_to_string(log).unwrap_or_default();
        assert!(process.is_running(), "haproxy ended; it said:\n{}", said());
        let answer = http::Client::connect(port).and_then(|mut it| it.get(&servers::path(0.0)));
        answer.is_ok()
    };
    wait_until("haproxy answers", START, is_up).await;
    process
}

fn haproxy_config(port: u16, servers: &str) -> String {
    format!(
        r#"
global
    nbthread 1
    maxconn 8000

defaults
    mode http
    option http-keep-alive
    http-reuse always
    retries 0
    timeout connect 5s
    timeout client 75s
    timeout server 60s

listen fleet
    bind 127.0.0.1:{port}
    balance leastconn
{servers}"#
    )
}

impl Side {
    fn new(name: &str, is_ours: bool, warm_up: Duration) -> Self {
        let (ports, pids, _running) = (Vec::new(), Vec::new(), Vec::new());
        Side { name: name.to_owned(), is_ours, ports, pids, warm_up, _running }
    }

    fn add_nginx(&mut self, port: u16, nginx: Nginx) {
        self.ports.push(port);
        self.pids.push(nginx.worker_pid());
        self._running.push(Running::Nginx(nginx));
    }
}
