//! What is run, and how nginx is told what to do.

use std::env;
use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Context, Failure};
use crate::stage::{SERVICE, TRIED};

/// What the demo needs of this build and of this machine.
pub struct Programs {
    /// The folder of libipconfig.so.
    library: PathBuf,
    pub exporter: PathBuf,
    pub demo_service: PathBuf,
    pub nginx: PathBuf,
    /// Those that nginx has to load to have Lua; none where Lua is built in.
    nginx_modules: Vec<PathBuf>,
}

impl Programs {
    /// Looks for all of them, and says which one is not there.
    pub fn find() -> Result<Self, Failure> {
        // target/release/examples/demo
        let demo = env::current_exe().context("find the demo's own file")?;
        let examples = demo.parent().unwrap_or(Path::new("."));
        let build = examples.parent().unwrap_or(Path::new(".."));
        built(&build.join("libipconfig.so"))?;
        find_in_path("etcd").ok_or_else(|| not_installed("etcd"))?;
        let nginx = find_nginx()?;
        Ok(Self {
            library: build.to_owned(),
            exporter: built(&build.join("ipconfig-exporter"))?,
            demo_service: built(&examples.join("demo_service"))?,
            nginx_modules: lua_modules(&nginx)?,
            nginx,
        })
    }

    /// An nginx on `addr` that sends `/<service>/` through the plugin, by the includes
    /// that are shipped; what it writes goes to `folder`.
    pub fn nginx_conf(&self, folder: &Path, addr: SocketAddr) -> Result<String, Failure> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let includes = repository.join("nginx");
        let load_modules: String = self
            .nginx_modules
            .iter()
            .map(|path| format!("load_module {};\n", quoted(path.display())))
            .collect();
        let user = if is_root()? {
            "# The checkout may be where only root can read, and workers read it too.\nuser root;\n"
        } else {
            ""
        };
        Ok(format!(
            r#"{load_modules}{user}daemon off;
worker_processes 2;
pid {pid};
error_log {log} notice;
env IPCONFIG_CONFIG;

events {{}}

http {{
    lua_package_path {lua};
    lua_package_cpath {library};
    include {ipconfig};

    access_log off;
    client_body_temp_path {temp};
    proxy_temp_path {temp};
    fastcgi_temp_path {temp};
    uwsgi_temp_path {temp};
    scgi_temp_path {temp};

    server {{
        listen {addr};
        keepalive_requests 1000000;

        location /{SERVICE}/ {{
            set $ipconfig_service {SERVICE};
            proxy_pass http://ipconfig/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream error timeout http_502 http_503 http_504;
            proxy_connect_timeout 1s;
            proxy_read_timeout 5s;
            add_header {TRIED} $upstream_addr always;
        }}

        include {ipconfig_api};
    }}
}}
"#,
            pid = quoted(folder.join("nginx.pid").display()),
            log = quoted(folder.join("nginx.log").display()),
            lua = quoted(format!("{}/lua/?.lua;;", repository.display())),
            library = quoted(format!("{}/?.so;;", self.library.display())),
            ipconfig = quoted(includes.join("ipconfig.conf").display()),
            ipconfig_api = quoted(includes.join("ipconfig_api.conf").display()),
            temp = quoted(folder.join("temp").display()),
        ))
    }
}

/// A string in nginx's configuration.
fn quoted(text: impl Display) -> String {
    let text = text.to_string();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn built(path: &Path) -> Result<PathBuf, Failure> {
    let remedy = "`make demo` builds it";
    let missing = || Failure::Missing { what: path.display().to_string(), remedy };
    path.is_file().then(|| path.to_owned()).ok_or_else(missing)
}

fn not_installed(program: &str) -> Failure {
    Failure::Missing {
        what: format!("the program {program}"),
        remedy: "`make setup` installs what is needed",
    }
}

fn find_in_path(program: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn find_nginx() -> Result<PathBuf, Failure> {
    if let Some(chosen) = env::var_os("NGINX_BIN").filter(|path| !path.is_empty()) {
        return Ok(chosen.into());
    }
    let found = find_in_path("openresty").or_else(|| find_in_path("nginx"));
    found.ok_or_else(|| not_installed("nginx"))
}

/// Debian's nginx has Lua in modules; OpenResty's has it built in.
fn lua_modules(nginx: &Path) -> Result<Vec<PathBuf>, Failure> {
    let asked = Command::new(nginx).arg("-V").output();
    let answer = asked.context(format!("run {} -V", nginx.display()))?;
    let text = String::from_utf8_lossy(&answer.stderr);
    let folder = text.split_whitespace().find_map(|word| word.strip_prefix("--modules-path="));
    let modules = folder.into_iter().flat_map(|folder| {
        ["ndk_http_module.so", "ngx_http_lua_module.so"].map(|name| Path::new(folder).join(name))
    });
    Ok(modules.filter(|path| path.is_file()).collect())
}

fn is_root() -> Result<bool, Failure> {
    let status = "/proc/self/status";
    let text = fs::read_to_string(status).context(format!("read {status}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system.
    Ok(line.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}
