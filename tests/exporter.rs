//! The exporter as it runs: the real program, a real etcd, and real
//! `StatusService`s, friendly and hostile.

mod support;

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{Connection, Connector};
use ipconfig::model::{InstanceReport, Report, Status};
use ipconfig::wire::proto::status_service_server::{StatusService, StatusServiceServer};
use ipconfig::wire::{decode_batch, proto};
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{Etcd, free_port, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::server::TcpIncoming;

const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(100);
const LEASE_TTL: Duration = Duration::from_secs(2);
/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(15);

const STATUS_KEY: &str = "/ipconfig/v1/status/exporter-1/chat/0";

// ------------------------------------------------------------------ the parts

/// What a service does when it is asked.
#[derive(Clone, Copy)]
enum Manner {
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
struct Service {
    manner: Mutex<Manner>,
    asked: AtomicU64,
    requests: AtomicU64,
}

/// The service for a server to own.
struct Served(Arc<Service>);

impl Service {
    async fn start(manner: Manner) -> (Arc<Self>, SocketAddr) {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), manner).await
    }

    async fn start_at(addr: SocketAddr, manner: Manner) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let service = Arc::new(Self {
            manner: Mutex::new(manner),
            asked: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let server = tonic::transport::Server::builder()
            .add_service(StatusServiceServer::new(Served(Arc::clone(&service))))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        (service, addr)
    }

    fn turn(&self, manner: Manner) {
        *self.manner.lock() = manner;
    }
}

#[tonic::async_trait]
impl StatusService for Served {
    type WatchStatusStream = tokio_stream::Empty<Result<proto::WatchStatusResponse, tonic::Status>>;

    async fn watch_status(
        &self,
        _request: tonic::Request<proto::WatchStatusRequest>,
    ) -> Result<tonic::Response<Self::WatchStatusStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("no stream"))
    }

    async fn get_status(
        &self,
        _request: tonic::Request<proto::GetStatusRequest>,
    ) -> Result<tonic::Response<proto::GetStatusResponse>, tonic::Status> {
        let Self(service) = self;
        let seq = 1 + service.asked.fetch_add(1, Ordering::Relaxed);
        let requests = service.requests.load(Ordering::Relaxed);
        let mut status = proto::Status {
            boot_id: 7,
            seq,
            requests,
            latency_sum_ns: 1_500_000_000,
            cpu_used_cores: Some(0.5),
            in_flight: Some(3),
            ..Default::default()
        };
        let manner = *service.manner.lock();
        match manner {
            Manner::Answers => {}
            Manner::Late(after) => sleep(after).await,
            Manner::SecondTry if seq % 2 == 0 => {}
            Manner::Never | Manner::SecondTry => std::future::pending().await,
            Manner::NotANumber => status.cpu_used_cores = Some(f64::NAN),
            Manner::Unimplemented => return Err(tonic::Status::unimplemented("not here")),
        }
        Ok(tonic::Response::new(proto::GetStatusResponse { status: Some(status) }))
    }
}

/// A peer that answers whatever it is asked with bytes that are no HTTP/2, and
/// hangs up.
async fn start_garbage() -> SocketAddr {
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
async fn start_mute() -> SocketAddr {
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
fn config(etcd: &str, statuses: &[SocketAddr]) -> Value {
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
            "listen": format!("127.0.0.1:{}", free_port()),
        },
    })
}

/// The program, killed when dropped.
struct Exporter {
    child: Child,
    listen: String,
    _dir: tempfile::TempDir,
}

impl Exporter {
    fn start(config: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ipconfig.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"))
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "error")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let listen = config["exporter"]["listen"].as_str().unwrap().to_owned();
        Self { child, listen, _dir: dir }
    }

    async fn signal(&self, name: &str) {
        // A command, since the system call would need unsafe code.
        let pid = self.child.id().expect("it runs").to_string();
        let kill = ["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid];
        assert!(Command::new("sh").args(kill).status().await.unwrap().success());
    }

    /// Waits for the end; the code and how long it took.
    async fn end(&mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
        (status.code(), begun.elapsed())
    }

    /// The status code and the text of a page.
    async fn page(&self, path: &str) -> (u16, String) {
        let mut server = TcpStream::connect(&self.listen).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        server.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        server.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer)
    }

    /// The value of a counter or gauge of the metrics page, without labels.
    async fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.page("/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is not in\n{page}")).parse().unwrap()
    }
}

/// Runs the program to its end, for what must not start.
async fn run(arguments: &[&str]) -> Output {
    let run = Command::new(env!("CARGO_BIN_EXE_ipconfig-exporter"))
        .args(arguments)
        .env_remove("IPCONFIG_CONFIG")
        .kill_on_drop(true)
        .output();
    timeout(PATIENCE, run).await.expect("it does not end").unwrap()
}

async fn connect(etcd: &Etcd) -> Connection {
    let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..EtcdConfig::default() };
    Connector::new(&config).connect().await.unwrap()
}

async fn exists(etcd: &Connection, key: &str) -> bool {
    etcd.get(key).await.unwrap().is_some()
}

/// The statuses in etcd; none while there is no key.
async fn statuses(etcd: &Connection) -> Option<Vec<(String, Status)>> {
    let record = etcd.get(STATUS_KEY).await.unwrap()?;
    let batch = decode_batch(&record.value).unwrap();
    assert!(batch.bad.is_empty(), "the exporter wrote {:?}", batch.bad);
    let status = |it: InstanceReport| match it.report {
        Report::Status(status) => Some((it.id, status)),
        _ => None,
    };
    Some(batch.reports.into_iter().filter_map(status).collect())
}

/// Waits until the status of `chat-1` is in etcd.
async fn first_status(etcd: &Connection) -> Status {
    let mut first = None;
    wait_until("a status of chat-1 in etcd", PATIENCE, async || {
        let statuses = statuses(etcd).await.unwrap_or_default();
        first = statuses.into_iter().find(|(id, _)| id == "chat-1");
        first.is_some()
    })
    .await;
    first.expect("it is there").1
}

// ------------------------------------------------------------- what must happen

#[tokio::test]
async fn a_status_is_in_etcd_within_two_intervals_of_a_change() {
    let etcd = Etcd::start().await;
    let (service, addr) = Service::start(Manner::Answers).await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    first_status(&etcd).await;

    for requests in [1000, 2000, 3000] {
        service.requests.store(requests, Ordering::Relaxed);
        let changed = Instant::now();
        while first_status(&etcd).await.requests != requests {
            assert!(changed.elapsed() < PATIENCE, "the change is never seen");
        }
        assert!(changed.elapsed() < 2 * INTERVAL, "it took {:?}", changed.elapsed());
    }
    let (id, status) = statuses(&etcd).await.unwrap().remove(0);
    assert_eq!(id, "chat-1");
    assert_eq!((status.boot_id, status.in_flight), (7, Some(3)));
    assert_eq!(status.cpu_limit_cores, None, "what the service does not tell stays unknown");
}

#[tokio::test]
async fn hostile_instances_are_not_put_and_delay_nobody() {
    let etcd = Etcd::start().await;
    let (well, well_addr) = Service::start(Manner::Answers).await;
    let statuses_at = [
        well_addr,
        Service::start(Manner::Never).await.1,
        Service::start(Manner::Late(INTERVAL * 3)).await.1,
        Service::start(Manner::NotANumber).await.1,
        Service::start(Manner::Unimplemented).await.1,
        start_garbage().await,
        start_mute().await,
        SocketAddr::from(([127, 0, 0, 1], free_port())),
    ];
    let exporter = Exporter::start(&config(&etcd.endpoint(), &statuses_at));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    let asked = well.asked.load(Ordering::Relaxed);
    let mut seen = std::collections::BTreeSet::new();
    let end = Instant::now() + 10 * INTERVAL;
    while Instant::now() < end {
        let statuses = statuses(&connection).await.unwrap();
        let ids: Vec<&str> = statuses.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["chat-1"]);
        let status = &statuses[0].1;
        assert!(status.age < TIMEOUT * 3 / 2, "it waited {:?} for the others", status.age);
        seen.insert(status.seq);
        sleep(Duration::from_millis(5)).await;
    }
    let asked = well.asked.load(Ordering::Relaxed) - asked;
    assert!((8..=12).contains(&asked), "asked {asked} times in 10 intervals");
    assert!(seen.len() >= 8, "written {} times in 10 intervals", seen.len());

    let (_, page) = exporter.page("/metrics").await;
    for id in 2..=8 {
        let line = format!("instance_up{{service=\"chat\",instance=\"chat-{id}\"}} 0.0");
        assert!(page.contains(&line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn who_answers_only_a_later_try_is_put_with_the_next_batch() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::SecondTry).await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    first_status(&etcd).await;

    let end = Instant::now() + 10 * INTERVAL;
    while Instant::now() < end {
        let statuses = statuses(&etcd).await.unwrap();
        assert_eq!(statuses.len(), 1, "a batch went out without it");
        let age = statuses[0].1.age;
        assert!((TIMEOUT / 2..2 * INTERVAL).contains(&age), "it waited {age:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_instance_is_put_while_it_answers_and_not_while_it_is_silent() {
    let etcd = Etcd::start().await;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    let empty = async || {
        wait_until("an empty batch", PATIENCE, async || {
            statuses(&etcd).await.is_some_and(|statuses| statuses.is_empty())
        })
        .await;
    };
    empty().await;
    let (service, _) = Service::start_at(addr, Manner::Answers).await;
    first_status(&etcd).await;
    service.turn(Manner::Never);
    empty().await;
    service.turn(Manner::Answers);
    first_status(&etcd).await;
}

#[tokio::test]
async fn instances_are_registered_as_configured_and_the_exporter_announces_itself() {
    let etcd = Etcd::start().await;
    let mut config = config(&etcd.endpoint(), &[]);
    config["services"]["chat"]["instances"] = json!([
        { "id": "full", "addr": "127.0.0.1:9001", "weight": 2.5, "zone": "a",
          "labels": { "version": "1.4" }, "status": "grpc://127.0.0.1:1", "drain": true },
        { "id": "plain", "addr": "[::1]:9002" },
    ]);
    let exporter = Exporter::start(&config);
    let etcd = connect(&etcd).await;
    let read = async |key: &str| {
        wait_until(key, PATIENCE, async || exists(&etcd, key).await).await;
        let record = etcd.get(key).await.unwrap().unwrap();
        serde_json::from_slice::<Value>(&record.value).unwrap()
    };
    assert_eq!(
        read("/ipconfig/v1/instances/chat/full").await,
        json!({ "addr": "127.0.0.1:9001", "weight": 2.5, "zone": "a",
                "labels": { "version": "1.4" }, "status": "grpc://127.0.0.1:1", "drain": true })
    );
    assert_eq!(
        read("/ipconfig/v1/instances/chat/plain").await,
        json!({ "addr": "[::1]:9002", "weight": 1.0, "drain": false })
    );
    let announcement = read("/ipconfig/v1/exporters/exporter-1").await;
    assert_eq!(announcement["listen"], json!(exporter.listen));
    assert_eq!(announcement["interval_ms"], json!(200));
}

#[tokio::test]
async fn the_metrics_page_has_every_series_and_healthz_says_well() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    first_status(&connect(&etcd).await).await;

    let (code, page) = exporter.page("/metrics").await;
    assert_eq!(code, 200);
    assert!(page.contains("application/openmetrics-text"), "{page}");
    for line in [
        r#"ipconfig_exporter_instance_up{service="chat",instance="chat-1"} 1.0"#,
        r#"ipconfig_exporter_instance_in_flight{service="chat",instance="chat-1"} 3.0"#,
        r#"ipconfig_exporter_instance_cpu_used_cores{service="chat",instance="chat-1"} 0.5"#,
        r#"ipconfig_exporter_instance_latency_sum_seconds{service="chat",instance="chat-1"} 1.5"#,
        r#"ipconfig_exporter_collect_tries_total{service="chat"}"#,
        r#"ipconfig_exporter_collect_failures_total{service="chat"} 0"#,
        "ipconfig_exporter_etcd_put_failures_total 0",
        "ipconfig_exporter_lease_grants_total 1",
        "ipconfig_exporter_ticks_skipped_total",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("instance_queue{"), "a gauge that it does not tell: {page}");
    assert!(exporter.metric("ipconfig_exporter_etcd_puts_total").await >= 3.0);
    assert!(exporter.metric("ipconfig_exporter_etcd_put_bytes_total").await > 100.0);

    let (code, body) = exporter.page("/healthz").await;
    assert_eq!(code, 200, "{body}");
    assert!(body.contains(r#""ready":true"#), "{body}");
    assert_eq!(exporter.page("/elsewhere").await.0, 404);
}

// -------------------------------------------------------------------- the end

#[tokio::test]
async fn sigterm_and_sigint_remove_every_key_at_once_and_end_with_0() {
    for name in ["TERM", "INT"] {
        let etcd = Etcd::start().await;
        let (_, addr) = Service::start(Manner::Answers).await;
        let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
        let etcd = connect(&etcd).await;
        first_status(&etcd).await;

        exporter.signal(name).await;
        let (code, took) = exporter.end().await;
        assert_eq!(code, Some(0), "after SIG{name}");
        assert!(took < Duration::from_secs(1), "it took {took:?}");
        for key in keys() {
            assert!(!exists(&etcd, key).await, "{key} is still there");
        }
    }
}

/// Everything that the exporter writes for one instance.
fn keys() -> [&'static str; 3] {
    [STATUS_KEY, "/ipconfig/v1/instances/chat/chat-1", "/ipconfig/v1/exporters/exporter-1"]
}

#[tokio::test]
async fn it_ends_with_0_within_2_s_also_while_etcd_is_dead_or_frozen() {
    for frozen in [false, true] {
        let mut etcd = Etcd::start().await;
        let (_, addr) = Service::start(Manner::Answers).await;
        let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
        first_status(&connect(&etcd).await).await;
        match frozen {
            true => etcd.pause(),
            false => etcd.kill(),
        }
        sleep(2 * INTERVAL).await;

        exporter.signal("TERM").await;
        let (code, took) = exporter.end().await;
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(2), "it took {took:?}");
    }
}

#[tokio::test]
async fn the_keys_of_a_killed_exporter_go_when_its_lease_ends_and_not_before() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    first_status(&etcd).await;
    sleep(2 * LEASE_TTL).await;
    let grants = exporter.metric("ipconfig_exporter_lease_grants_total").await;
    assert_eq!(grants, 1.0, "the lease was not kept alive");

    exporter.signal("KILL").await;
    exporter.end().await;
    for key in keys() {
        assert!(exists(&etcd, key).await, "{key} went before the lease ended");
    }
    for key in keys() {
        wait_until("the end of the lease", PATIENCE, async || !exists(&etcd, key).await).await;
    }
}

// ---------------------------------------------------------------- etcd's faults

#[tokio::test]
async fn everything_is_written_again_after_etcd_lost_its_data() {
    let mut etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    first_status(&connect(&etcd).await).await;

    etcd.wipe();
    wait_until("503", PATIENCE, async || exporter.page("/healthz").await.0 == 503).await;
    let (_, body) = exporter.page("/healthz").await;
    assert!(body.contains("etcd was last written") && body.contains("failed to"), "{body}");

    etcd.restart().await;
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    for key in keys() {
        assert!(exists(&connection, key).await, "{key} did not come back");
    }
    assert_eq!(exporter.metric("ipconfig_exporter_lease_grants_total").await, 2.0);
    wait_until("200", PATIENCE, async || exporter.page("/healthz").await.0 == 200).await;
}

#[tokio::test]
async fn everything_is_written_again_after_the_lease_was_lost() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    let leases = etcd.ctl(&["lease", "list"]);
    etcd.ctl(&["lease", "revoke", leases.lines().last().unwrap()]);
    for key in keys() {
        wait_until(key, PATIENCE, async || exists(&connection, key).await).await;
    }
    assert_eq!(exporter.metric("ipconfig_exporter_lease_grants_total").await, 2.0);
}

#[tokio::test]
async fn a_lease_that_outlives_a_restart_of_etcd_is_kept() {
    let mut etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    first_status(&connect(&etcd).await).await;

    etcd.kill();
    etcd.restart().await;
    let before = exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    wait_until("a put", PATIENCE, async || {
        exporter.metric("ipconfig_exporter_etcd_puts_total").await > before
    })
    .await;
    assert_eq!(exporter.metric("ipconfig_exporter_lease_grants_total").await, 1.0);
}

#[tokio::test]
async fn ticks_are_skipped_and_not_queued_while_etcd_is_slow() {
    let etcd = Etcd::start().await;
    let (service, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    etcd.pause();
    let asked = service.asked.load(Ordering::Relaxed);
    sleep(6 * INTERVAL).await;
    let asked = service.asked.load(Ordering::Relaxed) - asked;
    assert!(asked >= 4, "asked {asked} times in 6 intervals: instances wait for etcd");
    let puts = exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    etcd.resume();

    let current = service.asked.load(Ordering::Relaxed);
    wait_until("a current status", PATIENCE, async || {
        first_status(&connection).await.seq >= current
    })
    .await;
    assert!(exporter.metric("ipconfig_exporter_ticks_skipped_total").await >= 3.0);
    let puts = exporter.metric("ipconfig_exporter_etcd_puts_total").await - puts;
    assert!(puts <= 4.0, "{puts} puts when etcd was back: ticks were queued");
}

#[tokio::test]
async fn an_exporter_that_starts_before_etcd_waits_for_it() {
    let mut etcd = Etcd::start().await;
    etcd.kill();
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    wait_until("its pages", PATIENCE, async || TcpStream::connect(&exporter.listen).await.is_ok())
        .await;
    let (code, body) = exporter.page("/healthz").await;
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("etcd has not been written yet"), "{body}");

    etcd.restart().await;
    first_status(&connect(&etcd).await).await;
}

// --------------------------------------------------------- what must not start

#[tokio::test]
async fn wrong_arguments_and_refused_configurations_end_with_64_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let base = config("http://127.0.0.1:1", &[]);
    let with_status = |url: &str| {
        let mut config = base.clone();
        config["services"]["chat"]["instances"] =
            json!([{ "id": "chat-1", "addr": "127.0.0.1:9001", "status": url }]);
        config.to_string()
    };
    let orca = file("orca", with_status("orca://127.0.0.1:9101"));
    let health = file("health", with_status("health://127.0.0.1:9101"));
    let broken = file("broken", "{".into());
    let long = file("long", {
        let mut config = base.clone();
        config["exporter"]["timeout"] = json!("1s");
        config.to_string()
    });
    for (arguments, says) in [
        (vec!["--unheard-of"], "--unheard-of"),
        (vec!["--config", "/nowhere/ipconfig.json"], "/nowhere/ipconfig.json"),
        (vec!["--config", &broken], "JSON"),
        (vec!["--config", &long], "exporter.timeout"),
        (vec!["--config", &orca], "orca://127.0.0.1:9101, but this version asks grpc:// only"),
        (vec!["--config", &health], "this version asks grpc:// only"),
    ] {
        let output = run(&arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
    assert_eq!(run(&["--help"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_listen_address_in_use_ends_with_1_and_writes_nothing() {
    let etcd = Etcd::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let mut config = config(&etcd.endpoint(), &[SocketAddr::from(([127, 0, 0, 1], 1))]);
    config["exporter"]["listen"] = json!(listen);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ipconfig.json");
    std::fs::write(&path, config.to_string()).unwrap();

    let output = run(&["--config", path.to_str().unwrap()]).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&listen) && stderr.contains("in use"), "{stderr}");
    let etcd = connect(&etcd).await;
    for key in keys() {
        assert!(!exists(&etcd, key).await, "{key} was written");
    }
}
