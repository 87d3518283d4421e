//! A rolling restart under load loses nothing: a real nginx with the library of
//! this build, a real etcd, and four demo services, each under `ipconfigctl run`,
//! restarted in turn while requests keep coming.

#[path = "support/gateway.rs"]
mod gateway;
mod support;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use gateway::{Gateway, built, client, get};
use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use parking_lot::Mutex;
use serde_json::json;
use support::{Etcd, wait_until};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

const INSTANCES: [&str; 4] = ["chat-1", "chat-2", "chat-3", "chat-4"];

/// 500 requests a second.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(2);

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

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
        support::signal(self.child.id().expect("it runs"), "TERM");
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
            support::signal(pid, "TERM");
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
    let config = json!({"etcd": {"endpoints": [etcd.endpoint()]}, "services": {"chat": {}}});
    let mut gateway = Gateway::start(&config).await;
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
