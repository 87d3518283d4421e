//! The fleet: services with slots, a queue before them and a speed, in one
//! process of their own. It is this very program, started again.
//!
//! ```text
//! bench -> servers   its arguments: servers, then SLOTS:MEAN_US:HTTP:STATUS for
//!                    each instance
//!                    stdin, a line each: `speed INDEX FACTOR`, `facts`; its end
//!                    ends the process
//! servers -> bench   stdout: `ready`; one line of JSON for each `facts`
//! gateway -> server  GET /work/WORK: what is to be done, in millionths of the
//!                    mean service time, so that every side is asked for the same
//! exporter -> server gRPC ipconfig.v1.StatusService, at a port for each instance
//! ```
//!
//! A service sleeps rather than computes, so that a machine with few cores carries
//! a fleet. It takes about 0.1 ms longer than drawn, for waking up: the bench
//! prints how much.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Lines, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ipconfig::service::{Outcome, Traffic};
use ipconfig::wire::proto;
use parking_lot::Mutex;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, sleep};
use tonic::transport::server::TcpIncoming;

use crate::clock::Clock;
use crate::support::{free_port, status};

/// The first argument of the program when it is to be the servers.
const ROLE: &str = "servers";

/// What work is counted in.
const WORK_UNIT: f64 = 1e6;

/// What an instance can do.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Requests served at once; the others wait, first come, first served.
    pub slots: usize,
    /// Mean time to serve one.
    pub mean: Duration,
}

/// The path of a request that takes `work` times an instance's mean.
pub fn path(work: f64) -> String {
    format!("/work/{:.0}", work * WORK_UNIT)
}

/// An instance as the others know it.
pub struct Address {
    pub http: SocketAddr,
    pub status: SocketAddr,
}

/// What has happened since the facts were asked for last.
#[derive(Default, Serialize, Deserialize)]
pub struct Facts {
    /// Requests answered by each instance.
    pub requests: Vec<u64>,
    /// Services ended, by all.
    pub services: u64,
    /// How much longer than it should a service took, summed up and at most.
    pub late_sum_us: f64,
    pub late_max_us: f64,
}

/// The running process; killed when dropped.
pub struct Servers {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    pub addresses: Vec<Address>,
}

impl Servers {
    /// Starts it; returns when every instance listens.
    pub fn start(shapes: &[Shape]) -> Self {
        let address = || SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let addresses: Vec<_> =
            shapes.iter().map(|_| Address { http: address(), status: address() }).collect();
        let argument = |(Shape { slots, mean }, Address { http, status }): (&Shape, &Address)| {
            format!("{slots}:{}:{}:{}", mean.as_micros(), http.port(), status.port())
        };
        let program = std::env::current_exe().expect("the path of this program");
        let mut child = Command::new(program)
            .arg(ROLE)
            .args(shapes.iter().zip(&addresses).map(argument))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let commands = child.stdin.take().expect("a pipe");
        let mut answers = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = answers.next().and_then(Result::ok);
        assert_eq!(first.as_deref(), Some("ready"), "the servers did not start");
        Servers { child, commands, answers, addresses }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Lets an instance be `factor` times as fast as it is by its shape, from the
    /// next service on.
    pub fn set_speed(&mut self, index: usize, factor: f64) {
        writeln!(self.commands, "speed {index} {factor}").expect("the servers are running");
    }

    /// What has happened since the last call.
    pub fn facts(&mut self) -> Facts {
        writeln!(self.commands, "facts").expect("the servers are running");
        let line = self.answers.next().and_then(Result::ok).expect("the servers are running");
        serde_json::from_str(&line).expect("facts")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // It fails only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ------------------------------------------------------ in the servers' process

/// The instances and the ports of each, if this process is to be the servers.
pub fn role() -> Option<Vec<(Shape, [u16; 2])>> {
    let mut args = std::env::args().skip(1);
    args.next().filter(|role| role == ROLE)?;
    let parse = |argument: String| {
        let mut fields = argument.split(':');
        let mut field = || fields.next()?.parse::<u32>().ok();
        let (slots, mean) = (field()? as usize, Duration::from_micros(u64::from(field()?)));
        let ports = [field()?, field()?].map(|port| u16::try_from(port).unwrap_or_default());
        Some((Shape { slots, mean }, ports))
    };
    args.map(parse).collect()
}

/// Is the servers until stdin ends.
pub async fn serve(fleet: Vec<(Shape, [u16; 2])>) {
    let clock = Clock::start();
    let mut instances = Vec::with_capacity(fleet.len());
    for (shape, [http, status_port]) in fleet {
        let instance = Arc::new(Instance::new(shape));
        let listener = listen(http).await;
        tokio::spawn(Arc::clone(&instance).serve_http(listener, clock.clone()));
        let reports = TcpIncoming::from(listen(status_port).await);
        tokio::spawn(status::serve(Arc::clone(&instance), reports));
        instances.push(instance);
    }
    println!("ready");
    let (closed, when_closed) = oneshot::channel::<()>();
    thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|line| obey(&instances, &line));
        drop(closed);
    });
    // An error says that the sender is gone.
    let _ = when_closed.await;
}

fn obey(instances: &[Arc<Instance>], line: &str) {
    let mut words = line.split(' ');
    match words.next() {
        Some("speed") => {
            let index: usize = words.next().and_then(|it| it.parse().ok()).expect("an index");
            let factor = words.next().and_then(|it| it.parse().ok()).expect("a factor");
            instances[index].state.lock().speed = factor;
        }
        Some("facts") => {
            let mut facts = Facts::default();
            instances.iter().for_each(|instance| instance.tell(&mut facts));
            println!("{}", serde_json::to_string(&facts).expect("figures"));
        }
        _ => panic!("the bench said {line:?}"),
    }
}

async fn listen(port: u16) -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free")
}

struct Instance {
    boot_id: u64,
    shape: Shape,
    slots: Semaphore,
    traffic: Arc<Traffic>,
    state: Mutex<State>,
}

struct State {
    speed: f64,
    seq: u64,
    /// Slots in use, and the time that they were until `counted_until`.
    busy: u32,
    busy_sum: Duration,
    counted_until: Instant,
    /// The two as they were at the last report.
    reported: (Duration, Instant),
    /// Since the facts were told last.
    facts: Facts,
}

impl State {
    /// Counts the time until `now` with as many slots in use as there are now.
    fn count_until(&mut self, now: Instant) {
        self.busy_sum += now.saturating_duration_since(self.counted_until) * self.busy;
        self.counted_until = now;
    }
}

impl Instance {
    fn new(shape: Shape) -> Self {
        let now = Instant::now();
        let state = State {
            speed: 1.0,
            seq: 0,
            busy: 0,
            busy_sum: Duration::ZERO,
            counted_until: now,
            reported: (Duration::ZERO, now),
            facts: Facts { requests: vec![0], ..Facts::default() },
        };
        Instance {
            boot_id: SysRng.try_next_u64().expect("the system has random numbers").max(1),
            shape,
            slots: Semaphore::new(shape.slots),
            traffic: Arc::default(),
            state: Mutex::new(state),
        }
    }

    async fn serve_http(self: Arc<Self>, listener: TcpListener, clock: Clock) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // No files left, perhaps: some connection will end.
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            // It fails only for a connection that is gone already.
            let _ = stream.set_nodelay(true);
            let (instance, clock) = (Arc::clone(&self), clock.clone());
            let service = service_fn(move |request| {
                let (instance, clock) = (Arc::clone(&instance), clock.clone());
                async move { Ok::<_, Infallible>(instance.answer(&request, &clock).await) }
            });
            // A gateway may close a connection as it likes.
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    }

    async fn answer(&self, request: &Request<Incoming>, clock: &Clock) -> Response<Full<Bytes>> {
        let work = request.uri().path().strip_prefix("/work/").and_then(|it| it.parse().ok());
        let Some(work) = work else {
            let mut response = Response::new(Full::from("no work\n"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        self.work(work, clock).await;
        Response::new(Full::from("ok\n"))
    }

    /// Waits for a slot and holds it for as long as the work takes.
    async fn work(&self, work: f64, clock: &Clock) {
        let request = self.traffic.begin();
        let waiting = self.traffic.wait();
        let permit = self.slots.acquire().await.expect("the slots are never closed");
        drop(waiting);
        let begun = Instant::now();
        let speed = self.state.lock().speed;
        let time = self.shape.mean.mul_f64(work / WORK_UNIT / speed);
        let slot = Slot::take(self, permit, begun);
        clock.sleep_until(begun + time).await;
        slot.served(begun.elapsed().saturating_sub(time));
        request.answered(Outcome::Served);
    }

    /// Adds what has happened here to `facts`, and begins anew.
    fn tell(&self, facts: &mut Facts) {
        let anew = Facts { requests: vec![0], ..Facts::default() };
        let own = std::mem::replace(&mut self.state.lock().facts, anew);
        facts.requests.extend(own.requests);
        facts.services += own.services;
        facts.late_sum_us += own.late_sum_us;
        facts.late_max_us = facts.late_max_us.max(own.late_max_us);
    }

    /// How it is: all that a service knows of its requests. What the process uses
    /// is left out, as the instances share one, and sleep rather than compute.
    fn report(&self) -> proto::Status {
        let counts = self.traffic.snapshot();
        let now = Instant::now();
        let mut state = self.state.lock();
        state.count_until(now);
        state.seq += 1;
        let (busy_before, since) = state.reported;
        state.reported = (state.busy_sum, now);
        let busy = (state.busy_sum - busy_before).as_secs_f64();
        let possible = (now - since).as_secs_f64() * self.shape.slots as f64;
        proto::Status {
            boot_id: self.boot_id,
            seq: state.seq,
            age: None,
            requests: counts.requests,
            errors: counts.errors,
            busy_ns: nanoseconds(counts.busy),
            latency_sum_ns: nanoseconds(counts.latency_sum),
            cpu_used_cores: None,
            cpu_limit_cores: None,
            memory_used_bytes: None,
            memory_limit_bytes: None,
            in_flight: Some(counts.in_flight),
            queue: Some(counts.queue),
            application_utilization: (possible > 0.0).then(|| busy / possible),
            max_in_flight: None,
        }
    }
}

/// A slot in use, until this is dropped: also when the gateway hangs up.
struct Slot<'a> {
    instance: &'a Instance,
    _permit: SemaphorePermit<'a>,
}

impl<'a> Slot<'a> {
    fn take(instance: &'a Instance, permit: SemaphorePermit<'a>, now: Instant) -> Self {
        let mut state = instance.state.lock();
        state.count_until(now);
        state.busy += 1;
        Slot { instance, _permit: permit }
    }

    /// Ends a service that took so much longer than it should.
    fn served(self, late: Duration) {
        let late_us = late.as_secs_f64() * 1e6;
        let facts = &mut self.instance.state.lock().facts;
        facts.requests[0] += 1;
        facts.services += 1;
        facts.late_sum_us += late_us;
        facts.late_max_us = facts.late_max_us.max(late_us);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut state = self.instance.state.lock();
        state.count_until(Instant::now());
        state.busy -= 1;
    }
}

impl status::Source for Instance {
    async fn status(&self, _: Option<SocketAddr>) -> Result<proto::Status, tonic::Status> {
        Ok(self.report())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
