//! A rolling restart under load loses nothing: a real nginx with the library of
//! this build, a real etcd, and four demo services, each under `ipconfigctl run`,
//! restarted in turn while requests keep coming.

mod support;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{Etcd, free_port, wait_until};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

const INSTANCES: [&str; 4] = ["chat-1", "chat-2", "chat-3", "chat-4"];

/// 500 requests a second.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(2);

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

type Client = legacy::Client<HttpConnector, Empty<Bytes>>;

fn client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

async fn get(client: &Client, uri: Uri) -> Result<Response<Bytes>, String> {
    let reading = async {
        let answer = client.get(uri).await.map_err(|error| format!("{error:?}"))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    let answer = timeout(REQUEST_LIMIT, reading).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {REQUEST_LIMIT:?}")))
}

// ------------------------------------------------------------------- the instances

/// A demo service under `ipconfigctl run`.
struct Instance {
    id: &'static str,
    endpoint: String,
    /// For requests, and for the status.
    ports: [u16; 2],
    log: PathBuf,
    child: Child,
}

impl Instance {
    fn start(id: &'static str, endpoint: &str, dir: &Path) -> Self {
        let (ports, log) = (support::free_ports(), dir.join(id));
        let child = run(id, endpoint, ports, &log);
        Self { id, endpoint: endpoint.to_owned(), ports, log, child }
    }

    /// As an init system stops it.
    async fn stop(&mut self) {
        let pid = self.child.id().expect("it runs").to_string();
        terminate(&pid);
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("it ends").expect("it can be waited for");
        assert!(status.success(), "{} ended with {status}; its log:\n{}", self.id, self.log());
    }

    /// Starts it again, on the same ports.
    fn start_again(&mut self) {
        self.child = run(self.id, &self.endpoint, self.ports, &self.log);
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}:\n{}", self.id, self.log());
        }
        // Killed, it would leave its command behind.
        if let Some(pid) = self.child.id() {
            terminate(&pid.to_string());
        }
    }
}

fn run(id: &str, endpoint: &str, [http, status]: [u16; 2], log: &Path) -> Child {
    let [http, status] = [http, status].map(|port| format!("127.0.0.1:{port}"));
    let log = fs::File::options().create(true).append(true).open(log).expect("a log file");
    Command::new(env!("CARGO_BIN_EXE_ipconfigctl"))
        .env_remove("IPCONFIG_CONFIG")
        .args(["run", "--endpoints", endpoint, "--service", "chat", "--id", id])
        .args(["--addr", &http, "--"])
        .arg(built(&["..", "examples", "demo_service"]))
        .args(["--id", id, "--http", &http, "--status", &status, "--delay-ms", "5"])
        .stdout(log.try_clone().expect("the log file twice"))
        .stderr(log)
        .spawn()
        .expect("ipconfigctl is built beside its tests")
}

/// A file that cargo builds; the path begins beside the executable of this test.
fn built(path: &[&str]) -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let path = test.parent().expect("a folder").join(path.iter().collect::<PathBuf>());
    assert!(path.exists(), "{} is not there: `cargo test` builds it", path.display());
    path
}

fn terminate(pid: &str) {
    // A command, since the system call would need unsafe code.
    let status =
        process::Command::new("sh").args(["-c", "kill -s TERM \"$1\"", "sh", pid]).status();
    assert!(status.expect("a shell").success(), "SIGTERM to process {pid}");
}

// --------------------------------------------------------------------- the gateway

/// nginx with two workers that follow etcd.
struct Gateway {
    child: process::Child,
    dir: TempDir,
    port: u16,
    client: Client,
    /// What its API said last of the service.
    view: Mutex<Value>,
}

impl Gateway {
    async fn start(endpoint: &str) -> Self {
        let dir = TempDir::with_prefix("ipconfig-nginx-").expect("a temporary directory");
        let port = free_port();
        let config = dir.path().join("ipconfig.json");
        let services = json!({"etcd": {"endpoints": [endpoint]}, "services": {"chat": {}}});
        fs::write(&config, services.to_string()).expect("a file in the directory");
        let nginx = nginx();
        let conf = dir.path().join("nginx.conf");
        fs::write(&conf, nginx_conf(&nginx, port)).expect("a file in the directory");
        let child = process::Command::new(&nginx)
            .args(["-e", "error.log", "-p"])
            .arg(dir.path())
            .arg("-c")
            .arg(&conf)
            .env("IPCONFIG_CONFIG", &config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child =
            child.unwrap_or_else(|error| panic!("cannot start {}: {error}", nginx.display()));
        Self { child, dir, port, client: client(), view: Mutex::default() }
    }

    fn uri(&self, path: &str) -> Uri {
        format!("http://127.0.0.1:{}{path}", self.port).parse().expect("a URI")
    }

    /// Waits until the instances of the ranking are these.
    async fn wait_until_ranked(&mut self, ids: &[&str]) {
        let is_so = async || {
            let ended = self.child.try_wait().expect("a child of this process").is_some();
            assert!(!ended, "nginx ended; its log:\n{}", self.log());
            self.ranked().await == ids
        };
        wait_until(&format!("{ids:?} are ranked"), PATIENCE, is_so).await;
    }

    /// The ids of the ranking, in order of their names; none while it does not
    /// follow etcd.
    async fn ranked(&self) -> Vec<String> {
        let answer = get(&self.client, self.uri("/ipconfig/v1/services/chat")).await;
        let body = answer.map(Response::into_body).unwrap_or_default();
        let view: Value = serde_json::from_slice(&body).unwrap_or_default();
        let instances = view["instances"].as_array().filter(|_| view["mode"] == "live");
        let id = |instance: &Value| instance["id"].as_str().expect("an id").to_owned();
        let mut ids: Vec<_> = instances.into_iter().flatten().map(id).collect();
        ids.sort_unstable();
        *self.view.lock() = view;
        ids
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("nginx:\n{}{}", self.log(), self.view.lock());
        }
        // Killed, the master would leave its workers behind.
        terminate(&self.child.id().to_string());
        let _ = self.child.wait();
    }
}

fn nginx() -> PathBuf {
    let chosen = env::var_os("NGINX_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    let folders = env::var_os("PATH").unwrap_or_default();
    let in_path = |program: &str| {
        env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
    };
    let found = chosen.or_else(|| in_path("openresty")).or_else(|| in_path("nginx"));
    found.expect("nginx is not there: install nginx and libnginx-mod-http-lua, or set NGINX_BIN")
}

/// The Lua module where it is not built in, as in Debian's nginx.
fn lua_modules(nginx: &Path) -> String {
    let asked = process::Command::new(nginx).arg("-V").output().expect("nginx can be run");
    let answer = String::from_utf8_lossy(&asked.stderr);
    let folder = answer.split_whitespace().find_map(|word| word.strip_prefix("--modules-path="));
    let modules = folder.into_iter().flat_map(|folder| {
        ["ndk_http_module.so", "ngx_http_lua_module.so"].map(|name| Path::new(folder).join(name))
    });
    let load = |path: PathBuf| format!("load_module {};\n", path.display());
    modules.filter(|path| path.is_file()).map(load).collect()
}

fn nginx_conf(nginx: &Path, port: u16) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = built(&["libipconfig.so"]);
    // The workers read the checkout, which their own user may not be let into.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let is_root = uids.split_whitespace().nth(1) == Some("0");
    format!(
        r#"
{modules}
{user}
daemon off;
pid nginx.pid;
error_log error.log notice;
worker_processes 2;
env IPCONFIG_CONFIG;
events {{ worker_connections 4096; }}
http {{
    lua_package_path "{lua}/?.lua;;";
    lua_package_cpath "{library}/?.so;;";
    include {includes}/ipconfig.conf;
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        keepalive_requests 1000000;
        location /chat/ {{
            set $ipconfig_service chat;
            proxy_pass http://ipconfig;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            # A failed request stays one: another instance would hide it.
            proxy_next_upstream off;
        }}
        include {includes}/ipconfig_api.conf;
    }}
}}
"#,
        modules = lua_modules(nginx),
        user = if is_root { "user root;" } else { "" },
        lua = repository.join("lua").display(),
        library = library.parent().expect("a folder").display(),
        includes = repository.join("nginx").display(),
    )
}

// --------------------------------------------------------------------- the traffic

/// 500 requests a second, whatever becomes of those before.
struct Traffic {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    sending: JoinHandle<()>,
}

#[derive(Default)]
struct Record {
    sent: u64,
    failures: Vec<String>,
    /// By the id of who answered.
    answered: BTreeMap<String, u64>,
}

impl Traffic {
    fn start(uri: Uri) -> Self {
        let (record, stop) = (Arc::<Mutex<Record>>::default(), Arc::<AtomicBool>::default());
        let (shared, stopped) = (Arc::clone(&record), Arc::clone(&stop));
        let sending = tokio::spawn(async move {
            let client = client();
            let mut ticks = interval(BETWEEN_REQUESTS);
            // What a busy machine is late with is made up for.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut under_way = JoinSet::new();
            while !stopped.load(Ordering::Relaxed) {
                ticks.tick().await;
                shared.lock().sent += 1;
                let (client, uri, record) = (client.clone(), uri.clone(), Arc::clone(&shared));
                under_way.spawn(async move {
                    let answer = get(&client, uri).await;
                    record.lock().note(answer);
                });
                while under_way.try_join_next().is_some() {}
            }
            under_way.join_all().await;
        });
        Self { record, stop, sending }
    }

    /// How many requests an instance has answered.
    fn answered_by(&self, id: &str) -> u64 {
        self.record.lock().answered.get(id).copied().unwrap_or_default()
    }

    /// Sends no more, and waits for the last answer.
    async fn end(self) -> Record {
        self.stop.store(true, Ordering::Relaxed);
        self.sending.await.expect("no panic");
        std::mem::take(&mut self.record.lock())
    }
}

impl Record {
    fn note(&mut self, answer: Result<Response<Bytes>, String>) {
        match answer {
            Ok(answer) if answer.status() == StatusCode::OK => {
                let who = answer.headers().get("x-instance").and_then(|id| id.to_str().ok());
                *self.answered.entry(who.unwrap_or_default().to_owned()).or_default() += 1;
            }
            Ok(answer) => self.failures.push(answer.status().to_string()),
            Err(error) => self.failures.push(error),
        }
    }
}

// ------------------------------------------------------------------------- the law

#[tokio::test]
async fn a_rolling_restart_under_load_loses_nothing() {
    let etcd = Etcd::start().await;
    let logs = TempDir::with_prefix("ipconfig-instances-").expect("a temporary directory");
    let mut instances = INSTANCES.map(|id| Instance::start(id, &etcd.endpoint(), logs.path()));
    let mut gateway = Gateway::start(&etcd.endpoint()).await;
    gateway.wait_until_ranked(&INSTANCES).await;

    let traffic = Traffic::start(gateway.uri("/chat/"));
    for id in INSTANCES {
        let is_asked = async || traffic.answered_by(id) > 0;
        wait_until(&format!("{id} answers"), PATIENCE, is_asked).await;
    }
    for instance in &mut instances {
        let id = instance.id;
        instance.stop().await;
        let others: Vec<_> = INSTANCES.into_iter().filter(|other| *other != id).collect();
        gateway.wait_until_ranked(&others).await;
        let before = traffic.answered_by(id);
        instance.start_again();
        gateway.wait_until_ranked(&INSTANCES).await;
        let is_asked = async || traffic.answered_by(id) > before;
        wait_until(&format!("{id} answers again"), PATIENCE, is_asked).await;
    }
    let Record { sent, failures, answered } = traffic.end().await;

    assert_eq!(failures.len(), 0, "of {sent} requests, first {:?}", failures.first());
    assert_eq!(answered.values().sum::<u64>(), sent, "{answered:?}");
    println!("{sent} requests, 0 failed; answered: {answered:?}");
}
