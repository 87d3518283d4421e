//! A gateway for tests: a real nginx with the library of this build, and what
//! asks it.
#![allow(dead_code, reason = "whoever includes this file uses a part of it")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::thread;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Response, Uri};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{self, free_port, signal, wait_until};

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Client = legacy::Client<HttpConnector, Empty<Bytes>>;

pub fn client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

pub async fn get(client: &Client, uri: Uri) -> Result<Response<Bytes>, String> {
    let reading = async {
        let answer = client.get(uri).await.map_err(|error| format!("{error:?}"))?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|error| format!("{error:?}"))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    let answer = timeout(REQUEST_LIMIT, reading).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {REQUEST_LIMIT:?}")))
}

/// nginx with two workers that follow etcd.
pub struct Gateway {
    child: process::Child,
    dir: TempDir,
    port: u16,
    client: Client,
    /// What its API said last of the service.
    view: Mutex<Value>,
}

impl Gateway {
    /// Starts one with this configuration file.
    pub async fn start(services: &Value) -> Self {
        let dir = TempDir::with_prefix("ipconfig-nginx-").expect("a temporary directory");
        let port = free_port();
        let config = dir.path().join("ipconfig.json");
        fs::write(&config, services.to_string()).expect("a file in the directory");
        let nginx = support::nginx::program().expect(
            "nginx is not there: install nginx and libnginx-mod-http-lua, or set NGINX_BIN",
        );
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

    /// Of one of its pages.
    pub fn uri(&self, path: &str) -> Uri {
        format!("http://127.0.0.1:{}{path}", self.port).parse().expect("a URI")
    }

    /// Waits until the instances of the ranking are these.
    pub async fn wait_until_ranked(&mut self, ids: &[&str]) {
        let is_so = async || {
            let ended = self.child.try_wait().expect("a child of this process").is_some();
            assert!(!ended, "nginx ended; its log:\n{}", self.log());
            self.ranked().await == ids
        };
        wait_until(&format!("{ids:?} are ranked"), PATIENCE, is_so).await;
    }

    /// The ids of the ranking, in order of their names; none while it does not
    /// follow etcd.
    pub async fn ranked(&self) -> Vec<String> {
        let id = |instance: &Value| instance["id"].as_str().expect("an id").to_owned();
        let mut ids: Vec<_> = self.ranking().await.iter().map(id).collect();
        ids.sort_unstable();
        ids
    }

    /// The ranking of the service `chat`, as its API tells it; empty while it
    /// does not follow etcd.
    pub async fn ranking(&self) -> Vec<Value> {
        let answer = get(&self.client, self.uri("/ipconfig/v1/services/chat")).await;
        let body = answer.map(Response::into_body).unwrap_or_default();
        let view: Value = serde_json::from_slice(&body).unwrap_or_default();
        let instances = view["instances"].as_array().filter(|_| view["mode"] == "live");
        let ranking = instances.cloned().unwrap_or_default();
        *self.view.lock() = view;
        ranking
    }

    /// The states of the instances of `chat` by id, whether it follows etcd or not.
    pub async fn states(&self) -> BTreeMap<String, String> {
        let answer = get(&self.client, self.uri("/ipconfig/v1/services/chat")).await;
        let body = answer.map(Response::into_body).unwrap_or_default();
        let view: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |instance: &Value, key: &str| instance[key].as_str().expect("a text").to_owned();
        let instances = view["instances"].as_array().cloned().unwrap_or_default();
        instances.iter().map(|it| (text(it, "id"), text(it, "state"))).collect()
    }

    /// A figure of its metrics page; `None` if it is not there.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let answer = get(&self.client, self.uri("/ipconfig/metrics")).await.ok()?;
        let page = String::from_utf8_lossy(answer.body()).into_owned();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.parse().ok()
    }

    /// Starts new workers in place of those that it has.
    pub fn reload(&self) {
        assert!(signal(self.child.id(), "HUP"), "nginx runs");
    }

    /// Kills all of its processes at once, as `kill -9` does.
    pub fn kill(&mut self) {
        let pid = self.child.id();
        let workers = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let workers = workers.expect("the workers of a master that runs");
        // The master first: it would start others.
        signal(pid, "KILL");
        for worker in workers.split_whitespace() {
            signal(worker.parse().expect("a process id"), "KILL");
        }
        let _ = self.child.wait();
    }

    /// What nginx logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("nginx:\n{}{}", self.log(), self.view.lock());
        }
        // Killed, the master would leave its workers behind.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "TERM");
        }
        let _ = self.child.wait();
    }
}

fn nginx_conf(nginx: &Path, port: u16) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = built(&["libipconfig.so"]);
    let http = format!(
        r#"
    lua_package_path "{lua}/?.lua;;";
    lua_package_cpath "{library}/?.so;;";
    include {includes}/ipconfig.conf;
    server {{
        listen 127.0.0.1:{port};
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
"#,
        lua = repository.join("lua").display(),
        library = library.parent().expect("a folder").display(),
        includes = repository.join("nginx").display(),
    );
    support::nginx::conf(nginx, 2, "error.log notice", &http).expect("nginx can be run")
}

/// A file that cargo builds; the path begins beside the executable of this test.
pub fn built(path: &[&str]) -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let path = test.parent().expect("a folder").join(path.iter().collect::<PathBuf>());
    assert!(path.exists(), "{} is not there: `cargo test` builds it", path.display());
    path
}
