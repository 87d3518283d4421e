//! How long it takes from a report that leaves a service to the gateway's ranking.
//!
//! The services note when a probe's report leaves that says for the first time
//! that all its requests fail. The gateway's first page of the ranking is asked
//! for back to back, and is seen without that probe from some moment on.

use std::collections::HashSet;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::http;
use crate::servers::{Flip, PROBES};
use crate::stage::{self, SERVICE, Stage};
use crate::table::micros;
use crate::usage;

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(2);

/// A report that is not seen by then is lost.
const LOST: Duration = Duration::from_secs(3);

/// What was seen in one stretch of time.
pub struct Latencies {
    /// From each report's leaving to the answer that shows it.
    pub seen_ms: Vec<f64>,
    /// Reports that no answer showed.
    pub lost: usize,
    /// From one answer to the next: what a figure above may be too large by.
    pub spacing_ms: Vec<f64>,
    /// CPU time of the worker's event loop for one question.
    pub question_us: f64,
    /// CPU of the plugin's thread meanwhile, in cores.
    pub thread_cores: f64,
}

/// Watches for so long.
pub async fn measure(stage: &Stage, time: Duration) -> Latencies {
    let (worker, thread) = (stage.gateway.worker, stage.gateway.thread);
    stage.servers.flips.try_iter().for_each(drop);
    let begun = Instant::now();
    let event_loop_before = usage::cpu_time_of_thread(worker, worker);
    let thread_before = usage::cpu_time_of_thread(worker, thread);
    let poller = Poller::start(stage.gateway.port);
    sleep(time).await;
    let seen = poller.stop();
    let event_loop = usage::cpu_time_of_thread(worker, worker) - event_loop_before;
    let thread = usage::cpu_time_of_thread(worker, thread) - thread_before;
    let elapsed = begun.elapsed();

    let flips: Vec<Flip> = stage.servers.flips.try_iter().collect();
    let (mut seen_ms, mut lost) = (Vec::new(), 0);
    // What left before the first answer, or too late for the last, is neither.
    let is_whole = |flip: &&Flip| flip.at > seen.begun && flip.at + LOST < seen.ended;
    for flip in flips.iter().filter(is_whole) {
        let falls = seen.falls.iter().filter(|fall| fall.index == flip.index);
        let mut delays = falls.filter_map(|fall| fall.at.duration_since(flip.at).ok());
        match delays.next().filter(|delay| *delay < LOST) {
            Some(delay) => seen_ms.push(micros(delay) / 1e3),
            None => lost += 1,
        }
    }
    Latencies {
        seen_ms,
        lost,
        question_us: micros(event_loop) / seen.spacing_ms.len() as f64,
        spacing_ms: seen.spacing_ms,
        thread_cores: thread.as_secs_f64() / elapsed.as_secs_f64(),
    }
}

/// An instance that was among the first and is not any more.
struct Fall {
    index: usize,
    at: SystemTime,
}

struct Seen {
    begun: SystemTime,
    ended: SystemTime,
    falls: Vec<Fall>,
    spacing_ms: Vec<f64>,
}

/// Asks for the first of the ranking, on a thread of its own.
struct Poller {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Seen>,
}

impl Poller {
    fn start(port: u16) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let poll = move || {
            let mut client = http::Client::connect(port).expect("the gateway answers");
            let mut first = ask(&mut client);
            let mut last = Instant::now();
            let begun = SystemTime::now();
            let (mut falls, mut spacing_ms) = (Vec::new(), Vec::new());
            while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                let now_first = ask(&mut client);
                let (at, now) = (SystemTime::now(), Instant::now());
                falls.extend(first.difference(&now_first).map(|&index| Fall { index, at }));
                spacing_ms.push(micros(now - last) / 1e3);
                (first, last) = (now_first, now);
            }
            Seen { begun, ended: SystemTime::now(), falls, spacing_ms }
        };
        Poller { stop, thread: thread::spawn(poll) }
    }

    fn stop(self) -> Seen {
        drop(self.stop);
        self.thread.join().expect("the poller saw no failed request")
    }
}

/// What is looked at of the gateway's answer.
#[derive(Deserialize)]
struct View {
    instances: Vec<Place>,
}

#[derive(Deserialize)]
struct Place {
    id: String,
}

/// The instances in the first places.
fn ask(client: &mut http::Client) -> HashSet<usize> {
    let path = format!("/ipconfig/v1/services/{SERVICE}?n={PROBES}");
    let answer = client.get(&path).expect("an answer with 200");
    let View { instances } = serde_json::from_str(&answer).expect("a service of the API");
    instances.iter().filter_map(|place| stage::index(&place.id)).collect()
}
