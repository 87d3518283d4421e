//! A small HTTP service that tells how it is: the pattern to copy for a
//! `StatusService` of one's own.
//!
//! ```text
//! cargo run --example demo_service -- --id chat-1 --http 127.0.0.1:9001 --status 127.0.0.1:9101
//! curl -i 'http://127.0.0.1:9001/'
//! curl 'http://127.0.0.1:9001/knob?delay_ms=200&fail_percent=10'
//! ```
//!
//! What a service of one's own needs of it is [`Traffic`], which counts
//! requests, [`Host`], which reads CPU and memory, and [`Reporter`], which
//! answers the exporter with both.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Parser;
use ipconfig::wire::proto;
use ipconfig::wire::proto::status_service_server::{StatusService, StatusServiceServer};
use parking_lot::Mutex;
use rand::rngs::{SmallRng, SysRng};
use rand::{Rng, RngExt, SeedableRng, TryRng};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::server::TcpIncoming;

/// A demo service: answers HTTP slowly and says how it is over gRPC.
#[derive(Parser)]
struct Args {
    /// Name of this instance, sent back in the header X-Instance.
    #[arg(long)]
    id: String,
    /// Where HTTP requests are served.
    #[arg(long)]
    http: SocketAddr,
    /// Where the exporter asks for the status, over gRPC.
    #[arg(long)]
    status: SocketAddr,
    /// Mean time to serve a request, in milliseconds.
    #[arg(long, default_value = "10", value_parser = delay_ms)]
    delay_ms: f64,
    /// Requests served at once; the others wait.
    #[arg(long, default_value = "8")]
    slots: NonZero<usize>,
    /// Part of the requests answered with 503 at once.
    #[arg(long, default_value = "0", value_parser = percent)]
    fail_percent: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let http = TcpListener::bind(args.http).await?;
    let grpc = TcpListener::bind(args.status).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!(
        "demo_service {} serves http://{} and grpc://{}",
        args.id,
        http.local_addr()?,
        grpc.local_addr()?
    );

    let traffic = Arc::new(Traffic::default());
    let demo = Arc::new(Demo {
        id: args.id,
        slots: Semaphore::new(args.slots.get()),
        knobs: Mutex::new(Knobs { delay_ms: args.delay_ms, fail_percent: args.fail_percent }),
        chance: Mutex::new(SmallRng::try_from_rng(&mut SysRng)?),
        traffic: Arc::clone(&traffic),
    });
    let routes = axum::Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/knob", get(turn).post(turn))
        .fallback(work)
        .with_state(demo)
        .into_make_service_with_connect_info::<SocketAddr>();
    let reporter = StatusServiceServer::new(Reporter::new(traffic)?);

    let (stop, stopped) = watch::channel(());
    let http = axum::serve(http, routes).with_graceful_shutdown(closed(stopped.clone()));
    let grpc = tonic::transport::Server::builder()
        .add_service(reporter)
        .serve_with_incoming_shutdown(TcpIncoming::from(grpc), closed(stopped));
    let (http, grpc) = (tokio::spawn(http.into_future()), tokio::spawn(grpc));

    terminate.recv().await;
    drop(stop);
    // Long enough for the requests under way, short enough for an init system.
    let ended = async { tokio::try_join!(http, grpc) };
    if let Ok(ended) = timeout(Duration::from_secs(2), ended).await {
        let (http, grpc) = ended?;
        http?;
        grpc?;
    }
    Ok(())
}

/// Ends when the sender is gone.
async fn closed(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

// ---------------------------------------------------------------- the service

struct Demo {
    id: String,
    slots: Semaphore,
    knobs: Mutex<Knobs>,
    chance: Mutex<SmallRng>,
    traffic: Arc<Traffic>,
}

/// What `/knob` turns while the service runs.
#[derive(Clone, Copy)]
struct Knobs {
    delay_ms: f64,
    fail_percent: f64,
}

fn delay_ms(text: &str) -> Result<f64, String> {
    number_up_to(60_000.0, text)
}

fn percent(text: &str) -> Result<f64, String> {
    number_up_to(100.0, text)
}

fn number_up_to(max: f64, text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=max).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a number from 0 to {max}"))
}

/// Any other path: waits for a slot, then serves for a time drawn about the mean.
async fn work(State(demo): State<Arc<Demo>>) -> Response {
    let mut request = demo.traffic.arrive();
    let knobs = *demo.knobs.lock();
    let header = [("x-instance", demo.id.clone())];

    if demo.chance.lock().random_range(0.0..100.0) < knobs.fail_percent {
        request.answered(true);
        return (StatusCode::SERVICE_UNAVAILABLE, header, "failed on purpose\n").into_response();
    }
    let _slot = demo.slots.acquire().await.expect("the slots are never closed");
    request.serve();
    let busy = demo.draw_service_time(knobs.delay_ms);
    compute(busy / 10).await;
    sleep(busy * 9 / 10).await;
    request.answered(false);
    (header, format!("{}\n", demo.id)).into_response()
}

impl Demo {
    /// Exponential, which is what the service times of many small jobs look
    /// like, cut at ten times the mean.
    fn draw_service_time(&self, mean_ms: f64) -> Duration {
        let uniform: f64 = self.chance.lock().random_range(0.0..1.0);
        Duration::from_secs_f64(mean_ms / 1e3 * (-(1.0 - uniform).ln()).min(10.0))
    }
}

/// Keeps a core busy for so long, on another thread than the one that answers.
async fn compute(busy: Duration) {
    let spin = move || {
        let end = Instant::now() + busy;
        let mut numbers = SmallRng::seed_from_u64(0);
        while Instant::now() < end {
            std::hint::black_box((0..1000).fold(0, |sum: u64, _| sum ^ numbers.next_u64()));
        }
    };
    tokio::task::spawn_blocking(spin).await.expect("the computation does not panic");
}

/// `/knob?delay_ms=…&fail_percent=…`, from this host only.
async fn turn(
    State(demo): State<Arc<Demo>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> (StatusCode, String) {
    if !peer.ip().is_loopback() {
        return (StatusCode::FORBIDDEN, "knobs are turned from this host only\n".into());
    }
    let mut knobs = *demo.knobs.lock();
    for pair in query.as_deref().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let turned = match name {
            "delay_ms" => delay_ms(value).map(|ms| knobs.delay_ms = ms),
            "fail_percent" => percent(value).map(|percent| knobs.fail_percent = percent),
            _ => Err("there is no such knob".to_owned()),
        };
        if let Err(why) = turned {
            return (StatusCode::BAD_REQUEST, format!("{name}: {why}\n"));
        }
    }
    *demo.knobs.lock() = knobs;
    let Knobs { delay_ms, fail_percent } = knobs;
    (StatusCode::OK, format!("delay_ms={delay_ms} fail_percent={fail_percent}\n"))
}

// ----------------------------------------------------------- counting requests

/// What the service knows of its requests, kept up to date by each of them.
#[derive(Default)]
struct Traffic {
    counts: Mutex<Counts>,
}

#[derive(Default, Clone)]
struct Counts {
    requests: u64,
    errors: u64,
    latency_sum: Duration,
    /// Ended times with at least one request in flight.
    busy: Duration,
    /// Since when there has been one.
    busy_since: Option<Instant>,
    in_flight: u64,
    queue: u64,
}

impl Traffic {
    /// Counts a request as waiting, until it is served or dropped.
    fn arrive(self: &Arc<Self>) -> Request {
        self.counts.lock().queue += 1;
        Request { traffic: Arc::clone(self), arrived: Instant::now(), served: false }
    }
}

/// A request under way. Its drop takes it out of the gauges, so that a client
/// that hangs up leaves nothing behind.
struct Request {
    traffic: Arc<Traffic>,
    arrived: Instant,
    served: bool,
}

impl Request {
    /// The wait is over.
    fn serve(&mut self) {
        let mut counts = self.traffic.counts.lock();
        counts.queue -= 1;
        counts.in_flight += 1;
        counts.busy_since.get_or_insert_with(Instant::now);
        self.served = true;
    }

    fn answered(self, failed: bool) {
        let mut counts = self.traffic.counts.lock();
        counts.requests += 1;
        counts.errors += u64::from(failed);
        counts.latency_sum += self.arrived.elapsed();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut counts = self.traffic.counts.lock();
        if !self.served {
            counts.queue -= 1;
            return;
        }
        counts.in_flight -= 1;
        if counts.in_flight == 0 {
            let since = counts.busy_since.take().expect("a request in flight began busy time");
            counts.busy += since.elapsed();
        }
    }
}

// ---------------------------------------------------------- CPU and memory

/// Reads the process's own use of the host, from /proc.
struct Host {
    /// The last reading, and when it was taken.
    cpu_seconds: f64,
    read_at: Instant,
    cpu_used_cores: Option<f64>,
}

impl Host {
    /// The kernel counts in ticks of 10 ms, so that a shorter time says little.
    const CPU_PERIOD: Duration = Duration::from_millis(500);

    fn new() -> Self {
        let cpu_seconds = cpu_seconds().unwrap_or_default();
        Self { cpu_seconds, read_at: Instant::now(), cpu_used_cores: None }
    }

    /// The mean over the last period, in cores; `None` before the first is over.
    fn cpu_used_cores(&mut self) -> Option<f64> {
        let elapsed = self.read_at.elapsed();
        if elapsed >= Self::CPU_PERIOD {
            let before = std::mem::replace(&mut self.cpu_seconds, cpu_seconds()?);
            self.cpu_used_cores =
                Some((self.cpu_seconds - before).max(0.0) / elapsed.as_secs_f64());
            self.read_at = Instant::now();
        }
        self.cpu_used_cores
    }
}

/// User and system time of the process: fields 14 and 15 of proc(5)'s stat, in
/// ticks of which Linux has 100 a second on every platform.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in field 2 may hold spaces; its parenthesis closes before field 3.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(14 - 3);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / 100.0)
}

fn memory_used_bytes() -> Option<u64> {
    kib_line("/proc/self/status", "VmRSS:")
}

/// The cgroup's limit (version 2), or all of the host's memory.
fn memory_limit_bytes() -> Option<u64> {
    let cgroup = || {
        let path = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = path.lines().find_map(|line| line.strip_prefix("0::"))?;
        fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max")).ok()?.trim().parse().ok()
    };
    let host = kib_line("/proc/meminfo", "MemTotal:");
    cgroup().into_iter().chain(host).min()
}

/// The number of a line like `MemTotal:  24590020 kB`, in bytes.
fn kib_line(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()? * 1024)
}

// ------------------------------------------------------------------ the status

/// Answers the exporter.
struct Reporter {
    traffic: Arc<Traffic>,
    boot_id: u64,
    /// The host's figures and the last status's number.
    last: Mutex<(Host, u64)>,
}

impl Reporter {
    fn new(traffic: Arc<Traffic>) -> Result<Self, Box<dyn std::error::Error>> {
        // 0 stands for none.
        let boot_id = SysRng.try_next_u64()?.max(1);
        Ok(Self { traffic, boot_id, last: Mutex::new((Host::new(), 0)) })
    }
}

#[tonic::async_trait]
impl StatusService for Reporter {
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
        let counts = self.traffic.counts.lock().clone();
        let busy = counts.busy + counts.busy_since.map_or(Duration::ZERO, |since| since.elapsed());
        let mut last = self.last.lock();
        let (host, seq) = &mut *last;
        *seq += 1;
        let status = proto::Status {
            boot_id: self.boot_id,
            seq: *seq,
            // The figures are read for this answer: they have no age.
            age: None,
            requests: counts.requests,
            errors: counts.errors,
            busy_ns: nanoseconds(busy),
            latency_sum_ns: nanoseconds(counts.latency_sum),
            cpu_used_cores: host.cpu_used_cores(),
            cpu_limit_cores: available_parallelism().ok().map(|cores| cores.get() as f64),
            memory_used_bytes: memory_used_bytes(),
            memory_limit_bytes: memory_limit_bytes(),
            in_flight: Some(counts.in_flight),
            queue: Some(counts.queue),
            // For a service that knows better than CPU and memory how full it is.
            application_utilization: None,
        };
        Ok(tonic::Response::new(proto::GetStatusResponse { status: Some(status) }))
    }
}

/// 2^64 ns are 584 years.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
