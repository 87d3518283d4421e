//! What is run, and how nginx is told what to do.

use std::env;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};
use crate::support::nginx;

/// What the demo needs of this build and of this machine.
pub struct Programs {
    /// The folder of libipconfig.so.
    library: PathBuf,
    pub exporter: PathBuf,
    pub demo_service: PathBuf,
    pub nginx: PathBuf,
}

impl Programs {
    /// Looks for all of them, and says which one is not there.
    pub fn find() -> Result<Self, Failure> {
        // target/release/examples/demo
        let demo = env::current_exe().context("find the demo's own file")?;
        let examples = demo.parent().unwrap_or(Path::new("."));
        let build = examples.parent().unwrap_or(Path::new(".."));
        built(&build.join("libipconfig.so"))?;
        nginx::in_path("etcd").ok_or_else(|| not_installed("etcd"))?;
        Ok(Self {
            library: build.to_owned(),
            exporter: built(&build.join("ipconfig-exporter"))?,
            demo_service: built(&examples.join("demo_service"))?,
            nginx: nginx::program().ok_or_else(|| not_installed("nginx"))?,
        })
    }

    /// An nginx on `addr` with the plugin, by the includes that are shipped, and with
    /// these locations; what it writes goes to the folder that it is started in.
    pub fn nginx_conf(&self, addr: SocketAddr, locations: &str) -> Result<String, Failure> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let includes = repository.join("nginx");
        let http = format!(
            r#"
    lua_package_path {lua};
    lua_package_cpath {library};
    include {ipconfig};

    server {{
        listen {addr};
{locations}
        include {ipconfig_api};
    }}
"#,
            lua = quoted(format!("{}/lua/?.lua;;", repository.display())),
            library = quoted(format!("{}/?.so;;", self.library.display())),
            ipconfig = quoted(includes.join("ipconfig.conf").display()),
            ipconfig_api = quoted(includes.join("ipconfig_api.conf").display()),
        );
        let conf = nginx::conf(&self.nginx, 2, "nginx.log notice", &http);
        conf.context(format!("configure {}", self.nginx.display()))
    }
}

/// A string in nginx's configuration.
fn quoted(text: impl Display) -> String {
    let text = text.to_string();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn built(path: &Path) -> Result<PathBuf, Failure> {
    let remedy = "`make demo` and `make chaos` build it";
    let missing = || Failure::Missing { what: path.display().to_string(), remedy };
    path.is_file().then(|| path.to_owned()).ok_or_else(missing)
}

fn not_installed(program: &str) -> Failure {
    Failure::Missing {
        what: format!("the program {program}"),
        remedy: "`make setup` installs what is needed",
    }
}
