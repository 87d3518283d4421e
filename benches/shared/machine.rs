//! What the figures were made on, and which core runs what.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support;

/// Who runs where, in whole request: the gateway shares its core with nobody if
/// there are two cores or more.
#[derive(Clone, Copy)]
pub struct Cores {
    pub gateway: Option<usize>,
    pub load: Option<usize>,
    pub backends: Option<usize>,
}

impl Cores {
    /// Of those that this process may use.
    pub fn assign() -> Self {
        match *allowed() {
            [] | [_] => Cores { gateway: None, load: None, backends: None },
            [one, two] => Cores { gateway: Some(one), load: Some(two), backends: Some(two) },
            [one, two, three, ..] => {
                Cores { gateway: Some(one), load: Some(two), backends: Some(three) }
            }
        }
    }
}

/// `program`, kept on one core if one is given.
pub fn command_on(core: Option<usize>, program: &Path) -> Command {
    let Some(core) = core else { return Command::new(program) };
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &core.to_string()]).arg(program);
    command
}

/// CPU time that a process has used so far, in all its threads.
///
/// # Panics
/// If there is no such process.
pub fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let of_thread = |thread: fs::DirEntry| {
        // Nanoseconds on a core, nanoseconds of waiting for one, time slices.
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    threads.flatten().filter_map(of_thread).sum()
}

/// nginx with the Lua module.
pub fn nginx() -> PathBuf {
    support::nginx::program().unwrap_or_else(|| "nginx".into())
}

/// Prints what the tables below were made on.
pub fn print() {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = allowed().len();
    let cores = if cores == 1 { "1 core".into() } else { format!("{cores} cores") };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let version = |program: &Path, flag| {
        first_line(program, &[flag]).unwrap_or_else(|| format!("no {}", program.display()))
    };
    println!("machine  {cores} of {}", model.map_or("an unnamed CPU", |(_, name)| name));
    println!("load     {} before the start", load.split(' ').next().unwrap_or("unknown"));
    println!("versions {}", version(&nginx(), "-v"));
    println!("         {}", version(Path::new("etcd"), "--version"));
    println!("         {}", version(Path::new("wrk"), "-v"));
}

/// The cores that this process may use.
fn allowed() -> Vec<usize> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let ranges = list.unwrap_or("0").trim().split(',');
    ranges
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

/// What a program says first, on either stream; `None` if it cannot be run.
pub fn first_line(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().map(str::to_owned)
}
