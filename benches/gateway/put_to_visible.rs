//! How long after a put into etcd the gateway routes by it, beside a bare watch
//! that receives the same put.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use etcd_client::Client;
use ipconfig::config::EtcdConfig;
use ipconfig::wire::Key;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::http;
use crate::nginx::{self, Nginx};
use crate::support::{Etcd, free_ports};
use crate::table::{Table, micros, percentile, print_goal};

const PUTS: usize = 500;
const SERVICE: &str = "moving";

/// Between two puts, at random, so that no timer of the gateway keeps step.
const PAUSE_MS: std::ops::Range<u64> = 5..25;

/// A put that is not seen by then is lost.
const LOST: Duration = Duration::from_secs(10);

const GOAL_MS: f64 = 10.0;

/// What one put took, both from just before its call.
struct Put {
    visible: Duration,
    watched: Duration,
}

pub async fn run(etcd: &Etcd) {
    let backends: [u16; 2] = free_ports();
    let [port] = free_ports();
    let _backends = Nginx::start(None, &backends_http(backends)).await;
    let dir = TempDir::with_prefix("ipconfig-bench-").expect("a temporary directory");
    let config = dir.path().join("ipconfig.json");
    fs::write(&config, gateway_config(etcd)).expect("a file in the directory");
    let _gateway = Nginx::start(None, &gateway_http(port, &config)).await;

    let mut client = Client::connect([etcd.endpoint()], None).await.expect("etcd answers");
    let key = Key::Instance { service: SERVICE.into(), id: "one".into() };
    let key = key.to_path(&EtcdConfig::default().prefix);
    let value_for = |backend: u16| format!(r#"{{"addr":"127.0.0.1:{backend}"}}"#);
    client.put(key.clone(), value_for(backends[0]), None).await.expect("a put");
    nginx::wait_until_live(port, SERVICE, 1).await;

    let mut watched = watch(etcd.endpoint(), key.clone()).await;
    let mut poller = Poller::start(port, backends[0]);
    let mut rng = SmallRng::seed_from_u64(1);
    let mut puts = Vec::with_capacity(PUTS);
    for put in 1..=PUTS {
        sleep(Duration::from_millis(rng.random_range(PAUSE_MS))).await;
        let backend = backends[put % 2];
        let value = value_for(backend);
        let start = Instant::now();
        client.put(key.clone(), value, None).await.expect("a put");
        let seen = async { (poller.changes.recv().await, watched.recv().await) };
        let (Some((answered_by, visible_at)), Some(watched_at)) =
            timeout(LOST, seen).await.expect("both see the put")
        else {
            panic!("the gateway or etcd went away");
        };
        assert_eq!(answered_by, backend, "the answer after put {put}");
        puts.push(Put { visible: visible_at - start, watched: watched_at - start });
    }
    print(&puts, &poller.stop());
}

fn print(puts: &[Put], round_trips_us: &[f64]) {
    println!("\n2. Put to visible: {PUTS} puts of an instance's address, a pause of");
    println!("   {PAUSE_MS:?} ms before each; from just before the put's call.");
    let mut table = Table::new(&["", "p50", "p99", "max"]);
    let mut row = |name: &str, figures: &[f64]| {
        let percents = [50.0, 99.0, 100.0];
        let cells = percents.map(|percent| format!("{:.2} ms", percentile(figures, percent) / 1e3));
        table.row([vec![name.to_owned()], cells.to_vec()].concat());
    };
    let figures = |of: fn(&Put) -> f64| puts.iter().map(of).collect::<Vec<_>>();
    let visible = figures(|put| micros(put.visible));
    let watched = figures(|put| micros(put.watched));
    row("answered by the new address", &visible);
    row("received by a bare watch", &watched);
    row(
        "the one less the other, of each put",
        &figures(|put| micros(put.visible) - micros(put.watched)),
    );
    row("one request, polled back to back", round_trips_us);
    table.print();
    println!(
        "  \"answered\" is when a whole answer was there, and the requests follow each other on"
    );
    println!("  one connection: it holds one to two of the requests in the last line.");
    let difference_ms = (percentile(&visible, 99.0) - percentile(&watched, 99.0)) / 1e3;
    print_goal(
        difference_ms <= GOAL_MS,
        &format!("at most {GOAL_MS} ms between the two p99"),
        &format!("{difference_ms:.2} ms"),
    );
}

/// The times at which a watch receives the puts of a key, on a thread of its own;
/// returns when the watch stands.
async fn watch(endpoint: String, key: String) -> mpsc::UnboundedReceiver<Instant> {
    let (sender, received) = mpsc::unbounded_channel();
    let (stands, is_standing) = oneshot::channel();
    let follow = async move {
        let mut client = Client::connect([endpoint], None).await.expect("etcd answers");
        let mut watch = client.watch(key, None).await.expect("a watch");
        let created = watch.message().await.expect("etcd answers").expect("an answer");
        assert!(created.created(), "the first message confirms the watch");
        stands.send(()).expect("somebody waits for the watch");
        while let Ok(Some(message)) = watch.message().await {
            let now = Instant::now();
            // The receiver goes when all puts are done.
            if message.events().iter().any(|_| sender.send(now).is_err()) {
                return;
            }
        }
    };
    thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(follow);
    });
    is_standing.await.expect("the watch stands");
    received
}

/// Requests back to back over one connection, on a thread of its own.
struct Poller {
    /// The backend that answers from now on, and when its first answer was there.
    changes: mpsc::UnboundedReceiver<(u16, Instant)>,
    is_stopped: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<f64>>,
}

impl Poller {
    fn start(port: u16, mut backend: u16) -> Self {
        let (sender, changes) = mpsc::unbounded_channel();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&is_stopped);
        let poll = move || {
            let mut client = http::Client::connect(port).expect("the gateway answers");
            let mut round_trips_us = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let asked_at = Instant::now();
                let answer = client.get("/").expect("an answer with 200");
                let answered_at = Instant::now();
                round_trips_us.push(micros(answered_at - asked_at));
                let answered_by = answer.parse().expect("a backend answers with its port");
                if answered_by != backend {
                    backend = answered_by;
                    // The receiver goes with a bench that fails.
                    let _ = sender.send((backend, answered_at));
                }
            }
            round_trips_us
        };
        Poller { changes, is_stopped, thread: thread::spawn(poll) }
    }

    /// What each request took, in microseconds.
    fn stop(self) -> Vec<f64> {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("the poller saw no failed request")
    }
}

fn backends_http(ports: [u16; 2]) -> String {
    let server = |port| {
        format!("    server {{ listen 127.0.0.1:{port}; location / {{ return 200 {port}; }} }}\n")
    };
    ports.map(server).concat()
}

fn gateway_config(etcd: &Etcd) -> String {
    json!({ "etcd": { "endpoints": [etcd.endpoint()] }, "services": { SERVICE: {} } }).to_string()
}

fn gateway_http(port: u16, config: &Path) -> String {
    let repository = env!("CARGO_MANIFEST_DIR");
    let gateway = nginx::gateway_http(config);
    format!(
        r#"
{gateway}
    server {{
        listen 127.0.0.1:{port};
        include {repository}/nginx/ipconfig_api.conf;
        location = / {{
            set $ipconfig_service {SERVICE};
            proxy_pass http://ipconfig;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            log_by_lua_block {{ require("resty.ipconfig").log() }}
        }}
    }}
"#
    )
}
