//! Which cgroups a process is in, and what they allow it.
//!
//! ```text
//! /proc/<pid>/cgroup       4:memory:/docker/ab              0::/docker/ab
//! /proc/self/mountinfo     35 31 0:32 /docker/ab /sys/fs/cgroup/memory … - cgroup cgroup rw,memory
//! the directory            /sys/fs/cgroup/memory, and no ancestor is to be seen
//! ```
//!
//! The mounts are those of the process that asks, since it reads the files; the
//! kernel tells both lines as that process sees them, so that a container's own
//! `0::/` leads to the root of what is mounted in it.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The two generations of cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Version {
    /// A hierarchy of its own for each controller, or a few of them; those of them
    /// that limit what is measured here.
    V1 { controllers: Vec<String> },
    /// One hierarchy for all.
    V2,
}

/// Where the cgroups are mounted.
#[derive(Debug)]
pub(super) struct Mounts {
    mounts: Vec<Mount>,
}

#[derive(Debug)]
struct Mount {
    version: Version,
    /// The cgroup that is to be seen at the mount's point.
    cgroup: PathBuf,
    /// With the sampler's root before it.
    point: PathBuf,
}

/// One that a process is in: its own or an ancestor.
#[derive(Debug)]
pub(super) struct Cgroup {
    version: Version,
    dir: PathBuf,
}

/// Of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryLimit {
    pub bytes: u64,
    /// Of the cgroup that the limit is of.
    pub used_bytes: Option<u64>,
}

impl Mounts {
    /// Those that this process sees.
    pub fn read(root: &Path) -> Self {
        let text = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
        Self { mounts: text.lines().filter_map(|line| Mount::parse(root, line)).collect() }
    }

    /// The cgroups of the process whose directory in `/proc` is given; none that
    /// no mount shows.
    pub fn cgroups(&self, process: &Path) -> Vec<Cgroup> {
        let text = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        text.lines().flat_map(|line| self.cgroups_of_line(line).unwrap_or_default()).collect()
    }

    /// Of a line like `4:memory:/docker/ab` or `0::/docker/ab`.
    fn cgroups_of_line(&self, line: &str) -> Option<Vec<Cgroup>> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, Path::new(fields.next()?));
        // One outside of what this process may see begins with `/..`.
        if path.components().any(|part| part == Component::ParentDir) {
            return None;
        }
        let is_own = |mount: &&Mount| match &mount.version {
            Version::V2 => controllers.is_empty(),
            Version::V1 { controllers: mounted } => {
                controllers.split(',').any(|name| mounted.iter().any(|it| it == name))
            }
        };
        let own = |mount: &Mount| Some(mount.levels(path.strip_prefix(&mount.cgroup).ok()?));
        self.mounts.iter().filter(is_own).find_map(own)
    }
}

impl Mount {
    /// Of a line of proc(5)'s mountinfo, if it mounts cgroups.
    fn parse(root: &Path, line: &str) -> Option<Self> {
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3).map(unescape);
        let mut system = system.split(' ');
        let version = match system.next()? {
            "cgroup2" => Version::V2,
            "cgroup" => {
                let options = system.nth(1)?.split(',');
                let controllers = options.filter(|name| ["cpu", "memory"].contains(name));
                Version::V1 { controllers: controllers.map(str::to_owned).collect() }
            }
            _ => return None,
        };
        let (cgroup, point) = (place.next()?.into(), place.next()?);
        Some(Self { version, cgroup, point: root.join(point.trim_start_matches('/')) })
    }

    /// The cgroup at `path` below the mount's point, and its ancestors.
    fn levels(&self, path: &Path) -> Vec<Cgroup> {
        let leaf = self.point.join(path);
        let dirs = leaf.ancestors().take_while(|dir| dir.starts_with(&self.point));
        dirs.map(|dir| Cgroup { version: self.version.clone(), dir: dir.to_owned() }).collect()
    }
}

/// A path as mountinfo has it: what would break a line is written in octal, as
/// in `\040` for a space.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

impl Cgroup {
    /// The text of one of its files, without the line's end.
    fn read(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number<T: std::str::FromStr>(&self, file: &str) -> Option<T> {
        self.read(file)?.parse().ok()
    }

    /// CPU time over the time in which it may be used.
    fn quota_cores(&self) -> Option<f64> {
        let (quota, period) = match self.version {
            // `50000 100000`, or `max 100000`.
            Version::V2 => {
                let text = self.read("cpu.max")?;
                let (quota, period) = text.split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            // A quota of -1 is none.
            Version::V1 { .. } => {
                (self.number::<f64>("cpu.cfs_quota_us")?, self.number::<f64>("cpu.cfs_period_us")?)
            }
        };
        let cores: f64 = quota / period;
        (cores.is_finite() && cores > 0.0).then_some(cores)
    }

    fn memory_limit(&self) -> Option<MemoryLimit> {
        let (limit, used, cache) = match self.version {
            // A limit of `max` is none.
            Version::V2 => ("memory.max", "memory.current", "inactive_file "),
            // Without a limit it is the largest number of pages: more than any host has.
            Version::V1 { .. } => {
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
            }
        };
        // 0 is what nobody could run with, and nobody could divide by.
        let bytes = self.number(limit).filter(|bytes| *bytes > 0)?;
        let used_bytes = self.number::<u64>(used).map(|used| {
            let stat = self.read("memory.stat").unwrap_or_default();
            let cache = super::line_after(&stat, cache).and_then(|bytes| bytes.parse().ok());
            used.saturating_sub(cache.unwrap_or(0))
        });
        Some(MemoryLimit { bytes, used_bytes })
    }
}

/// The smallest of the cgroups' CPU quotas, in cores.
pub(super) fn quota_cores(cgroups: &[Cgroup]) -> Option<f64> {
    cgroups.iter().filter_map(Cgroup::quota_cores).min_by(f64::total_cmp)
}

/// The smallest of the cgroups' memory limits; of equal ones the nearest to the
/// process.
pub(super) fn memory_limit(cgroups: &[Cgroup]) -> Option<MemoryLimit> {
    cgroups.iter().filter_map(Cgroup::memory_limit).min_by_key(|limit| limit.bytes)
}
