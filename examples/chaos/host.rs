//! A gateway: an nginx of two workers, daemon as in production, its ways to etcd, and
//! what was done to its processes on purpose.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::StatusCode;
use parking_lot::Mutex;
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, kill_process_group, test_kill_process,
    test_kill_process_group, waitpgid,
};
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::sleep;

use crate::failure::{Context, Failure};
use crate::gateway;
use crate::support::wire::Wire;
use crate::usage::thread_named;
use crate::wait::until;

/// The name of the plugin's thread, by which worker 0 is told from the others.
const THREAD: &str = "ipconfig";

/// The workers of each gateway.
pub const WORKERS: usize = 2;

/// A gateway that runs.
pub struct Host {
    pub name: String,
    pub addr: SocketAddr,
    /// One to each member of etcd.
    pub wires: Vec<Wire>,
    pub fates: Arc<Fates>,
    folder: PathBuf,
    program: PathBuf,
    /// The process group of master and workers; `None` before the first start.
    group: Option<Pid>,
}

/// What was done to a gateway's processes: what a request may lose follows from it.
#[derive(Default)]
pub struct Fates {
    /// Workers that got SIGKILL, ever.
    killed: Mutex<HashSet<u32>>,
    /// Workers that were told to end once their requests are answered.
    retired: Mutex<HashSet<u32>>,
    is_down: AtomicBool,
}

impl Fates {
    /// Whether this worker was killed.
    pub fn was_killed(&self, worker: u32) -> bool {
        self.killed.lock().contains(&worker)
    }

    /// Whether this worker closes its idle connections, or has.
    pub fn is_retired(&self, worker: u32) -> bool {
        self.retired.lock().contains(&worker)
    }

    /// Whether any of its workers was killed or retired so far.
    pub fn is_any_gone(&self) -> bool {
        !self.killed.lock().is_empty() || !self.retired.lock().is_empty()
    }

    /// Whether all of it was killed and it was not started again.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }
}

/// What its API says of a service.
#[derive(Debug, Default, Deserialize)]
pub struct View {
    pub mode: String,
    instances: Vec<Seen>,
}

#[derive(Debug, Deserialize)]
struct Seen {
    id: String,
    addr: SocketAddr,
    state: String,
    in_flight: u64,
}

impl View {
    /// Addresses by id.
    pub fn members(&self) -> BTreeMap<String, SocketAddr> {
        self.instances.iter().map(|seen| (seen.id.clone(), seen.addr)).collect()
    }

    /// An instance that does not report, and its state.
    pub fn not_reporting(&self) -> Option<(&str, &str)> {
        let silent = self.instances.iter().find(|seen| seen.state != "reporting")?;
        Some((&silent.id, &silent.state))
    }

    /// Requests open on all of its instances.
    pub fn in_flight(&self) -> u64 {
        self.instances.iter().map(|seen| seen.in_flight).sum()
    }
}

impl Host {
    /// Starts one in a folder that has its `nginx.conf` and `ipconfig.json`.
    pub async fn start(
        name: String,
        addr: SocketAddr,
        wires: Vec<Wire>,
        folder: PathBuf,
        program: PathBuf,
    ) -> Result<Self, Failure> {
        let fates = Arc::default();
        let mut host = Self { name, addr, wires, fates, folder, program, group: None };
        host.start_again().await?;
        Ok(host)
    }

    /// Starts it anew after [`kill`](Self::kill), and returns when it is ready.
    pub async fn start_again(&mut self) -> Result<(), Failure> {
        let status = Command::new(&self.program)
            .args(["-e", "nginx.log", "-p"])
            .arg(&self.folder)
            .arg("-c")
            .arg(self.folder.join("nginx.conf"))
            .env("IPCONFIG_CONFIG", self.folder.join("ipconfig.json"))
            .status()
            .await
            .context("start nginx")?;
        let log = self.folder.join("nginx.log");
        let failed = |what: String, tail| Failure::Part {
            part: self.name.clone(),
            what,
            log: log.clone(),
            tail,
        };
        if !status.success() {
            return Err(failed(format!("did not start ({status})"), self.log()));
        }
        let has_pid = until(Duration::from_secs(10), async || self.master().is_some()).await;
        let master = self.master().filter(|_| has_pid);
        let group = master.and_then(|pid| Pid::from_raw(pid as i32));
        if group.is_none() {
            return Err(failed("wrote no pid file".into(), self.log()));
        }
        self.group = group;
        let client = gateway::client();
        let page = gateway::uri(self.addr, "/ipconfig/healthz");
        if !until(Duration::from_secs(60), async || gateway::is_well(&client, &page).await).await {
            return Err(failed("is not ready".into(), self.log()));
        }
        self.fates.is_down.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The process id of its master.
    pub fn master(&self) -> Option<u32> {
        fs::read_to_string(self.folder.join("nginx.pid")).ok()?.trim().parse().ok()
    }

    /// The workers that take requests.
    pub fn workers(&self) -> Vec<u32> {
        let Some(master) = self.master() else { return Vec::new() };
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"));
        let children = children.unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.filter(|pid| {
            // nginx says there what each of its processes does.
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let title = String::from_utf8_lossy(&title);
            title.contains("worker process") && !title.contains("shutting down")
        })
        .collect()
    }

    /// The worker in which the plugin's thread is; `None` while there is none.
    pub fn worker_zero(&self) -> Option<u32> {
        self.workers().into_iter().find(|&pid| thread_named(pid, THREAD).is_some())
    }

    /// A worker without the thread.
    pub fn other_worker(&self) -> Option<u32> {
        self.workers().into_iter().find(|&pid| thread_named(pid, THREAD).is_none())
    }

    /// Whether all workers are there, and the thread.
    pub fn is_complete(&self) -> bool {
        self.workers().len() == WORKERS && self.worker_zero().is_some()
    }

    /// Sends a worker SIGKILL, and returns when it is no more.
    pub async fn kill_worker(&self, pid: u32) {
        // First: the traffic may see the connection break at once.
        self.fates.killed.lock().insert(pid);
        send(pid, Signal::KILL);
        until(Duration::from_secs(10), async || !self.workers().contains(&pid)).await;
    }

    /// Kills all of its processes at once.
    pub async fn kill(&mut self) {
        self.fates.is_down.store(true, Ordering::Relaxed);
        self.fates.killed.lock().extend(self.workers());
        self.kill_group();
        let _ = until(Duration::from_secs(10), async || self.is_gone()).await;
    }

    /// Tells it to start new workers in place of those that it has, and waits for
    /// nothing.
    pub fn reload(&self) {
        self.fates.retired.lock().extend(self.workers());
        if let Some(master) = self.master() {
            send(master, Signal::HUP);
        }
    }

    /// A binary upgrade to the same binary: USR2, for so long workers of both, then WINCH
    /// and QUIT for the old one. Whether it came to its end.
    pub async fn upgrade(&self, both: Duration) -> bool {
        let limit = Duration::from_secs(30);
        let Some(old) = self.master() else { return false };
        send(old, Signal::USR2);
        let is_new = async || self.master().is_some_and(|master| master != old);
        if !until(limit, is_new).await || !until(limit, async || self.is_complete()).await {
            return false;
        }
        sleep(both).await;
        self.retire_children_of(old);
        send(old, Signal::WINCH);
        let are_gone = async || {
            self.reap();
            children_of(old).iter().all(|&pid| Some(pid) == self.master())
        };
        if !until(limit, are_gone).await {
            return false;
        }
        send(old, Signal::QUIT);
        until(limit, async || {
            self.reap();
            !is_there(old)
        })
        .await
    }

    fn retire_children_of(&self, master: u32) {
        self.fates.retired.lock().extend(children_of(master));
    }

    /// What its API says of a service, over a connection of its own, so that any
    /// worker may answer.
    pub async fn view(&self, service: &str) -> Option<View> {
        let page = gateway::uri(self.addr, &format!("/ipconfig/v1/services/{service}"));
        let answer = gateway::get(&gateway::client(), page).await.ok()?;
        let is_ok = answer.status() == StatusCode::OK;
        serde_json::from_slice(answer.body()).ok().filter(|_| is_ok)
    }

    /// The sum of a metric's series.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let page = gateway::uri(self.addr, "/ipconfig/metrics");
        let answer = gateway::get(&gateway::client(), page).await.ok()?;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        let of_name = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next())??;
            value.parse::<f64>().ok()
        });
        of_name.fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
    }

    /// Processes that ended by a signal that nobody here sent, in the log's words.
    pub fn crashes(&self) -> Vec<String> {
        let log = self.log();
        let ends = log.lines().filter(|line| line.contains("exited on signal"));
        let of_others = ends.filter(|line| {
            let pid = line.split("process ").nth(1).and_then(|rest| rest.split(' ').next());
            let pid = pid.and_then(|pid| pid.parse().ok());
            !pid.is_some_and(|pid| self.fates.was_killed(pid))
        });
        of_others.map(str::to_owned).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("nginx.log")).unwrap_or_default()
    }

    /// Asks it to end, and kills what is left of it.
    pub async fn stop(&mut self) {
        if let Some(master) = self.master() {
            send(master, Signal::TERM);
            let _ = until(Duration::from_secs(5), async || self.is_gone()).await;
        }
        self.kill_group();
        let _ = until(Duration::from_secs(5), async || self.is_gone()).await;
    }

    fn kill_group(&self) {
        if let Some(group) = self.group {
            // It fails only if all have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Takes leave of those of its processes that ended: a daemon's are this program's
    /// to wait for, as it is a subreaper.
    fn reap(&self) {
        let Some(group) = self.group else { return };
        while let Ok(Some(_)) = waitpgid(group, WaitOptions::NOHANG) {}
    }

    /// Whether no process of its group is left.
    fn is_gone(&self) -> bool {
        self.reap();
        self.group.is_none_or(|group| test_kill_process_group(group).is_err())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_group();
        self.reap();
    }
}

/// Sends a signal; whether there was such a process.
pub fn send(pid: u32, signal: Signal) -> bool {
    Pid::from_raw(pid as i32).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

fn is_there(pid: u32) -> bool {
    Pid::from_raw(pid as i32).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// The processes that a process has started and that are left.
pub fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
