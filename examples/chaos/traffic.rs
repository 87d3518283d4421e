//! Requests through both gateways, sent when they are due whatever became of those
//! before, and whose fault it was that one failed.
//!
//! A client here does what clients of HTTP do and no more. It keeps connections, each
//! of which is one worker's, and knows of which. A request that fails is
//! - **lost** if the worker that had it got SIGKILL, or the gateway was down as a
//!   whole: the process that held it is no more. It is sent once more, to the other
//!   gateway, and fails for good if that does not answer it;
//! - **reconnected** if a worker that was told to end (a reload, an upgrade) closed
//!   the connection without a byte of an answer: the race of every kept connection
//!   that its server closes (RFC 9110, 9.3.1). It is sent once more, to the same one;
//! - **failed** in every other case: any answer but 200, a connection that breaks, and
//!   no answer within [`LIMIT`]. That is what must not be, since there always is an
//!   instance that can answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::host::{Fates, Host};
use crate::stage::{SERVICES, TRIED, WORKER};

/// A request without an answer for longer has failed: longer than any fault holds a
/// worker, and than the tries of a request together.
const LIMIT: Duration = Duration::from_secs(30);

/// Failures that are told of in words, for each fault.
const DESCRIBED: usize = 5;

/// Tries for a connection, where workers come and go.
const CONNECTS: u32 = 10;

/// What became of the requests of a stretch of time.
#[derive(Default, Clone, serde::Serialize)]
pub struct Count {
    pub sent: u64,
    pub failed: u64,
    pub lost: u64,
    pub reconnected: u64,
    /// Answered by another instance than the first that was tried.
    pub moved_on: u64,
    /// From when the request was due.
    pub longest_ms: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
}

/// Requests under way. Stopped when dropped.
pub struct Traffic {
    shared: Arc<Shared>,
    sending: JoinHandle<()>,
}

struct Shared {
    pools: Vec<Pool>,
    count: Mutex<Count>,
    open: Mutex<u64>,
    is_ending: AtomicBool,
}

impl Traffic {
    /// Sends so many requests a second from now on, at random times.
    pub fn start(hosts: &[Host], per_second: f64, seed: u64) -> Self {
        let pools = hosts.iter().map(Pool::new).collect();
        let shared = Arc::new(Shared {
            pools,
            count: Mutex::default(),
            open: Mutex::default(),
            is_ending: AtomicBool::new(false),
        });
        let sending = tokio::spawn(send_all(Arc::clone(&shared), per_second, seed));
        Self { shared, sending }
    }

    /// What became of the requests since it was asked last.
    pub fn take(&self) -> Count {
        std::mem::take(&mut self.shared.count.lock())
    }

    /// Sends no more; whether all that was sent has ended.
    pub async fn end(&self) -> bool {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        crate::wait::until(LIMIT * 2, async || *self.shared.open.lock() == 0).await
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

async fn send_all(shared: Arc<Shared>, per_second: f64, seed: u64) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut due = Instant::now();
    while !shared.is_ending.load(Ordering::Relaxed) {
        let uniform: f64 = rng.random_range(0.0..1.0);
        due += Duration::from_secs_f64(-(1.0 - uniform).ln() / per_second);
        let (to, service) = (rng.random_range(0..shared.pools.len()), rng.random_range(0..3));
        sleep_until(due).await;
        // Two of three go to the service whose instances register themselves.
        let service = SERVICES[usize::from(service == 0)];
        shared.count.lock().sent += 1;
        *shared.open.lock() += 1;
        tokio::spawn(send(Arc::clone(&shared), to, service, due));
    }
}

async fn send(shared: Arc<Shared>, to: usize, service: &'static str, due: Instant) {
    let ended = timeout(LIMIT, shared.ask(to, service)).await;
    let ended = ended.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
    let mut count = shared.count.lock();
    count.longest_ms = count.longest_ms.max(due.elapsed().as_millis() as u64);
    match ended {
        Ok(tried) => count.moved_on += u64::from(tried.contains(',')),
        Err(why) => {
            count.failed += 1;
            if count.failures.len() < DESCRIBED {
                count.failures.push(format!("{service} by gateway {}: {why}", to + 1));
            }
        }
    }
    *shared.open.lock() -= 1;
}

impl Shared {
    /// Sends a request, and once more where that is nobody's fault; the instances that
    /// were tried, or what went wrong.
    async fn ask(&self, to: usize, service: &str) -> Result<String, String> {
        let pool = &self.pools[to];
        let ended = if pool.fates.is_down() {
            Err(Broken { worker: None, why: "the gateway is down".into() })
        } else {
            match self.connection(to).await {
                Ok(connection) => pool.send(connection, service).await,
                Err(broken) => Err(broken),
            }
        };
        let broken = match ended {
            Ok(answer) => return checked(&answer),
            Err(broken) => broken,
        };
        let (again, count) = match broken.worker {
            Some(worker) if pool.fates.was_killed(worker) => (1 - to, true),
            None if pool.fates.is_down() => (1 - to, true),
            Some(worker) if pool.fates.is_retired(worker) => (to, false),
            _ => return Err(broken.why),
        };
        {
            let mut counts = self.count.lock();
            counts.lost += u64::from(count);
            counts.reconnected += u64::from(!count);
        }
        let connection = self.fresh_connection(again).await.map_err(|broken| broken.why)?;
        let answer = self.pools[again].send(connection, service).await;
        checked(&answer.map_err(|broken| format!("sent again: {}", broken.why))?)
    }

    async fn connection(&self, to: usize) -> Result<Connection, Broken> {
        match self.pools[to].take_idle() {
            Some(connection) => Ok(connection),
            None => self.fresh_connection(to).await,
        }
    }

    /// A connection of which the worker is known. No request is on it yet, so that one
    /// that a worker took with it is replaced by another.
    async fn fresh_connection(&self, to: usize) -> Result<Connection, Broken> {
        let pool = &self.pools[to];
        let mut tries = 1;
        loop {
            match pool.connect().await {
                Ok(connection) => return Ok(connection),
                Err(_) if pool.fates.is_any_gone() && !pool.fates.is_down() && tries < CONNECTS => {
                    tries += 1;
                }
                Err(error) => {
                    let why = format!("connecting, {tries} tries: {error:?}");
                    return Err(Broken { worker: None, why });
                }
            }
        }
    }
}

/// The instances that were tried for an answer, if it is a good one.
fn checked(answer: &Response<()>) -> Result<String, String> {
    let header = |name: &str| {
        let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    if answer.status() == StatusCode::OK {
        return Ok(header(TRIED));
    }
    let (tried, reason) = (header(TRIED), header("ipconfig-reason"));
    Err(format!("{} (tried {tried:?}, reason {reason:?})", answer.status()))
}

/// Connections to one gateway that are kept.
struct Pool {
    host: std::net::SocketAddr,
    fates: Arc<Fates>,
    idle: Mutex<Vec<Connection>>,
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// The process that has the other end.
    worker: u32,
}

/// A connection that did not bring an answer.
struct Broken {
    worker: Option<u32>,
    why: String,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl Pool {
    fn new(host: &Host) -> Self {
        Self { host: host.addr, fates: Arc::clone(&host.fates), idle: Mutex::default() }
    }

    /// Sends a request over a connection, which is kept if it is good for more.
    async fn send(
        &self,
        mut connection: Connection,
        service: &str,
    ) -> Result<Response<()>, Broken> {
        let worker = Some(connection.worker);
        match self.carry(&mut connection.sender, &format!("/{service}/")).await {
            Ok(answer) => {
                if connection.sender.ready().await.is_ok() {
                    self.idle.lock().push(connection);
                }
                Ok(answer.map(drop))
            }
            Err(error) => {
                let why = format!("worker {}: {error:?}", connection.worker);
                Err(Broken { worker, why })
            }
        }
    }

    async fn carry(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        path: &str,
    ) -> Result<Response<Bytes>, Error> {
        let request = Request::get(path).header("host", "chaos").body(Empty::new())?;
        let (head, body): (_, Incoming) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let stream = TcpStream::connect(self.host).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with its sender; what goes wrong, the sender is told.
        tokio::spawn(connection);
        let answer = self.carry(&mut sender, WORKER).await?;
        let worker = std::str::from_utf8(answer.body())?.trim().parse()?;
        sender.ready().await?;
        Ok(Connection { sender, worker })
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        // The one that was used last is the least likely to be closed by now.
        while let Some(connection) = idle.pop() {
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }
}
