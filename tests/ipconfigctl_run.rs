//! `ipconfigctl run` as an init system sees it: real processes, real signals and a
//! real etcd, which fails.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{Connection, Connector, Entry};
use ipconfig::model::Instance;
use ipconfig::wire::decode_instance;
use support::{Etcd, free_port, wait_until};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const KEY: &str = "/ipconfig/v1/instances/chat/chat-1";

/// Longer than anything here takes, even on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(30);

/// Many of a keeper's pauses: time enough for what must not happen.
const LINGER: Duration = Duration::from_secs(2);

/// Says that it runs, and what signals it gets; ends when it is told to.
const COMMAND: &str = r#"
    trap 'touch terminated; while [ ! -e go ]; do sleep 0.02; done; exit 7' TERM
    trap 'touch hung-up' HUP
    echo $$ > pid.new; mv pid.new pid
    while [ ! -e end ]; do sleep 0.02; done
    exit 5
"#;

/// `ipconfigctl run` around a shell script, in a directory of its own. The port
/// that it opens is the test's to open.
struct Run {
    child: Child,
    dir: TempDir,
}

impl Run {
    fn start(endpoint: &str, addr: SocketAddr, options: &[&str], script: &str) -> Self {
        let dir = TempDir::with_prefix("ipconfig-run-").expect("a temporary directory");
        // What the options do not say.
        let defaults = [["--ttl", "2s"], ["--drain-wait", "0s"]];
        let defaults = defaults.into_iter().filter(|[name, _]| !options.contains(name)).flatten();
        let child = Command::new(env!("CARGO_BIN_EXE_ipconfigctl"))
            .current_dir(dir.path())
            .env_remove("IPCONFIG_CONFIG")
            .args(["run", "--endpoints", endpoint, "--service", "chat", "--id", "chat-1"])
            .args(["--addr", &addr.to_string()])
            .args(defaults)
            .args(options)
            .args(["--", "sh", "-c", script])
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).expect("a file in the directory"))
            .spawn()
            .expect("ipconfigctl is built beside its tests");
        Self { child, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    fn touch(&self, name: &str) {
        fs::write(self.path(name), "").expect("a file in the directory");
    }

    async fn wait_for(&self, name: &str) {
        let what = format!("the command makes the file {name}");
        wait_until(&what, PATIENCE, async || self.has(name)).await;
    }

    /// The command's process id, once it runs.
    async fn command_pid(&self) -> String {
        self.wait_for("pid").await;
        fs::read_to_string(self.path("pid")).expect("a file of the command's").trim().to_owned()
    }

    fn signal(&self, name: &str) {
        send(name, &self.child.id().expect("it runs").to_string());
    }

    /// What ipconfigctl logged, and what the command printed as an error.
    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("a log")
    }

    /// Waits for the end; returns the exit code and the log.
    async fn end(mut self) -> (i32, String) {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it does not end; its log:\n{}", self.log()));
        let code = status.expect("it can be waited for").code();
        (code.expect("it exits"), self.log())
    }

    async fn exit_code(self) -> i32 {
        self.end().await.0
    }
}

impl Drop for Run {
    /// A test that failed leaves nothing behind.
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let pid = fs::read_to_string(self.path("pid")).unwrap_or_default();
        let works_in = fs::read_link(format!("/proc/{}/cwd", pid.trim()));
        // It is still the command, and no other process of that number.
        if works_in.is_ok_and(|dir| dir == self.dir.path()) {
            send("KILL", pid.trim());
        }
    }
}

fn send(name: &str, pid: &str) {
    // A command, since the system call would need unsafe code.
    let script = r#"kill -s "$1" "$2""#;
    let status = std::process::Command::new("sh").args(["-c", script, "sh", name, pid]).status();
    assert!(status.expect("a shell").success(), "signal {name} to process {pid}");
}

fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // One that ended and was not waited for is a Z.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn connect(etcd: &Etcd) -> Connection {
    let config = EtcdConfig { endpoints: vec![etcd.endpoint()], ..Default::default() };
    Connector::new(&config).connect().await.expect("etcd answers")
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", free_port())).await.expect("a free port");
    let addr = listener.local_addr().expect("a bound address");
    (listener, addr)
}

async fn entry(etcd: &Connection) -> Option<Entry> {
    etcd.get(KEY).await.expect("etcd answers")
}

/// What is registered; `None`: nothing.
async fn instance(etcd: &Connection) -> Option<Instance> {
    let entry = entry(etcd).await?;
    Some(decode_instance("chat-1", &entry.value).expect("a good record"))
}

async fn registered(etcd: &Connection, addr: SocketAddr) -> Entry {
    let is_there = async || instance(etcd).await.is_some_and(|it| it.addr == addr);
    wait_until(&format!("{addr} is registered"), PATIENCE, is_there).await;
    entry(etcd).await.expect("it is registered")
}

/// Writes something else; returns the number of that write, of all that etcd has
/// seen.
async fn count_writes(etcd: &Connection) -> i64 {
    etcd.put("/counter", "", None).await.expect("etcd answers")
}

// ------------------------------------------------------------- the order of things

#[tokio::test]
async fn a_command_is_registered_when_it_accepts_connections_and_not_before() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let options = ["--weight", "2.5", "--zone", "a", "--label", "version=1.4", "--status"];
    let options = [&options[..], &["grpc://127.0.0.1:9101"]].concat();
    let run = Run::start(&etcd.endpoint(), addr, &options, COMMAND);
    run.command_pid().await;
    assert_eq!(instance(&client).await, None);

    let _listener = TcpListener::bind(addr).await.unwrap();
    let found = registered(&client, addr).await;
    assert!(found.lease.is_some());
    let found = decode_instance("chat-1", &found.value).unwrap();
    assert_eq!((found.weight, found.zone.as_str(), found.drain), (2.5, "a", false));
    assert_eq!(found.labels["version"], "1.4");
    assert_eq!(found.status.unwrap().to_string(), "grpc://127.0.0.1:9101");
    run.touch("end");
    run.end().await;
}

#[tokio::test]
async fn sigterm_drains_then_signals_then_deregisters_and_exits_as_the_command_does() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &["--drain-wait", "1h"], COMMAND);
    run.command_pid().await;
    let before = registered(&client, addr).await;

    run.signal("TERM");
    let drains = async || instance(&client).await.is_some_and(|it| it.drain);
    wait_until("the instance drains", PATIENCE, drains).await;
    assert_eq!(entry(&client).await.unwrap().lease, before.lease);
    assert!(!run.has("terminated"), "signalled before the wait was over");

    run.signal("TERM"); // the wait is over
    run.wait_for("terminated").await;
    assert!(drains().await, "deregistered before the command ended");
    run.touch("go");
    assert_eq!(run.exit_code().await, 7);
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn the_lease_is_kept_while_requests_under_way_are_waited_for() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &["--drain-wait", "1h"], COMMAND);
    run.command_pid().await;
    let lease = registered(&client, addr).await.lease;
    run.signal("INT");
    let drains = async || instance(&client).await.is_some_and(|it| it.drain);
    wait_until("the instance drains", PATIENCE, drains).await;

    // Longer than the lease lives by itself; etcd gives it 2 s and a little.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let found = entry(&client).await.expect("it is still registered");
    assert_eq!(found.lease, lease);
    run.touch("end");
    assert_eq!(run.exit_code().await, 5);
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn a_command_that_does_not_end_by_its_signal_is_killed_with_what_it_started() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let script = r#"
        sh -c 'trap "" TERM; echo $$ > pid.new; mv pid.new pid; while :; do sleep 0.02; done' &
        trap "" TERM
        while :; do wait; done
    "#;
    let run = Run::start(&etcd.endpoint(), addr, &["--stop-wait", "200ms"], script);
    let grandchild = run.command_pid().await;
    registered(&client, addr).await;
    run.signal("TERM");
    assert_eq!(run.exit_code().await, 128 + 9);
    assert_eq!(instance(&client).await, None);
    wait_until("the rest is killed too", PATIENCE, async || !is_running(&grandchild)).await;
}

#[tokio::test]
async fn a_third_sigterm_kills() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let waits = ["--drain-wait", "1h", "--stop-wait", "1h"];
    let run = Run::start(&etcd.endpoint(), addr, &waits, COMMAND);
    run.command_pid().await;
    registered(&client, addr).await;
    run.signal("TERM");
    let drains = async || instance(&client).await.is_some_and(|it| it.drain);
    wait_until("the instance drains", PATIENCE, drains).await;
    run.signal("TERM");
    run.wait_for("terminated").await;
    run.signal("TERM");
    assert_eq!(run.exit_code().await, 128 + 9);
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn a_command_that_ends_by_itself_is_deregistered_at_once_and_its_code_passed_on() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    for (end, code) in [("file", 5), ("KILL", 128 + 9)] {
        let run = Run::start(&etcd.endpoint(), addr, &["--drain-wait", "1h"], COMMAND);
        let pid = run.command_pid().await;
        registered(&client, addr).await;
        match end {
            "file" => run.touch("end"),
            signal => send(signal, &pid),
        }
        assert_eq!(run.exit_code().await, code);
        assert_eq!(instance(&client).await, None);
    }
}

#[tokio::test]
async fn a_command_that_never_accepts_is_stopped_and_is_a_failure() {
    let etcd = Etcd::start().await;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    // Time for the shell to set its traps.
    let run = Run::start(&etcd.endpoint(), addr, &["--start-timeout", "2s"], COMMAND);
    run.touch("go");
    let pid = run.command_pid().await;
    run.wait_for("terminated").await;
    let (code, error) = run.end().await;
    assert_eq!(code, 1);
    assert!(error.contains(&format!("nothing accepts connections at {addr}")), "{error}");
    assert!(!is_running(&pid));
    assert_eq!(instance(&connect(&etcd).await).await, None);
}

#[tokio::test]
async fn a_command_that_opens_its_port_while_it_is_stopped_is_never_registered() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    for (start_timeout, code) in [("1h", 7), ("2s", 1)] {
        let writes = count_writes(&client).await;
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let run = Run::start(&etcd.endpoint(), addr, &["--start-timeout", start_timeout], COMMAND);
        run.command_pid().await;
        if start_timeout == "1h" {
            run.signal("TERM");
        }
        run.wait_for("terminated").await;
        let _listener = TcpListener::bind(addr).await.unwrap();
        sleep(LINGER).await;
        run.touch("go");
        assert_eq!(run.exit_code().await, code);
        assert_eq!(count_writes(&client).await, writes + 1, "it was registered");
    }
}

#[tokio::test]
async fn a_command_that_ends_before_it_accepts_is_not_registered_and_its_code_passed_on() {
    let etcd = Etcd::start().await;
    let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let run = Run::start(&etcd.endpoint(), addr, &[], "exit 9");
    assert_eq!(run.exit_code().await, 9);
}

#[tokio::test]
async fn signals_that_concern_the_command_alone_are_passed_on() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    run.command_pid().await;
    registered(&client, addr).await;
    run.signal("HUP");
    run.wait_for("hung-up").await;
    assert!(!instance(&client).await.unwrap().drain);
    run.touch("end");
    assert_eq!(run.exit_code().await, 5);
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_does_not_reach_the_command() {
    let etcd = Etcd::start().await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    let pid = run.command_pid().await;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    // State, parent, process group.
    assert_eq!(fields.split(' ').nth(2), Some(pid.as_str()));
    run.touch("end");
    run.end().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_told_as_shells_do() {
    let run = |args: &[&str]| {
        let args = [&["run", "--service", "chat", "--addr", "127.0.0.1:1", "--"], args].concat();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_ipconfigctl"))
            .env_remove("IPCONFIG_CONFIG")
            .args(args)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, error) = run(&["/nonexistent/command"]);
    assert_eq!(code, Some(127));
    assert!(error.contains("/nonexistent/command"), "{error}");
    assert_eq!(run(&["/"]).0, Some(126));
    assert_eq!(run(&[]).0, Some(2));
}

#[tokio::test]
async fn an_address_outside_of_allow_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("ipconfig.json");
    fs::write(&config, r#"{"services": {}, "allow": ["10.0.0.0/8"]}"#).unwrap();
    let (_listener, addr) = listener().await;
    let options = ["--config", config.to_str().unwrap()];
    let run = Run::start("http://127.0.0.1:1", addr, &options, COMMAND);
    let (code, error) = run.end().await;
    assert_eq!(code, 64);
    assert!(error.contains(&format!("{addr} is outside of allow: 10.0.0.0/8")), "{error}");
}

// ------------------------------------------------------------------ etcd's failures

#[tokio::test]
async fn a_lease_that_was_revoked_is_granted_anew() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    let pid = run.command_pid().await;
    let first = registered(&client, addr).await;

    client.revoke_lease(first.lease.unwrap()).await.unwrap();
    let anew = async || entry(&client).await.is_some_and(|second| second.lease != first.lease);
    wait_until("it is registered under another lease", PATIENCE, anew).await;
    assert!(is_running(&pid));
    run.touch("end");
    assert_eq!(run.exit_code().await, 5);
}

#[tokio::test]
async fn etcd_killed_restarted_and_wiped_has_the_registration_again_and_the_command_untouched() {
    let mut etcd = Etcd::start().await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    let pid = run.command_pid().await;
    registered(&connect(&etcd).await, addr).await;

    etcd.restart().await;
    let client = connect(&etcd).await;
    registered(&client, addr).await;
    etcd.wipe();
    etcd.restart().await;
    let client = connect(&etcd).await;
    registered(&client, addr).await;

    assert!(is_running(&pid) && !run.has("terminated"));
    run.touch("end");
    let (code, log) = run.end().await;
    assert_eq!(code, 5, "{log}");
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn without_etcd_a_command_starts_and_stops_as_it_would_alone() {
    let (_listener, addr) = listener().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let run = Run::start(&nobody, addr, &["--drain-wait", "1h"], COMMAND);
    run.command_pid().await;
    run.touch("go");
    run.signal("TERM");
    assert_eq!(run.exit_code().await, 7);
}

#[tokio::test]
async fn a_command_that_started_without_etcd_is_registered_when_etcd_is_there() {
    let mut etcd = Etcd::start().await;
    etcd.kill();
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    run.command_pid().await;
    etcd.restart().await;
    registered(&connect(&etcd).await, addr).await;
    run.touch("end");
    assert_eq!(run.exit_code().await, 5);
}

#[tokio::test]
async fn a_command_that_is_stopped_without_etcd_is_not_registered_when_etcd_is_back() {
    let mut etcd = Etcd::start().await;
    let writes = count_writes(&connect(&etcd).await).await;
    etcd.kill();
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    run.command_pid().await;
    let failed = async || run.log().contains("failed to connect");
    wait_until("it misses etcd", PATIENCE, failed).await;
    run.signal("TERM");
    run.wait_for("terminated").await;

    etcd.restart().await;
    sleep(LINGER).await;
    run.touch("go");
    assert_eq!(run.exit_code().await, 7);
    let client = connect(&etcd).await;
    assert_eq!(count_writes(&client).await, writes + 1, "it was registered");
}

#[tokio::test]
async fn a_drain_that_etcd_was_not_there_for_is_written_when_it_is_back() {
    let mut etcd = Etcd::start().await;
    let (_listener, addr) = listener().await;
    let options = ["--ttl", "60s", "--drain-wait", "1h"];
    let run = Run::start(&etcd.endpoint(), addr, &options, COMMAND);
    run.command_pid().await;
    registered(&connect(&etcd).await, addr).await;
    etcd.kill();
    run.signal("TERM");
    let failed = async || run.log().contains("failed to drain");
    wait_until("it is told", PATIENCE, failed).await;

    etcd.restart().await;
    let client = connect(&etcd).await;
    let drains = async || instance(&client).await.is_some_and(|it| it.drain);
    wait_until("the instance drains", PATIENCE, drains).await;
    run.touch("end");
    assert_eq!(run.exit_code().await, 5);
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn an_etcd_that_hangs_does_not_hold_up_the_end() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    run.command_pid().await;
    registered(&client, addr).await;
    etcd.pause();
    run.touch("go");
    run.signal("TERM");
    let (code, log) = run.end().await;
    etcd.resume();
    assert_eq!(code, 7, "{log}");
    assert!(log.contains("goes when its lease ends"), "{log}");
    wait_until("it goes", PATIENCE, async || instance(&client).await.is_none()).await;
}

// -------------------------------------------------------------------- successors

#[tokio::test]
async fn the_end_of_a_predecessor_leaves_its_successor_registered() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let ((_one, old_addr), (_other, new_addr)) = (listener().await, listener().await);
    let old = Run::start(&etcd.endpoint(), old_addr, &[], COMMAND);
    old.command_pid().await;
    registered(&client, old_addr).await;
    let new = Run::start(&etcd.endpoint(), new_addr, &[], COMMAND);
    new.command_pid().await;
    let before = registered(&client, new_addr).await;

    old.touch("go");
    old.signal("TERM");
    assert_eq!(old.exit_code().await, 7);
    assert_eq!(entry(&client).await, Some(before));
    new.touch("end");
    let (_, log) = new.end().await;
    assert!(log.contains(&format!("takes the place of {old_addr}")), "{log}");
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn a_predecessor_that_lost_its_lease_does_not_push_its_successor_out() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let ((_one, old_addr), (_other, new_addr)) = (listener().await, listener().await);
    let old = Run::start(&etcd.endpoint(), old_addr, &[], COMMAND);
    old.command_pid().await;
    let lease = registered(&client, old_addr).await.lease.unwrap();
    let new = Run::start(&etcd.endpoint(), new_addr, &[], COMMAND);
    new.command_pid().await;
    let before = registered(&client, new_addr).await;

    client.revoke_lease(lease).await.unwrap();
    let waits = async || old.log().contains("waits until it has gone");
    wait_until("the predecessor waits", PATIENCE, waits).await;
    assert_eq!(entry(&client).await, Some(before));

    // When the successor has gone, the predecessor is all there is.
    new.touch("end");
    new.end().await;
    registered(&client, old_addr).await;
    old.touch("end");
    old.end().await;
}

#[tokio::test]
async fn an_instance_whose_successor_came_and_went_is_registered_again() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let ((_one, old_addr), (_other, new_addr)) = (listener().await, listener().await);
    let old = Run::start(&etcd.endpoint(), old_addr, &[], COMMAND);
    old.command_pid().await;
    let before = registered(&client, old_addr).await;
    let new = Run::start(&etcd.endpoint(), new_addr, &[], COMMAND);
    new.command_pid().await;
    registered(&client, new_addr).await;

    new.touch("end");
    new.end().await;
    // Its lease was never lost.
    assert_eq!(registered(&client, old_addr).await.lease, before.lease);
    old.touch("end");
    assert_eq!(old.exit_code().await, 5);
    assert_eq!(instance(&client).await, None);
}

#[tokio::test]
async fn an_instance_that_drains_is_not_registered_again() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &["--drain-wait", "1h"], COMMAND);
    run.command_pid().await;
    registered(&client, addr).await;
    run.signal("TERM");
    let drains = async || instance(&client).await.is_some_and(|it| it.drain);
    wait_until("the instance drains", PATIENCE, drains).await;

    assert!(client.delete(KEY).await.unwrap());
    let writes = count_writes(&client).await;
    sleep(LINGER).await; // more than two renewals
    assert_eq!(count_writes(&client).await, writes + 1, "it was registered");
    run.touch("end");
    assert_eq!(run.exit_code().await, 5);
}

// -------------------------------------------------------------------- sudden death

#[tokio::test]
async fn the_registration_of_a_killed_ipconfigctl_goes_with_its_lease() {
    let etcd = Etcd::start().await;
    let client = connect(&etcd).await;
    let (_listener, addr) = listener().await;
    let run = Run::start(&etcd.endpoint(), addr, &[], COMMAND);
    let pid = run.command_pid().await;
    registered(&client, addr).await;
    run.signal("KILL");
    let gone = async || instance(&client).await.is_none();
    wait_until("the registration goes", PATIENCE, gone).await;
    assert!(is_running(&pid), "the command lives on, as the documentation says");
    run.touch("end");
    wait_until("the command ends", PATIENCE, async || !is_running(&pid)).await;
}
