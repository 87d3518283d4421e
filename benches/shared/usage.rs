//! What a process uses, as the kernel counts it.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process, and those that it starts, open as many files as it may;
/// returns how many that is.
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    // `None` is no limit.
    if raised.is_ok() { maximum } else { current }.unwrap_or(u64::MAX)
}

/// The thread of a process that has this name; `None` while there is none, or no such
/// process.
pub fn thread_named(pid: u32, name: &str) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let is_named = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let thread = threads.flatten().find(is_named)?;
    thread.file_name().to_string_lossy().parse().ok()
}

/// CPU time that one thread has used so far.
///
/// # Panics
/// If it is gone.
pub fn cpu_time_of_thread(pid: u32, thread: u32) -> Duration {
    let path = format!("/proc/{pid}/task/{thread}/schedstat");
    let stat = fs::read_to_string(path).expect("a running thread");
    let nanos = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds on a core"))
}

/// A line of a process's status that counts memory, in MB of 10^6 bytes.
///
/// # Panics
/// If there is no such process or line.
pub fn memory_mb(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let parse = || {
        let value = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<f64>().ok()
    };
    let kib = parse().unwrap_or_else(|| panic!("no {line} of process {pid}"));
    kib * 1024.0 / 1e6
}
