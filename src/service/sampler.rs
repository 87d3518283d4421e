//! How much of its CPU and memory a process uses.
//!
//! What it *may* use is the smallest limit of its cgroup and of that cgroup's
//! ancestors, or the host where none is smaller. CPU in use is the process's own,
//! all of its threads, or also that of all that it started, see [`Process`].
//! Memory in use is what counts against the limit it is told with: for a cgroup's
//! limit the memory of that very cgroup without the file cache that the kernel
//! would drop first, as the kubelet reckons it (the "working set" of
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>);
//! for the host's memory the resident set of the process.

mod cgroup;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use self::cgroup::{Cgroup, Mounts, memory_limit, quota_cores};

/// CPU and memory; what cannot be read is not there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Resources {
    /// CPU in use, in cores: the mean over the last period.
    pub cpu_used_cores: Option<f64>,
    /// CPU that may be used, in cores.
    pub cpu_limit_cores: Option<f64>,
    /// Memory in use, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// Memory that may be used, in bytes.
    pub memory_limit_bytes: Option<u64>,
}

/// Whom a [`Sampler`] measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The process that asks.
    Own,
    /// Another one of the same host, by its id as the asking one sees it.
    Id(u32),
    /// That one and all that it started, and what they started: a server may leave
    /// the work to its children. Pages that they share count for each of them.
    Tree(u32),
}

impl Process {
    /// Its directory in `/proc`.
    pub(super) fn dir(self, root: &Path) -> PathBuf {
        match self {
            Self::Own => root.join("proc/self"),
            Self::Id(pid) | Self::Tree(pid) => root.join(format!("proc/{pid}")),
        }
    }
}

/// Reads a process's use of CPU and memory from `/proc` and the cgroups, versions
/// 1 and 2.
#[derive(Debug)]
pub struct Sampler {
    root: PathBuf,
    process: Process,
    /// The process's directory in `/proc`.
    dir: PathBuf,
    mounts: Mounts,
    cpu: CpuMeter,
}

impl Sampler {
    /// Measures a process of this host.
    pub fn new(process: Process) -> Self {
        Self::under(Path::new("/"), process)
    }

    /// Measures a process with `/proc` and `/sys` under `root`, another host's
    /// for instance.
    pub fn under(root: &Path, process: Process) -> Self {
        let dir = process.dir(root);
        let cpu = CpuMeter::new(cpu_time(process, &members(root, process)));
        Self { root: root.to_owned(), process, dir, mounts: Mounts::read(root), cpu }
    }

    /// CPU and memory as of now. CPU in use is known half a second after the
    /// sampler was made.
    pub fn sample(&mut self) -> Resources {
        let cgroups = self.mounts.cgroups(&self.dir);
        let members = members(&self.root, self.process);
        let cores = self.cores().into_iter().chain(quota_cores(&cgroups));
        let (memory_used_bytes, memory_limit_bytes) = self.memory(&cgroups, &members);
        Resources {
            cpu_used_cores: self.cpu.used_cores(|| cpu_time(self.process, &members)),
            cpu_limit_cores: cores.min_by(f64::total_cmp),
            memory_used_bytes,
            memory_limit_bytes,
        }
    }

    /// Memory in use and the limit that it counts against.
    fn memory(&self, cgroups: &[Cgroup], members: &[PathBuf]) -> (Option<u64>, Option<u64>) {
        let host_bytes = kib_line(&self.root.join("proc/meminfo"), "MemTotal:");
        match memory_limit(cgroups) {
            Some(limit) if host_bytes.is_none_or(|host| limit.bytes < host) => {
                (limit.used_bytes, Some(limit.bytes))
            }
            _ => {
                let resident = |dir: &PathBuf| kib_line(&dir.join("status"), "VmRSS:");
                (members.iter().filter_map(resident).reduce(u64::saturating_add), host_bytes)
            }
        }
    }

    /// The cores that are there and that the process may run on.
    fn cores(&self) -> Option<f64> {
        let online = fs::read_to_string(self.root.join("sys/devices/system/cpu/online"));
        let online = online.ok().and_then(|text| cpu_list(&text));
        let status = fs::read_to_string(self.dir.join("status")).unwrap_or_default();
        let allowed = line_after(&status, "Cpus_allowed_list:").and_then(cpu_list);
        let count = match (online, allowed) {
            // The kernel allows for cores that a virtual machine might get one day.
            (Some(online), Some(allowed)) => {
                online.iter().filter(|core| allowed.contains(core)).count()
            }
            (one, other) => one.or(other)?.len(),
        };
        (count > 0).then_some(count as f64)
    }
}

/// The directories in `/proc` of those who are measured.
fn members(root: &Path, process: Process) -> Vec<PathBuf> {
    let Process::Tree(pid) = process else {
        return vec![process.dir(root)];
    };
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let parent = |pid| Some((pid, Stat::read(&Process::Id(pid).dir(root))?.parent));
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (child, its) in pids.filter(|other| *other != pid).filter_map(parent) {
        children.entry(its).or_default().push(child);
    }
    let mut tree = vec![pid];
    let mut seen = 0;
    while let Some(parent) = tree.get(seen) {
        tree.extend(children.remove(parent).unwrap_or_default());
        seen += 1;
    }
    tree.into_iter().map(|pid| Process::Id(pid).dir(root)).collect()
}

/// What they have used. In a tree a child that ends leaves its time with its
/// parent, so that the sum goes on growing.
fn cpu_time(process: Process, members: &[PathBuf]) -> Option<Duration> {
    let time = |stat: Stat| match process {
        Process::Tree(_) => stat.cpu + stat.ended_children_cpu,
        Process::Own | Process::Id(_) => stat.cpu,
    };
    members.iter().filter_map(|dir| Stat::read(dir)).map(time).reduce(|sum, more| sum + more)
}

/// Turns growing CPU time into a use of CPU.
#[derive(Debug)]
struct CpuMeter {
    /// The last reading, and when it was taken.
    read: Option<(Duration, Instant)>,
    used_cores: Option<f64>,
}

impl CpuMeter {
    /// The kernel counts in ticks of 10 ms, so that a shorter time says little.
    const PERIOD: Duration = Duration::from_millis(500);

    fn new(cpu: Option<Duration>) -> Self {
        Self { read: cpu.map(|cpu| (cpu, Instant::now())), used_cores: None }
    }

    /// The mean over the last period; `None` before the first is over.
    fn used_cores(&mut self, read: impl FnOnce() -> Option<Duration>) -> Option<f64> {
        let elapsed = self.read.map(|(_, at)| at.elapsed());
        if elapsed.is_none_or(|elapsed| elapsed >= Self::PERIOD) {
            let now = read().map(|cpu| (cpu, Instant::now()));
            let used = |before: Duration, after: Duration| {
                Some(after.saturating_sub(before).as_secs_f64() / elapsed?.as_secs_f64())
            };
            self.used_cores = self.read.zip(now).and_then(|((a, _), (b, _))| used(a, b));
            self.read = now;
        }
        self.used_cores
    }
}

/// What `/proc/<pid>/stat` tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// It has ended, and its parent has not asked how.
    pub is_dead: bool,
    /// The process that started it, or that has it since that one ended.
    pub parent: u32,
    /// User and system time.
    pub cpu: Duration,
    /// Of its children that ended, and theirs.
    pub ended_children_cpu: Duration,
    /// When it started, in ticks since the host did.
    pub started_ticks: u64,
}

impl Stat {
    /// Linux has 100 ticks a second in what it tells, on every platform of today.
    const TICK_MS: u64 = 10;

    /// Reads it from a process's directory; `None` if there is no such process.
    pub fn read(dir: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(dir.join("stat")).ok()?)
    }

    /// By the numbers of proc(5): field 3 is the state, 4 the parent, 14 and 15 the
    /// CPU time, 16 and 17 that of ended children, 22 the start.
    fn parse(text: &str) -> Option<Self> {
        // The name in field 2 may hold spaces; its parenthesis closes before field 3.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let time = |user, system| {
            let ticks = number(user)?.checked_add(number(system)?)?;
            ticks.checked_mul(Self::TICK_MS).map(Duration::from_millis)
        };
        Some(Self {
            is_dead: matches!(*fields.first()?, "Z" | "X" | "x"),
            parent: number(4)?.try_into().ok()?,
            cpu: time(14, 15)?,
            ended_children_cpu: time(16, 17)?,
            started_ticks: number(22)?,
        })
    }
}

/// The number of a line like `MemTotal:  24590020 kB`, in bytes.
fn kib_line(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let kib: u64 = line_after(&text, name)?.strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

/// What follows `name` in the line that begins with it.
fn line_after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The numbers of a list like `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<u32>> {
    /// More than Linux can be built for.
    const MAX_CORES: u32 = 1 << 16;
    let mut cores = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        cores.extend(first..=last.min(MAX_CORES));
    }
    Some(cores)
}

#[cfg(test)]
mod tests;
