//! Requests through nginx, sent when they are due whether or not earlier ones
//! were answered, and what became of each.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Response, StatusCode, Uri};
use parking_lot::{Mutex, MutexGuard};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::failure::Failure;
use crate::gateway::{self, Client};
use crate::stage::{Instance, TRIED};

/// What is older is forgotten: longer than the longest demo.
const KEEP: Duration = Duration::from_secs(15 * 60);

/// Failed requests that are described one by one.
const DESCRIBED: usize = 10;

/// Requests under way. Stopped when dropped.
pub struct Traffic {
    record: Arc<Mutex<Record>>,
    sending: JoinHandle<()>,
}

/// What became of the requests.
#[derive(Default)]
pub struct Record {
    pub sent: u64,
    pub failed: u64,
    /// Answered by another instance than the first that was tried.
    pub moved_on: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// In the order in which they ended.
    samples: VecDeque<Sample>,
    ended: u64,
    phase: usize,
}

/// A request that ended.
pub struct Sample {
    /// The phase in which it was due.
    pub phase: usize,
    pub due: Instant,
    /// From when it was due, so that a jam shows in all requests that it delays.
    pub latency: Duration,
    /// The instances that it was sent to, by index, in order.
    pub tried: Vec<usize>,
    /// Whether it was answered with 200.
    pub is_ok: bool,
}

impl Traffic {
    /// Sends requests to `uri` from now on, at random times (a Poisson process).
    pub fn start(uri: Uri, requests_per_second: f64, instances: &[Instance]) -> Self {
        let record = Arc::new(Mutex::new(Record::default()));
        let numbers = instances.iter().enumerate();
        let by_addr: HashMap<String, usize> =
            numbers.map(|(index, instance)| (instance.addr.to_string(), index)).collect();
        let sender = Sender {
            uri,
            client: gateway::client(),
            by_addr: by_addr.into(),
            record: Arc::clone(&record),
        };
        Self { record, sending: tokio::spawn(sender.send_all(requests_per_second)) }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock()
    }

    /// Fails if nothing is sent any more.
    pub fn check(&self) -> Result<(), Failure> {
        if self.sending.is_finished() { Err(Failure::Traffic) } else { Ok(()) }
    }

    /// Sends nothing more, and returns when all that was sent has ended.
    pub async fn stop(&self) {
        self.sending.abort();
        while self.record().is_any_open() {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

#[derive(Clone)]
struct Sender {
    uri: Uri,
    client: Client,
    by_addr: Arc<HashMap<String, usize>>,
    record: Arc<Mutex<Record>>,
}

impl Sender {
    async fn send_all(self, requests_per_second: f64) {
        let mut chance = SmallRng::seed_from_u64(0);
        let mut due = Instant::now();
        loop {
            let uniform: f64 = chance.random_range(0.0..1.0);
            due += Duration::from_secs_f64(-(1.0 - uniform).ln() / requests_per_second);
            sleep_until(due).await;
            let phase = self.record.lock().begin();
            tokio::spawn(self.clone().send(due, phase));
        }
    }

    async fn send(self, due: Instant, phase: usize) {
        let answer = gateway::get(&self.client, self.uri.clone()).await;
        let (is_ok, tried, problem) = match &answer {
            Ok(answer) => {
                let problem = format!("nginx answered {}", answer.status());
                (answer.status() == StatusCode::OK, self.tried(answer), problem)
            }
            Err(failure) => (false, Vec::new(), failure.to_string()),
        };
        let sample = Sample { phase, due, latency: due.elapsed(), tried, is_ok };
        self.record.lock().end(sample, problem);
    }

    /// nginx's `$upstream_addr` is a list such as `127.0.0.1:9001, 127.0.0.1:9002`.
    fn tried(&self, answer: &Response<Bytes>) -> Vec<usize> {
        let header = answer.headers().get(TRIED).and_then(|value| value.to_str().ok());
        let addrs = header.unwrap_or_default().split(", ");
        addrs.filter_map(|addr| self.by_addr.get(addr).copied()).collect()
    }
}

impl Record {
    /// Requests that are due from now on belong to the phase with this number.
    pub fn begin_phase(&mut self, phase: usize) {
        self.phase = phase;
    }

    fn is_any_open(&self) -> bool {
        self.ended < self.sent
    }

    fn begin(&mut self) -> usize {
        self.sent += 1;
        self.phase
    }

    fn end(&mut self, sample: Sample, problem: String) {
        self.ended += 1;
        self.moved_on += u64::from(sample.moved_on());
        if !sample.is_ok {
            self.failed += 1;
            if self.failures.len() < DESCRIBED {
                let (phase, tries) = (sample.phase + 1, sample.tried.len());
                self.failures.push(format!("phase {phase}: {problem}, after {tries} tries"));
            }
        }
        self.samples.push_back(sample);
        while self.samples.front().is_some_and(|oldest| oldest.due.elapsed() > KEEP) {
            self.samples.pop_front();
        }
    }

    /// The requests that were due in a phase.
    pub fn of_phase(&self, phase: usize) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.phase == phase)
    }

    /// Those that ended within `time` before now, newest first.
    pub fn of_last(&self, time: Duration) -> impl Iterator<Item = &Sample> {
        let now = Instant::now();
        let is_recent = move |sample: &&Sample| now - (sample.due + sample.latency) < time;
        self.samples.iter().rev().take_while(is_recent)
    }
}

impl Sample {
    /// Who answered.
    pub fn served_by(&self) -> Option<usize> {
        self.tried.last().copied().filter(|_| self.is_ok)
    }

    /// Whether it went to more than one instance.
    pub fn moved_on(&self) -> bool {
        self.tried.len() > 1
    }
}

/// The part of some requests, 0 to 1, for which `is_one` holds.
pub fn share<'a>(
    samples: impl Iterator<Item = &'a Sample>,
    is_one: impl Fn(&Sample) -> bool,
) -> f64 {
    let (mut all, mut ones) = (0, 0);
    for sample in samples {
        all += 1;
        ones += u32::from(is_one(sample));
    }
    if all == 0 { 0.0 } else { f64::from(ones) / f64::from(all) }
}

/// The 50th and the 99th percentile of the latencies, in milliseconds (nearest
/// rank); `None` without any.
pub fn p50_p99_ms<'a>(samples: impl Iterator<Item = &'a Sample>) -> Option<(f64, f64)> {
    let mut latencies: Vec<f64> =
        samples.map(|sample| sample.latency.as_secs_f64() * 1e3).collect();
    latencies.sort_unstable_by(f64::total_cmp);
    let percentile = |percent: usize| {
        let rank = (latencies.len() * percent).div_ceil(100);
        latencies.get(rank.max(1) - 1).copied()
    };
    Some((percentile(50)?, percentile(99)?))
}
