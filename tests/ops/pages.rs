//! A gateway, an exporter and their etcd as they run, and what their pages tell.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::parts::{Exporter, Manner, PATIENCE, Service, config};
use crate::support::{Etcd, Process, free_port, wait_until};

/// All that is scraped: each shows something of each kind that it counts, a bad
/// record and an instance that does not answer among it.
pub struct System {
    pub etcd: Etcd,
    pub exporter: Exporter,
    pub gateway: SocketAddr,
    _nginx: Process,
    _dir: TempDir,
}

impl System {
    /// Starts it, and returns when the gateway serves by what the exporter tells.
    pub async fn start() -> Self {
        let etcd = Etcd::start().await;
        let (_, answers) = Service::start(Manner::Answers).await;
        let silent = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let config = config(&etcd.endpoint(), &[answers, silent]);
        etcd.ctl(&["put", "/ipconfig/v1/instances/chat/bad", "bad"]);

        let dir = TempDir::with_prefix("ipconfig-ops-").unwrap();
        let gateway = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let nginx = start_gateway(dir.path(), gateway, &config.to_string());
        let exporter = Exporter::start(&config);
        let system = Self { etcd, exporter, gateway, _nginx: nginx, _dir: dir };
        wait_until("the gateway is live, and the exporter has asked", PATIENCE, async || {
            let [gateway, exporter] = system.pages().await;
            gateway.contains("ipconfig_mode{mode=\"live\"} 1")
                && gateway.contains("ipconfig_bad_records_total{")
                && exporter.contains("ipconfig_exporter_bad_records_total{")
                && exporter.contains("instance_up{service=\"chat\",instance=\"chat-1\"} 1")
                && exporter.contains("ipconfig_exporter_collect_errors_total{")
        })
        .await;
        system
    }

    /// Of the gateway and of the exporter; empty while they do not listen.
    pub async fn pages(&self) -> [String; 2] {
        let exporter = self.exporter.listen.parse().unwrap();
        [get(self.gateway, "/ipconfig/metrics").await, get(exporter, "/metrics").await]
    }
}

/// The README's nginx.conf, in one process, with this build's library.
fn start_gateway(dir: &Path, listen: SocketAddr, config: &str) -> Process {
    let file = dir.join("ipconfig.json");
    fs::write(&file, config).unwrap();
    let repository = env!("CARGO_MANIFEST_DIR");
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().display();
    let mut conf = include_str!("../../nginx/example.conf").to_owned();
    for (shipped, here) in [
        ("worker_processes auto;", "master_process off;".to_owned()),
        ("/tmp/ipconfig-example.pid", dir.join("nginx.pid").display().to_string()),
        ("$prefix/lua", format!("{repository}/lua")),
        ("$prefix/target/release", library.to_string()),
        ("include ipconfig", format!("include {repository}/nginx/ipconfig")),
        ("127.0.0.1:8080", listen.to_string()),
    ] {
        assert!(conf.contains(shipped), "{shipped} is not in nginx/example.conf");
        conf = conf.replace(shipped, &here);
    }
    let path = dir.join("nginx.conf");
    fs::write(&path, conf).unwrap();
    let mut nginx = Command::new("nginx");
    nginx.arg("-p").arg(dir).arg("-c").arg(&path).env("IPCONFIG_CONFIG", &file);
    Process::start(&mut nginx, &dir.join("log"))
}

/// The body of a page; empty while nobody listens.
pub async fn get(addr: SocketAddr, path: &str) -> String {
    let Ok(mut server) = TcpStream::connect(addr).await else { return String::new() };
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    let mut answer = String::new();
    if server.write_all(request.as_bytes()).await.is_err()
        || server.read_to_string(&mut answer).await.is_err()
    {
        return String::new();
    }
    answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())
}

/// Name and type of each metric of a page.
fn families(page: &str) -> impl Iterator<Item = (&str, &str)> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
}

/// The names of the series that a page has, or would have.
pub fn series(page: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, kind) in families(page) {
        let suffixes: &[&str] = match kind {
            "counter" if !name.ends_with("_total") => &["_total"],
            "histogram" => &["_bucket", "_count", "_sum"],
            "summary" => &["", "_count", "_sum"],
            _ => &[""],
        };
        names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
    }
    names
}

/// The labels that a page's series have.
pub fn labels(page: &str) -> BTreeSet<String> {
    let sets = page.lines().filter(|line| !line.starts_with('#'));
    let sets = sets.filter_map(|line| Some(line.split_once('{')?.1.rsplit_once('}')?.0));
    sets.flat_map(|set| set.split(','))
        .filter_map(|it| Some(it.split_once('=')?.0.to_owned()))
        .collect()
}

/// A page as the older text format has it, which `promtool check metrics` reads:
/// there a counter is called as its series are.
fn as_text(page: &str) -> String {
    let is_counter = |name: &str| families(page).any(|it| it == (name, "counter"));
    let lines = page.lines().filter(|line| *line != "# EOF").map(|line| {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", word @ ("HELP" | "TYPE"), name, rest] if is_counter(name) => {
                format!("# {word} {name}_total {rest}\n")
            }
            _ => format!("{line}\n"),
        }
    });
    lines.collect()
}

/// Runs promtool, and returns whether it is content, and what it says.
pub fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    let mut promtool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool of Debian's package prometheus");
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_of_either_page() {
    let system = System::start().await;
    for page in system.pages().await {
        assert!(page.ends_with("# EOF\n"), "{page}");
        let build = concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1");
        assert!(page.contains(build), "{page}");
        let said = promtool(&["check", "metrics"], &as_text(&page));
        assert_eq!(said, (true, String::new()), "\n{page}");
    }
}

#[test]
fn promtool_says_what_is_wrong_with_a_page() {
    let page = "# HELP x_ms X.\n# TYPE x_ms counter\nx_ms_total 1\n# EOF\n";
    let (is_well, said) = promtool(&["check", "metrics"], &as_text(page));
    assert!(!is_well && said.contains("x_ms_total"), "{said}");
}
