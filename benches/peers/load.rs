//! Open-loop load: requests are sent when they are due, whatever became of those
//! before, and each one's latency counts from that moment.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::clock::Clock;
use crate::scenario::CV;
use crate::servers;

/// Requests still under way so long after the last one was due have failed.
const DRAIN: Duration = Duration::from_secs(25);

/// One request.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Since the begin.
    pub due: Duration,
    pub gateway: usize,
    /// Service time, as a part of an instance's mean.
    pub work: f64,
}

/// A Poisson process of so long, with so many requests a second: the same for the
/// same seed.
pub fn arrivals(
    seed: u64,
    rate_at: impl Fn(Duration) -> f64,
    length: Duration,
    gateways: usize,
) -> Vec<Arrival> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut arrivals = Vec::new();
    let mut due = Duration::ZERO;
    loop {
        let gap = -positive(&mut rng).ln() / rate_at(due);
        due += Duration::from_secs_f64(gap);
        if due >= length {
            return arrivals;
        }
        let gateway = rng.random_range(0..gateways);
        arrivals.push(Arrival { due, gateway, work: lognormal(&mut rng, CV) });
    }
}

/// Of mean 1 and this coefficient of variation.
fn lognormal(rng: &mut SmallRng, cv: f64) -> f64 {
    // Box and Muller's way to a normal deviate.
    let turn: f64 = rng.random_range(0.0..std::f64::consts::TAU);
    let normal = (-2.0 * positive(rng).ln()).sqrt() * turn.cos();
    let variance = (cv * cv).ln_1p();
    (variance.sqrt() * normal - variance / 2.0).exp()
}

/// From 0, which is left out, to 1.
fn positive(rng: &mut SmallRng) -> f64 {
    1.0 - rng.random_range(0.0..1.0)
}

/// What became of a request.
#[derive(Clone, Copy)]
pub struct Sample {
    pub due: Duration,
    pub latency_ms: f64,
    pub is_ok: bool,
}

/// What became of all of them, warm-up included.
pub struct Outcome {
    pub samples: Vec<Sample>,
    /// How long after it was due each request was sent.
    pub late_us: Vec<f64>,
    /// Connections that were opened.
    pub connections: usize,
}

/// Sends `arrivals` to the gateways at `ports`; `turn` is called with the time
/// since the begin before each of them.
pub async fn run(
    clock: &Clock,
    arrivals: &[Arrival],
    ports: &[u16],
    mut turn: impl FnMut(Duration),
) -> Outcome {
    let pools: Vec<_> = ports.iter().map(|&port| Arc::new(Pool::new(port))).collect();
    let mut requests = JoinSet::new();
    let mut late_us = Vec::with_capacity(arrivals.len());
    let begun = Instant::now();
    for arrival in arrivals {
        let due = begun + arrival.due;
        clock.sleep_until(due).await;
        turn(arrival.due);
        late_us.push(due.elapsed().as_secs_f64() * 1e6);
        let pool = Arc::clone(&pools[arrival.gateway]);
        let Arrival { due: since_begin, work, .. } = *arrival;
        requests.spawn(async move {
            let is_ok = pool.get(&servers::path(work)).await.unwrap_or(false);
            let latency_ms = due.elapsed().as_secs_f64() * 1e3;
            Sample { due: since_begin, latency_ms, is_ok }
        });
    }
    let mut samples = Vec::with_capacity(arrivals.len());
    let deadline = Instant::now() + DRAIN;
    while let Ok(Some(sample)) = timeout_at(deadline, requests.join_next()).await {
        samples.push(sample.expect("a request does not panic"));
    }
    // Those that are left are given up here, and their connections closed.
    let last = arrivals.last().map_or(Duration::ZERO, |arrival| arrival.due);
    let lost = Sample { due: last, latency_ms: DRAIN.as_secs_f64() * 1e3, is_ok: false };
    samples.resize(arrivals.len(), lost);
    let connections = pools.iter().map(|pool| *pool.opened.lock()).sum();
    Outcome { samples, late_us, connections }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Connections to one gateway that are kept alive; as many as are needed, so that
/// no request waits for one.
struct Pool {
    port: u16,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    opened: Mutex<usize>,
}

impl Pool {
    fn new(port: u16) -> Self {
        Pool { port, idle: Mutex::default(), opened: Mutex::default() }
    }

    /// Whether the answer, read to its end, is 200.
    async fn get(&self, path: &str) -> Result<bool, Error> {
        let mut sender = self.connection().await?;
        let request = Request::get(path).header("host", "bench").body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let is_ok = response.status() == StatusCode::OK;
        response.into_body().collect().await?;
        if sender.ready().await.is_ok() {
            self.idle.lock().push(sender);
        }
        Ok(is_ok)
    }

    async fn connection(&self) -> Result<SendRequest<Empty<Bytes>>, Error> {
        // The one that was used last is the least likely to be closed by now.
        while let Some(sender) = self.take_idle() {
            if !sender.is_closed() {
                return Ok(sender);
            }
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        *self.opened.lock() += 1;
        // It ends with its sender; what goes wrong, the sender is told.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Empty<Bytes>>> {
        self.idle.lock().pop()
    }
}
