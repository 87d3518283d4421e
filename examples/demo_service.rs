//! A small HTTP service that tells how it is, with knobs to make it slow or fail.
//!
//! ```text
//! cargo run --example demo_service -- --id chat-1 --http 127.0.0.1:9001 --status 127.0.0.1:9101
//! curl -i 'http://127.0.0.1:9001/'
//! curl 'http://127.0.0.1:9001/knob?delay_ms=200&fail_percent=10'
//! ```
//!
//! What a service of one's own needs of it are the lines with `reporter`: its
//! layer counts requests, and it answers the exporter. [`work`] shows how requests
//! that wait are told from those that are served.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Parser;
use ipconfig::service::{Reporter, Traffic};
use parking_lot::Mutex;
use rand::rngs::{SmallRng, SysRng};
use rand::{Rng, RngExt, SeedableRng};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

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

    let reporter = Reporter::new()?;
    let demo = Arc::new(Demo {
        id: args.id,
        slots: Semaphore::new(args.slots.get()),
        knobs: Mutex::new(Knobs { delay_ms: args.delay_ms, fail_percent: args.fail_percent }),
        chance: Mutex::new(SmallRng::try_from_rng(&mut SysRng)?),
        traffic: Arc::clone(reporter.traffic()),
    });
    let routes = axum::Router::new()
        .fallback(work)
        // What comes after it is not counted: neither page is the service's work.
        .layer(reporter.layer())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/knob", get(turn).post(turn))
        .with_state(demo)
        .into_make_service_with_connect_info::<SocketAddr>();

    let (stop, stopped) = watch::channel(());
    let http = axum::serve(http, routes).with_graceful_shutdown(closed(stopped.clone()));
    let grpc = reporter.serve_with_shutdown(grpc, closed(stopped));
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
    let knobs = *demo.knobs.lock();
    let header = [("x-instance", demo.id.clone())];

    if demo.chance.lock().random_range(0.0..100.0) < knobs.fail_percent {
        return (StatusCode::SERVICE_UNAVAILABLE, header, "failed on purpose\n").into_response();
    }
    let waiting = demo.traffic.wait();
    let _slot = demo.slots.acquire().await.expect("the slots are never closed");
    drop(waiting);
    let busy = demo.draw_service_time(knobs.delay_ms);
    compute(busy / 10).await;
    sleep(busy * 9 / 10).await;
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
