//! The nginx of this machine: where it is, and the part of its configuration that
//! is the same for every private one.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// nginx with the Lua module: `NGINX_BIN`, else OpenResty or nginx in `PATH`; `None`
/// if there is neither.
pub fn program() -> Option<PathBuf> {
    let chosen = env::var_os("NGINX_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    chosen.or_else(|| in_path("openresty")).or_else(|| in_path("nginx"))
}

/// A program that is in `PATH`.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The configuration of a private nginx in the folder that `-p` names, with what
/// stands in `http` in its http block. It runs in the foreground, and logs to a file
/// in that folder: `log` is `<file> <level>`.
///
/// # Errors
/// When nginx cannot be run, or this process is not told who it is.
pub fn conf(nginx: &Path, workers: u32, log: &str, http: &str) -> io::Result<String> {
    let modules: String = lua_modules(nginx)?
        .into_iter()
        .map(|path| format!("load_module \"{}\";\n", path.display()))
        .collect();
    // The workers read the checkout, which their own user may not be let into.
    let user = if is_root()? { "user root;\n" } else { "" };
    Ok(format!(
        r#"{modules}{user}daemon off;
pid nginx.pid;
error_log {log};
worker_processes {workers};
env IPCONFIG_CONFIG;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{http}
}}
"#
    ))
}

/// Debian's nginx has Lua in modules; OpenResty's has it built in.
fn lua_modules(nginx: &Path) -> io::Result<Vec<PathBuf>> {
    let answer = Command::new(nginx).arg("-V").output()?;
    let text = String::from_utf8_lossy(&answer.stderr);
    let folder = text.split_whitespace().find_map(|word| word.strip_prefix("--modules-path="));
    let modules = folder.into_iter().flat_map(|folder| {
        ["ndk_http_module.so", "ngx_http_lua_module.so"].map(|name| Path::new(folder).join(name))
    });
    Ok(modules.filter(|path| path.is_file()).collect())
}

fn is_root() -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system.
    Ok(ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}
