//! The services that are asked: one process that is all of them, each at an
//! address of its own. It is this very program, started again.
//!
//! ```text
//! bench -> servers   its arguments: servers PORT INSTANCES
//!                    stdin: the part of the instances that change, a line each
//!                    time it changes; its end ends the process
//! servers -> bench   stdout: `ready`, then a line for each probe that fails:
//!                    flip INDEX UNIX_NS
//! ```

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use ipconfig::wire::proto;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;

use crate::support::status;

/// The first argument of the program when it is to be the servers.
const ROLE: &str = "servers";

/// Instances whose figures are far better than the others', so that they are the
/// first of the ranking, and now and then a report says that every request
/// failed, so that they are the last.
pub const PROBES: usize = 20;

/// Reports of a probe from one failure to the next: more than a window holds, so
/// that it has come back before.
const REPORTS_BETWEEN_FAILURES: std::ops::RangeInclusive<u32> = 7..=9;

/// The first of the instances' addresses; the others follow.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 1);

/// How far up an instance's figures go when it changes, and how far each may be
/// off: the one is well beyond the exporter's deadband of 0.05, the other well
/// within.
const STEP: f64 = 1.25;
const JITTER: f64 = 0.01;

/// Of an instance with nothing special about it.
const REQUESTS_PER_S: f64 = 400.0;
const LATENCY_MS: f64 = 10.0;
const CPU_CORES: f64 = 0.8;
const MEMORY_BYTES: f64 = (800 << 20) as f64;
const IN_FLIGHT: f64 = 80.0;
/// What a probe has of latency and CPU.
const PROBE_PART: f64 = 0.1;

/// The address of an instance's process.
pub fn address(index: usize) -> Ipv4Addr {
    let index = u32::try_from(index).expect("fewer than there are addresses");
    Ipv4Addr::from(u32::from(FIRST_ADDRESS) + index)
}

/// Which instances of `size` are probes: one in each part of the fleet, and so
/// in as many shards as there are, each of which has its own moment in a second.
pub fn probe(number: usize, size: usize) -> usize {
    number * size / PROBES
}

/// A probe's report that says for the first time that all fails.
pub struct Flip {
    pub index: usize,
    /// When the report left.
    pub at: SystemTime,
}

/// The running process; killed when dropped.
pub struct Servers {
    child: Child,
    commands: ChildStdin,
    pub flips: mpsc::Receiver<Flip>,
}

impl Servers {
    /// Starts it; returns when every address answers.
    pub fn start(port: u16, size: usize) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new(program)
            .args([ROLE, &port.to_string(), &size.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let commands = child.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = lines.next().and_then(Result::ok);
        assert_eq!(first.as_deref(), Some("ready"), "the servers did not start");
        let (sender, flips) = mpsc::channel();
        thread::spawn(move || {
            let parsed = lines.map_while(Result::ok).map(|line| parse_flip(&line));
            // It ends with either end of the channel.
            parsed.map_while(|flip| sender.send(flip).ok()).for_each(drop);
        });
        Servers { child, commands, flips }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lets so many of the instances, a part from 0 to 1, change with each report.
    pub fn change(&mut self, part: f64) {
        writeln!(self.commands, "{part}").expect("the servers are running");
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // It fails only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse_flip(line: &str) -> Flip {
    let parse = || {
        let (index, unix_ns) = line.strip_prefix("flip ")?.split_once(' ')?;
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns.parse().ok()?);
        Some(Flip { index: index.parse().ok()?, at })
    };
    parse().unwrap_or_else(|| panic!("the servers said {line:?}"))
}

// ------------------------------------------------------ in the servers' process

/// The port and the number of instances, if this process is to be the servers.
pub fn role() -> Option<(u16, usize)> {
    let mut args = std::env::args().skip(1);
    args.next().filter(|role| role == ROLE)?;
    Some((args.next()?.parse().ok()?, args.next()?.parse().ok()?))
}

/// Is the servers until stdin ends.
pub async fn serve(port: u16, size: usize) {
    let fleet = Arc::new(Fleet::new(size));
    let server = status::serve(Arc::clone(&fleet), listen(port).with_nodelay(Some(true)));
    println!("ready");
    let (closed, when_closed) = oneshot::channel::<()>();
    thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            fleet.state.lock().changing = line.parse().expect("a part");
        }
        drop(closed);
    });
    tokio::select! {
        ended = server => ended.expect("the servers serve"),
        _ = when_closed => {}
    }
}

/// One listener for every address of the loopback interface and no other: with
/// one for each, this process would need two descriptors an instance.
fn listen(port: u16) -> TcpIncoming {
    let listen = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind_device(Some(b"lo"))?;
        socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        socket.listen(4096)
    };
    TcpIncoming::from(listen().expect("the port is free on the loopback interface"))
}

/// All instances.
struct Fleet {
    state: Mutex<State>,
}

struct State {
    instances: Vec<Instance>,
    /// The part of the instances that change with each report.
    changing: f64,
    rng: SmallRng,
}

/// One process, as it would tell of itself.
struct Instance {
    boot_id: u64,
    seq: u64,
    last: Instant,
    requests: u64,
    errors: u64,
    busy: Duration,
    latency: Duration,
    is_up: bool,
    /// Reports until the next failure.
    failure_in: Option<u32>,
}

impl Fleet {
    fn new(size: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut instances: Vec<_> = (0..size).map(|_| Instance::new(&mut rng)).collect();
        for number in 0..PROBES {
            let pause = rng.random_range(REPORTS_BETWEEN_FAILURES);
            instances[probe(number, size)].failure_in = Some(pause);
        }
        Fleet { state: Mutex::new(State { instances, changing: 1.0, rng }) }
    }
}

impl Instance {
    fn new(rng: &mut SmallRng) -> Self {
        Instance {
            boot_id: rng.random_range(1..=u64::MAX),
            seq: 0,
            last: Instant::now(),
            // Counters of a process that has run for a while, as most have.
            requests: rng.random_range(1_000_000..100_000_000),
            errors: 0,
            busy: Duration::from_secs(rng.random_range(1_000..1_000_000)),
            latency: Duration::from_secs(rng.random_range(1_000..1_000_000)),
            is_up: rng.random_bool(0.5),
            failure_in: None,
        }
    }

    /// The next report, and whether it is the first to say that all fails.
    fn report(&mut self, changing: f64, rng: &mut SmallRng) -> (proto::Status, bool) {
        let is_failing = self.failure_in == Some(0);
        if let Some(left) = &mut self.failure_in {
            *left =
                left.checked_sub(1).unwrap_or_else(|| rng.random_range(REPORTS_BETWEEN_FAILURES));
        }
        self.is_up ^= rng.random_bool(changing);
        let level = if self.is_up { STEP } else { 1.0 };
        let mut near = |figure: f64| figure * level * rng.random_range(1.0 - JITTER..1.0 + JITTER);
        let part = if self.failure_in.is_some() { PROBE_PART } else { 1.0 };

        let now = Instant::now();
        let elapsed = (now - self.last).as_secs_f64();
        let requests = (near(REQUESTS_PER_S) * elapsed).round() as u64;
        let latency_s = requests as f64 * near(LATENCY_MS * part) / 1e3;
        self.last = now;
        self.seq += 1;
        self.requests += requests;
        self.errors += if is_failing { requests } else { 0 };
        self.busy += Duration::from_secs_f64(elapsed * 0.9);
        self.latency += Duration::from_secs_f64(latency_s);
        let status = proto::Status {
            boot_id: self.boot_id,
            seq: self.seq,
            age: None,
            requests: self.requests,
            errors: self.errors,
            busy_ns: nanoseconds(self.busy),
            latency_sum_ns: nanoseconds(self.latency),
            cpu_used_cores: Some(near(CPU_CORES * part)),
            cpu_limit_cores: Some(2.0),
            memory_used_bytes: Some(near(MEMORY_BYTES) as u64),
            memory_limit_bytes: Some(4 << 30),
            in_flight: Some(near(IN_FLIGHT) as u64),
            queue: Some(0),
            application_utilization: None,
            max_in_flight: None,
        };
        (status, is_failing)
    }
}

impl status::Source for Fleet {
    async fn status(&self, asked: Option<SocketAddr>) -> Result<proto::Status, tonic::Status> {
        let Some(IpAddr::V4(address)) = asked.map(|addr| addr.ip()) else {
            return Err(tonic::Status::internal("a connection without an address"));
        };
        let mut state = self.state.lock();
        let State { instances, changing, rng } = &mut *state;
        let index = u32::from(address).wrapping_sub(u32::from(FIRST_ADDRESS)) as usize;
        let instance =
            instances.get_mut(index).ok_or_else(|| tonic::Status::not_found("no such instance"))?;
        let (status, is_flip) = instance.report(*changing, rng);
        if is_flip {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            println!("flip {index} {}", now.as_nanos());
        }
        Ok(status)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
