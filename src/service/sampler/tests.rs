use super::*;
use tempfile::TempDir;
use tokio::time::advance;

const MIB: u64 = 1 << 20;

/// `/proc` and `/sys` of a host with 4 cores and 8 GiB, where process 7 has a
/// resident set of 100 MiB.
struct Host {
    root: TempDir,
}

impl Host {
    fn new(mountinfo: &str, cgroup: &str) -> Self {
        let host = Self { root: tempfile::tempdir().unwrap() };
        host.write("proc/meminfo", "MemFree: 1 kB\nMemTotal:  8388608 kB\n");
        host.write("sys/devices/system/cpu/online", "0-3\n");
        host.write("proc/7/status", "Name:\tx\nVmRSS:\t  102400 kB\nCpus_allowed_list:\t0-127\n");
        host.write("proc/7/stat", &stat(0));
        host.write("proc/7/cgroup", cgroup);
        host.write("proc/self/mountinfo", mountinfo);
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes files of one directory, each with its text.
    fn write_all(&self, dir: &str, files: &[(&str, &str)]) {
        files.iter().for_each(|(file, text)| self.write(&format!("{dir}/{file}"), text));
    }

    fn sampler(&self) -> Sampler {
        Sampler::under(self.root.path(), Process::Id(7))
    }

    /// CPU limit in cores; memory in use and its limit in MiB.
    fn limits(&self) -> (Option<f64>, Option<u64>, Option<u64>) {
        let it = self.sampler().sample();
        let mib = |bytes: u64| bytes / MIB;
        (it.cpu_limit_cores, it.memory_used_bytes.map(mib), it.memory_limit_bytes.map(mib))
    }
}

/// Process 7's stat, with a name that is hard to read.
fn stat(ticks: u64) -> String {
    format!("7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 {ticks} 5 3 4 20 0 1 0 4242 1000 200\n")
}

const HOST: (Option<f64>, Option<u64>, Option<u64>) = (Some(4.0), Some(100), Some(8192));

const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
";

const GIB_USED: [(&str, &str); 2] =
    [("memory.current", "1073741824\n"), ("memory.stat", "anon 5\ninactive_file 104857600\n")];

#[test]
fn without_cgroups_the_host_is_the_limit() {
    assert_eq!(Host::new("", "").limits(), HOST);
}

#[test]
fn version_2_limits_and_uses_are_those_of_the_cgroup() {
    let host = Host::new(V2, "0::/a/b\n");
    let dir = "sys/fs/cgroup/a/b";
    host.write_all(dir, &[("cpu.max", "150000 100000\n"), ("memory.max", "2147483648\n")]);
    host.write_all(dir, &GIB_USED);
    // A gibibyte without the 100 MiB of files that the kernel would drop first.
    assert_eq!(host.limits(), (Some(1.5), Some(924), Some(2048)));
}

#[test]
fn max_is_no_limit() {
    let host = Host::new(V2, "0::/a\n");
    host.write_all("sys/fs/cgroup/a", &[("cpu.max", "max 100000\n"), ("memory.max", "max\n")]);
    host.write_all("sys/fs/cgroup/a", &GIB_USED);
    assert_eq!(host.limits(), HOST);
}

#[test]
fn the_tightest_ancestor_is_the_limit_and_its_memory_is_what_is_told() {
    let host = Host::new(V2, "0::/pod/app\n");
    let app = [("cpu.max", "300000 100000"), ("memory.max", "4294967296"), ("memory.current", "1")];
    host.write_all("sys/fs/cgroup/pod/app", &app);
    host.write_all(
        "sys/fs/cgroup/pod",
        &[("cpu.max", "50000 100000"), ("memory.max", "2147483648")],
    );
    host.write_all("sys/fs/cgroup/pod", &GIB_USED);
    assert_eq!(host.limits(), (Some(0.5), Some(924), Some(2048)));
}

#[test]
fn limits_above_what_the_host_has_are_none() {
    let host = Host::new(V2, "0::/a\n");
    let limits = [("cpu.max", "1600000 100000"), ("memory.max", "17179869184")];
    host.write_all("sys/fs/cgroup/a", &limits);
    host.write_all("sys/fs/cgroup/a", &GIB_USED);
    assert_eq!(host.limits(), HOST);
}

#[test]
fn in_a_container_the_root_of_its_own_cgroups_limits_it() {
    let host = Host::new(V2, "0::/\n");
    host.write_all("sys/fs/cgroup", &[("cpu.max", "200000 100000"), ("memory.max", "1073741824")]);
    assert_eq!(host.limits(), (Some(2.0), None, Some(1024)));
}

#[test]
fn version_1_has_a_hierarchy_for_each_controller() {
    let host = Host::new(V1, "3:memory:/m\n2:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/u\n");
    let cpu = [("cpu.cfs_quota_us", "250000\n"), ("cpu.cfs_period_us", "100000\n")];
    host.write_all("sys/fs/cgroup/cpu,cpuacct/c", &cpu);
    let memory = [
        ("memory.limit_in_bytes", "2147483648\n"),
        ("memory.usage_in_bytes", "1073741824\n"),
        ("memory.stat", "inactive_file 1\ntotal_inactive_file 104857600\n"),
    ];
    host.write_all("sys/fs/cgroup/memory/m", &memory);
    assert_eq!(host.limits(), (Some(2.5), Some(924), Some(2048)));
}

#[test]
fn version_1_writes_no_limit_as_minus_one_and_as_a_huge_number() {
    let host = Host::new(V1, "3:memory:/m\n2:cpu,cpuacct:/c\n");
    let cpu = [("cpu.cfs_quota_us", "-1\n"), ("cpu.cfs_period_us", "100000\n")];
    host.write_all("sys/fs/cgroup/cpu,cpuacct/c", &cpu);
    let memory = [
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.usage_in_bytes", "1073741824\n"),
    ];
    host.write_all("sys/fs/cgroup/memory/m", &memory);
    assert_eq!(host.limits(), HOST);
}

#[test]
fn in_a_container_of_version_1_only_its_own_cgroup_is_mounted() {
    let mount = "33 31 0:30 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    let host = Host::new(mount, "3:memory:/docker/ab/child\n");
    host.write("sys/fs/cgroup/memory/child/memory.limit_in_bytes", "4294967296");
    host.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824");
    assert_eq!(host.limits().2, Some(1024));
}

#[test]
fn a_hybrid_host_has_both_versions_and_version_1_limits() {
    let unified = "35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let host = Host::new(&format!("{unified}{V1}"), "3:memory:/m\n0::/m\n");
    host.write("sys/fs/cgroup/unified/m/cgroup.procs", "7\n");
    host.write("sys/fs/cgroup/memory/m/memory.limit_in_bytes", "1073741824");
    assert_eq!(host.limits(), (Some(4.0), None, Some(1024)));
}

#[test]
fn a_cgroup_that_is_not_to_be_seen_from_here_limits_nothing() {
    let elsewhere = "30 23 0:26 /b /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    for (mounts, cgroup) in [(elsewhere, "0::/bc\n"), (V2, "0::/../b\n")] {
        let host = Host::new(mounts, cgroup);
        host.write("sys/fs/cgroup/memory.max", "1073741824");
        host.write("sys/fs/b/memory.max", "1073741824");
        assert_eq!(host.limits(), HOST, "{cgroup}");
    }
}

#[test]
fn a_mount_point_with_a_space_is_found() {
    let mount = "30 23 0:26 / /my\\040cgroups rw - cgroup2 cgroup2 rw\n";
    let host = Host::new(mount, "0::/a\n");
    host.write("my cgroups/a/memory.max", "1073741824");
    assert_eq!(host.limits().2, Some(1024));
}

#[test]
fn garbage_limits_nothing() {
    let host =
        Host::new(&format!("\n - \nx - cgroup2\n1 2 3 - cgroup\n{V2}"), "\n0\n0:\n::\n0::/a\n");
    for (cpu, memory) in [("", ""), ("a b", "-1"), ("0 0", "0"), ("1", "1.5"), ("-5 1", "\u{fffd}")]
    {
        host.write_all("sys/fs/cgroup/a", &[("cpu.max", cpu), ("memory.max", memory)]);
        assert_eq!(host.limits(), HOST, "{cpu:?} {memory:?}");
    }
}

#[test]
fn what_cannot_be_read_is_not_told() {
    let root = tempfile::tempdir().unwrap();
    let mut sampler = Sampler::under(root.path(), Process::Id(7));
    assert_eq!(sampler.sample(), Resources::default());
}

#[test]
fn cores_that_the_process_may_not_run_on_are_none_of_its() {
    let host = Host::new("", "");
    host.write("proc/7/status", "Cpus_allowed_list:\t1,3-4\n");
    assert_eq!(host.limits().0, Some(2.0), "1 and 3; 4 is not there");
}

#[tokio::test(start_paused = true)]
async fn cpu_in_use_is_the_mean_over_the_last_period() {
    let host = Host::new("", "");
    let mut sampler = host.sampler();
    let mut used_at = |ticks| {
        host.write("proc/7/stat", &stat(ticks));
        sampler.sample().cpu_used_cores
    };
    assert_eq!(used_at(10), None, "no period is over");
    advance(Duration::from_secs(2)).await;
    assert_eq!(used_at(300), Some(1.5));
    advance(Duration::from_millis(499)).await;
    assert_eq!(used_at(400), Some(1.5), "too early for news");
    advance(Duration::from_millis(1)).await;
    assert_eq!(used_at(350), Some(1.0));
    advance(Duration::from_secs(1)).await;
    assert_eq!(used_at(100), Some(0.0), "never below 0");
}

#[tokio::test(start_paused = true)]
async fn a_tree_uses_what_all_of_it_use_and_loses_nothing_when_a_child_ends() {
    let host = Host::new("", "");
    let start = |pid: u32, parent: u32, ticks: u64, ended_children_ticks: u64| {
        let times = format!("{ticks} 0 {ended_children_ticks} 0");
        let stat = format!("{pid} (x) S {parent} 0 0 0 0 0 0 0 0 0 {times} 20 0 1 0 9\n");
        host.write(&format!("proc/{pid}/stat"), &stat);
        host.write(&format!("proc/{pid}/status"), "VmRSS:\t 1024 kB\n");
    };
    // 7 started 8, which started 9; 10 is a stranger.
    start(7, 1, 0, 0);
    start(9, 8, 100, 0);
    start(8, 7, 100, 0);
    start(10, 1, 0, 0);
    let mut sampler = Sampler::under(host.root.path(), Process::Tree(7));
    assert_eq!(sampler.sample().memory_used_bytes, Some(3 * MIB));

    advance(Duration::from_secs(1)).await;
    start(10, 1, 1000, 0);
    start(8, 7, 150, 0);
    start(9, 8, 200, 0);
    assert_eq!(sampler.sample().cpu_used_cores, Some(1.5));

    advance(Duration::from_secs(1)).await;
    fs::remove_dir_all(host.root.path().join("proc/9")).unwrap();
    start(8, 7, 200, 200);
    let after = sampler.sample();
    assert_eq!(after.cpu_used_cores, Some(0.5));
    assert_eq!(after.memory_used_bytes, Some(2 * MIB));
}

#[test]
fn stat_is_read_past_a_name_with_spaces_and_parentheses() {
    let expected = Stat {
        is_dead: false,
        parent: 1,
        cpu: Duration::from_millis(1050),
        ended_children_cpu: Duration::from_millis(70),
        started_ticks: 4242,
    };
    assert_eq!(Stat::parse(&stat(100)), Some(expected));
    assert!(Stat::parse("7 (x) Z 1 7 7 0 -1 0 0 0 0 0 1 2 0 0 20 0 1 0 9").unwrap().is_dead);
    // 64 cores for three months.
    let busy = Stat::parse(&stat(50_000_000_000)).unwrap().cpu;
    assert_eq!(busy.as_secs(), 500_000_000);
    for garbage in ["", "7 (x", "7 (x) S 1 2", "7 (x)"] {
        assert_eq!(Stat::parse(garbage), None, "{garbage:?}");
    }
}

#[test]
fn this_process_uses_cpu_and_memory_within_limits() {
    let mut sampler = Sampler::new(Process::Own);
    let end = Instant::now() + 2 * CpuMeter::PERIOD;
    while Instant::now() < end {
        std::hint::black_box((0..1000).fold(0_u64, |sum, number| sum ^ number));
    }
    let it = sampler.sample();
    assert!(it.cpu_used_cores.unwrap() > 0.0, "{it:?}");
    assert!(it.cpu_limit_cores.unwrap() > 0.0, "{it:?}");
    assert!(it.memory_used_bytes.unwrap() > 0, "{it:?}");
    assert!(it.memory_limit_bytes.unwrap() > 0, "{it:?}");
}
