//! Services friendly and hostile, and the program itself.

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Etcd, free_port, status, wait_until};
use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{Connection, Connector};
use ipconfig::model::{InstanceReport, Report, Status};
use ipconfig::wire::{decode_batch, proto};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::server::TcpIncoming;

pub const INTERVAL: Duration = Duration::from_millis(200);
pub const TIMEOUT: Duration = Duration::from_millis(100);
pub const LEASE_TTL: Duration = Duration::from_secs(2);
/// Longer than anything here takes, even on a machine that has other things to do.
pub const PATIENCE: Duration = Duration::from_secs(15);

pub const STATUS_KEY: &str = "/ipconfig/v1/status/exporter-1/chat/0";

/// What a service does when it is asked.
#[derive(Clone, Copy)]
pub enum Manner {
    Answers,
    Never,
    /// Only when it is asked once more.
    SecondTry,
    Late(Duration),
    /// With a CPU that is not a number.
    NotANumber,
    Unimplemented,
}

/// A `StatusService` in this process.
pub struct Service {
    manner: Mutex<Manner>,
    pub asked: AtomicU64,
    pub requests: AtomicU64,
}

impl Service {
    pub async fn start(manner: Manner) -> (Arc<Self>, SocketAddr) {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), manner).await
    }

    pub async fn start_at(addr: SocketAddr, manner: Manner) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = Arc::new(Self {
            manner: Mutex::new(manner),
            asked: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        tokio::spawn(status::serve(Arc::clone(&service), TcpIncoming::from(listener)));
        (service, addr)
    }

    pub fn turn(&self, manner: Manner) {
        *self.manner.lock() = manner;
    }
}

impl status::Source for Service {
    async fn status(&self, _: Option<SocketAddr>) -> Result<proto::Status, tonic::Status> {
        let seq = 1 + self.asked.fetch_add(1, Ordering::Relaxed);
        let requests = self.requests.load(Ordering::Relaxed);
        let mut status = proto::Status {
            boot_id: 7,
            seq,
            requests,
            latency_sum_ns: 1_500_000_000,
            cpu_used_cores: Some(0.5),
            in_flight: Some(3),
            ..Default::default()
        };
        let manner = *self.manner.lock();
        match manner {
            Manner::Answers => {}
            Manner::Late(after) => sleep(after).await,
            Manner::SecondTry if seq.is_multiple_of(2) => {}
            Manner::Never | Manner::SecondTry => std::future::pending().await,
            Manner::NotANumber => status.cpu_used_cores = Some(f64::NAN),
            Manner::Unimplemented => return Err(tonic::Status::unimplemented("not here")),
        }
        Ok(status)
    }
}

/// A peer that answers whatever it is asked with bytes that are no HTTP/2, and
/// hangs up.
pub async fn start_garbage() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut peer, _) = listener.accept().await.unwrap();
            _ = peer.write_all(&[0xff; 100]).await;
        }
    });
    addr
}

/// A peer that takes connections, reads nothing and says nothing.
pub async fn start_mute() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            taken.push(listener.accept().await.unwrap());
        }
    });
    addr
}

/// A configuration of the service `chat` with an instance for each status
/// address: `chat-1`, `chat-2` and so on.
pub fn config(etcd: &str, statuses: &[SocketAddr]) -> Value {
    let instance = |(index, status): (usize, &SocketAddr)| {
        json!({
            "id": format!("chat-{}", index + 1),
            "addr": format!("127.0.0.1:{}", 9001 + index),
            "status": format!("grpc://{status}"),
        })
    };
    let instances: Vec<Value> = statuses.iter().enumerate().map(instance).collect();
    json!({
        "etcd": { "endpoints": [etcd] },
        "services": { "chat": { "instances": instances } },
        "exporter": {
            "interval": format!("{}ms", INTERVAL.as_millis()),
            "timeout": format!("{}ms", TIMEOUT.as_millis()),
            "retries": 1,
            "lease_ttl": format!("{}s", LEASE_TTL.as_secs()),
            // What is as it was is written too, unless a test is about that.
            "deadband": 0,
            "listen": format!("127.0.0.1:{}", free_port()),
        },
    })
}

/// The program, killed when dropped.
pub struct Exporter {
    child: Child,
    pub listen: String,
    pub log: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Exporter {
    pub fn start(config: &Value) -> Self {
        Self::start_with(config, &[])
    }

    pub fn start_with(config: &Value, arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipconfig.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let log = dir.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"))
            .arg("--config")
            .arg(&path)
            .args(arguments)
            .env("RUST_LOG", "info")
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let listen = config["exporter"]["listen"].as_str().unwrap().to_owned();
        Self { child, listen, log, _dir: dir }
    }

    pub async fn signal(&self, name: &str) {
        // A command, since the system call would need unsafe code.
        let pid = self.child.id().expect("it runs").to_string();
        let kill = ["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid];
        assert!(Command::new("sh").args(kill).status().await.unwrap().success());
    }

    /// Waits for the end; the code and how long it took.
    pub async fn end(&mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
        (status.code(), begun.elapsed())
    }

    /// The status code and the text of a page.
    pub async fn page(&self, path: &str) -> (u16, String) {
        let mut server = TcpStream::connect(&self.listen).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        server.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        server.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer)
    }

    /// The value of a counter or gauge of the metrics page, without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.page("/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in\n{page}")).parse().unwrap()
    }
}

/// Runs the program to its end, for what must not start.
pub async fn run(arguments: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"))
        .args(arguments)
        .env_remove("IPCONFIG_CONFIG")
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, run).await.expect("it does not end").unwrap()
}

pub async fn connect(etcd: &Etcd) -> Connection {
    let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..EtcdConfig::default() };
    Connector::new(&config).connect().await.unwrap()
}

pub async fn exists(etcd: &Connection, key: &str) -> bool {
    etcd.get(key).await.unwrap().is_some()
}

/// The reports in a status key; `None` while there is no such key.
pub async fn reports(etcd: &Connection, key: &str) -> Option<Vec<InstanceReport>> {
    let record = etcd.get(key).await.unwrap()?;
    let batch = decode_batch(&record.value).unwrap();
    assert!(batch.bad.is_empty(), "the exporter wrote {:?}", batch.bad);
    Some(batch.reports)
}

/// The statuses in etcd; none while there is no key.
pub async fn statuses(etcd: &Connection) -> Option<Vec<(String, Status)>> {
    let status = |it: InstanceReport| match it.report {
        Report::Status(status) => Some((it.id, status)),
        _ => None,
    };
    Some(reports(etcd, STATUS_KEY).await?.into_iter().filter_map(status).collect())
}

/// Waits until the status of `chat-1` is in etcd.
pub async fn first_status(etcd: &Connection) -> Status {
    let mut first = None;
    wait_until("a status of chat-1 in etcd", PATIENCE, async || {
        let statuses = statuses(etcd).await.unwrap_or_default();
        first = statuses.into_iter().find(|(id, _)| id == "chat-1");
        first.is_some()
    })
    .await;
    first.expect("it is there").1
}

/// Everything that the exporter writes for one instance.
pub fn keys() -> [&'static str; 3] {
    [STATUS_KEY, "/ipconfig/v1/instances/chat/chat-1", "/ipconfig/v1/exporters/exporter-1"]
}
