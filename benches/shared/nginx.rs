//! An nginx of one's own, with one worker: its configuration, its core, its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::{http, machine};
use crate::support::{self, free_port};

/// How long nginx may take to start, and a gateway to follow etcd.
const START: Duration = Duration::from_secs(20);

/// A running nginx; stopped, and its directory removed, when dropped.
pub struct Nginx {
    child: Child,
    dir: TempDir,
    /// Answers with the worker's pid at `/pid`.
    control_port: u16,
}

impl Nginx {
    /// Starts one with what stands in `http`, kept on `core` if one is given.
    pub async fn start(core: Option<usize>, http: &str) -> Self {
        let dir = TempDir::with_prefix("ipconfig-nginx-").expect("a temporary directory");
        let control_port = free_port();
        let conf = dir.path().join("nginx.conf");
        let program = machine::nginx();
        let control = format!(
            "    server {{ listen 127.0.0.1:{control_port}; location = /pid {{ return 200 $pid; }} }}\n"
        );
        let text = support::nginx::conf(&program, 1, "error.log warn", &(control + http));
        fs::write(&conf, text.expect("nginx can be run")).expect("a file in the directory");
        let child = machine::command_on(core, &program)
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&conf)
            .args(["-e", "error.log"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx can be started");
        let mut nginx = Nginx { child, dir, control_port };
        let is_up = async || {
            let ended = nginx.child.try_wait().expect("a child of this process").is_some();
            assert!(!ended, "nginx ended; its log:\n{}", nginx.log());
            http::get(control_port, "/pid").is_ok()
        };
        support::wait_until("nginx answers", START, is_up).await;
        nginx
    }

    /// The worker's pid.
    pub fn worker_pid(&self) -> u32 {
        let pid = http::get(self.control_port, "/pid").expect("the worker answers");
        pid.parse().expect("a pid")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killed, the master would leave its worker behind.
        if !support::signal(self.child.id(), "TERM") {
            // It ended by itself, or cannot be told otherwise.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Where nginx finds what a gateway is made of.
pub struct Code {
    /// The directory of libipconfig.so.
    pub library: PathBuf,
    /// The directory of resty/.
    pub lua: PathBuf,
}

/// What a gateway has in its http block beside its servers, but for the log hook:
/// that one stands in the servers that balance, so that a server beside them that
/// does not pays nothing for it.
pub fn gateway_http(config: &Path) -> String {
    gateway_http_with(&Code { library: library_dir(), lua: lua_dir() }, config)
}

/// The same of another library or other Lua code than this build's.
pub fn gateway_http_with(code: &Code, config: &Path) -> String {
    format!(
        r#"
    lua_package_path "{lua}/?.lua;;";
    lua_package_cpath "{library}/?.so;;";
    lua_shared_dict ipconfig 32m;
    init_by_lua_block {{ require("resty.ipconfig").init("{config}") }}
    init_worker_by_lua_block {{ require("resty.ipconfig").init_worker() }}
    upstream ipconfig {{
        server 0.0.0.1;
        balancer_by_lua_block {{ require("resty.ipconfig").balance() }}
        keepalive 64;
    }}
"#,
        lua = code.lua.display(),
        library = code.library.display(),
        config = config.display(),
    )
}

/// Waits until a gateway's service is ranked by what etcd holds.
pub async fn wait_until_live(port: u16, service: &str, instances: usize) {
    let is_live = |view: &Value| view["mode"] == "live" && view["count"] == instances;
    wait_until(port, service, is_live).await;
}

/// Waits until the API shows a service so.
pub async fn wait_until(port: u16, service: &str, is_so: impl Fn(&Value) -> bool) {
    let path = format!("/ipconfig/v1/services/{service}?n=0");
    let is_so = async || {
        let answer = http::get(port, &path).unwrap_or_default();
        is_so(&serde_json::from_str(&answer).unwrap_or_default())
    };
    support::wait_until(&format!("{service} is shown as it should be"), START, is_so).await;
}

/// Where the libipconfig.so of this build is: `target/release`, from
/// `target/release/deps/gateway-…`.
pub fn library_dir() -> PathBuf {
    let program = std::env::current_exe().expect("the path of this program");
    let dir = program.ancestors().nth(2).expect("a program of cargo's").to_owned();
    assert!(
        dir.join("libipconfig.so").exists(),
        "no libipconfig.so in {}: run `cargo build --release` first",
        dir.display()
    );
    dir
}

/// Where this checkout's Lua code is.
pub fn lua_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lua")
}
