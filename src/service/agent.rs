//! Tells of a process that cannot be changed: its CPU and memory and that of all
//! that it started, read from outside, and nothing of its requests.
//!
//! The agent runs in the process's namespaces of processes and of networks, on
//! the same host or in the same pod, as the same user or as root. A process is
//! told from its successor by when it started, so that a restart of the process
//! is a new boot and a restart of the agent is none.
//!
//! Of a process that is known by its port, `queue` tells how many connections
//! wait to be accepted. `in_flight` is left out: connections that are kept alive
//! are established too, and the gateway keeps many that do nothing.

mod socket;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use self::socket::{Listener, listeners, owner};
use super::ServiceError;
use super::rpc::{MIN_ORCA_INTERVAL, Source, StatusRpc};
use super::sampler::{Process, Resources, Sampler, Stat};
use crate::model::Status;

/// What was found out is told for so long: to find it out is to look into every
/// process, and whoever asks may ask as often as he likes.
const TOLD_FOR: Duration = Duration::from_millis(100);

/// Which process is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// This one, until it ends; another one that gets its id later is not it.
    Pid(u32),
    /// The one whose id is in a file, which is read again and again.
    PidFile(PathBuf),
    /// The one that listens on a TCP port. Of several that share its socket, the
    /// oldest: the one that started the others.
    Port(u16),
}

/// Why there is nothing to tell.
#[derive(Debug, Error)]
enum Gone {
    #[error("process {0} is gone")]
    Process(u32),
    #[error("failed to read {}: {source}", .path.display())]
    PidFile { path: PathBuf, source: std::io::Error },
    #[error("{} holds no process id", .0.display())]
    NoPid(PathBuf),
    #[error("nobody listens on port {0}")]
    NotListening(u16),
    #[error(
        "port {0} is listened on by a process that cannot be read: \
         run the agent as the same user or as root"
    )]
    Unreadable(u16),
}

/// Serves both status services for a process, whether or not it is there, until
/// `shutdown` is over. While it is gone they answer UNAVAILABLE and why.
///
/// # Errors
/// [`ServiceError`] if it cannot be served on `listen`.
pub async fn run(
    target: Target,
    listen: SocketAddr,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServiceError> {
    let listening = |source| ServiceError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(listening)?;
    tracing::info!("serves the status of {target} on {listen}");
    let ended = watch::Sender::new(false);
    let agent = Arc::new(Agent::new(target));
    let rpc = StatusRpc::new(agent, MIN_ORCA_INTERVAL, ended.subscribe());
    let shutdown = async move {
        shutdown.await;
        ended.send_replace(true);
    };
    rpc.serve(listener, shutdown).await
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "process {pid}"),
            Self::PidFile(path) => write!(f, "the process of {}", path.display()),
            Self::Port(port) => write!(f, "the process that listens on port {port}"),
        }
    }
}

/// One start of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    pid: u32,
    started_ticks: u64,
}

impl Life {
    /// The process that has this id now.
    fn of(root: &Path, pid: u32) -> Option<Self> {
        let stat = Stat::read(&Process::Id(pid).dir(root)).filter(|stat| !stat.is_dead)?;
        Some(Self { pid, started_ticks: stat.started_ticks })
    }

    fn lasts(self, root: &Path) -> bool {
        Self::of(root, self.pid) == Some(self)
    }
}

/// Finds the process, measures it, and notes when it became another one.
struct Agent {
    target: Target,
    root: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seq: u64,
    /// What was found out last, and when.
    last: Option<(Instant, Result<Status, tonic::Status>)>,
    /// The process as it was last found.
    found: Option<Found>,
    /// Its absence has been logged.
    is_gone: bool,
}

struct Found {
    life: Life,
    /// The socket that it was found by.
    inode: Option<u64>,
    boot_id: u64,
    sampler: Sampler,
}

impl Agent {
    fn new(target: Target) -> Self {
        Self::under(Path::new("/"), target)
    }

    fn under(root: &Path, target: Target) -> Self {
        Self { target, root: root.to_owned(), state: Mutex::default() }
    }

    /// Finds out how the process is, whatever was found out before.
    fn measure(&self, state: &mut State) -> Result<Status, tonic::Status> {
        let State { seq, found, is_gone, .. } = state;
        let before = found.as_ref().map(|found| found.life);
        let queue = match self.find(found) {
            Ok(queue) => queue,
            Err(gone) => {
                if !std::mem::replace(is_gone, true) {
                    tracing::warn!("has no status to tell: {gone}");
                }
                return Err(tonic::Status::unavailable(gone.to_string()));
            }
        };
        let found = found.as_mut().expect("it was found just now");
        if std::mem::replace(is_gone, false) || before != Some(found.life) {
            tracing::info!("tells of process {}", found.life.pid);
        }
        // Higher than what an agent told that ran before this one.
        *seq = (*seq).max(uptime_us(&self.root));
        let Resources { cpu_used_cores, cpu_limit_cores, memory_used_bytes, memory_limit_bytes } =
            found.sampler.sample();
        Ok(Status {
            boot_id: found.boot_id,
            cpu_used_cores,
            cpu_limit_cores,
            memory_used_bytes,
            memory_limit_bytes,
            queue,
            ..Status::default()
        })
    }

    /// Finds the process and how many connections wait for it.
    fn find(&self, found: &mut Option<Found>) -> Result<Option<u64>, Gone> {
        let root = &self.root;
        let (life, inode, queue) = match &self.target {
            Target::Pid(pid) => {
                let life = Life::of(root, *pid).ok_or(Gone::Process(*pid))?;
                if found.as_ref().is_some_and(|found| found.life != life) {
                    return Err(Gone::Process(*pid));
                }
                (life, None, None)
            }
            Target::PidFile(path) => {
                let pid = read_pid(path)?;
                (Life::of(root, pid).ok_or(Gone::Process(pid))?, None, None)
            }
            Target::Port(port) => {
                let listeners = listeners(root, *port);
                let queue = listeners.iter().map(|listener| listener.waiting).sum();
                let (life, inode) = self.find_owner(*port, &listeners, found.as_ref())?;
                (life, Some(inode), Some(queue))
            }
        };
        match found {
            Some(found) if found.life == life => found.inode = inode,
            _ => *found = Some(Found::new(root, life, inode)),
        }
        Ok(queue)
    }

    /// Who listens, and by which socket. Who did the last time is asked first,
    /// since to search is to look into every process.
    fn find_owner(
        &self,
        port: u16,
        listeners: &[Listener],
        last: Option<&Found>,
    ) -> Result<(Life, u64), Gone> {
        if listeners.is_empty() {
            return Err(Gone::NotListening(port));
        }
        let is_there = |inode| listeners.iter().any(|listener| listener.inode == inode);
        let last = last.and_then(|last| Some((last.life, last.inode?)));
        if let Some(last) = last.filter(|(life, inode)| life.lasts(&self.root) && is_there(*inode))
        {
            return Ok(last);
        }
        owner(&self.root, listeners).ok_or(Gone::Unreadable(port))
    }
}

impl Found {
    fn new(root: &Path, life: Life, inode: Option<u64>) -> Self {
        let Life { pid, started_ticks } = life;
        let sampler = Sampler::under(root, Process::Tree(pid));
        let host = fs::read_to_string(root.join("proc/sys/kernel/random/boot_id"));
        let host = host.unwrap_or_default();
        let text = format!("{pid} {started_ticks} {}", host.trim());
        // 0 stands for none.
        Self { life, inode, boot_id: xxh64(text.as_bytes(), 0).max(1), sampler }
    }
}

impl Source for Agent {
    fn status(&self) -> Result<Status, tonic::Status> {
        let mut state = self.state.lock();
        let last = state.last.take().filter(|(at, _)| at.elapsed() < TOLD_FOR);
        let (at, result) = last.unwrap_or_else(|| {
            let result = self.measure(&mut state);
            (Instant::now(), result)
        });
        state.last = Some((at, result.clone()));
        let status = result?;
        state.seq += 1;
        Ok(Status { seq: state.seq, age: at.elapsed(), ..status })
    }
}

/// The number on the first line of a pid file.
fn read_pid(path: &Path) -> Result<u32, Gone> {
    let text = fs::read_to_string(path)
        .map_err(|source| Gone::PidFile { path: path.to_owned(), source })?;
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
    pid.filter(|pid| *pid > 0).ok_or_else(|| Gone::NoPid(path.to_owned()))
}

/// How long the host has been up, from a line like `11752.76 11169.13`: in steps
/// of 10 ms, which leaves room for 10 000 statuses each. 0 if it cannot be read.
fn uptime_us(root: &Path) -> u64 {
    let text = fs::read_to_string(root.join("proc/uptime")).unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|number| number.parse::<f64>().ok());
    seconds.map_or(0, |seconds| (seconds * 1e6) as u64)
}

#[cfg(test)]
mod tests;
