//! Real parts for tests, benches and examples: a private etcd, what nginx needs, a
//! server of statuses, and waiting for what is to happen.
#![allow(dead_code, reason = "whoever includes this file uses a part of it")]

pub mod follower;
pub mod nginx;
pub mod status;
pub mod wire;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Below the range that the kernel takes for connections, 32768 and up by default:
/// a port stays free while whoever listens on it is restarted.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A TCP port of the loopback interface that nobody listens on, and that no other
/// process gets from here while this one lives.
pub fn free_port() -> u16 {
    /// Where the next search begins, and what holds the ports taken so far.
    static TAKEN: Mutex<Option<(u16, Vec<UnixListener>)>> = Mutex::new(None);
    let mut taken = TAKEN.lock().expect("nobody panics with it");
    let count = PORTS.end - PORTS.start;
    let start = || (std::process::id().wrapping_mul(97) % u32::from(count)) as u16;
    let (next, held) = taken.get_or_insert_with(|| (start(), Vec::new()));
    for _ in 0..count {
        let port = PORTS.start + *next;
        *next = (*next + 1) % count;
        // A name that one process can have, and that goes with it.
        let name = unix::net::SocketAddr::from_abstract_name(format!("ipconfig-port-{port}"));
        let Ok(hold) = name.and_then(|name| UnixListener::bind_addr(&name)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            held.push(hold);
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Different ones.
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_port())
}

/// Asks `condition` every 20 ms until it holds.
///
/// # Panics
/// After `limit`, with what did not happen.
pub async fn wait_until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen within {limit:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Sends a process a signal by name, for instance `TERM`; whether there was such a
/// process.
pub fn signal(pid: u32, name: &str) -> bool {
    // A command, since the system call would need unsafe code.
    let pid = pid.to_string();
    let sent = Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &pid]).status();
    sent.expect("a shell").success()
}

/// A process of one's own, killed when dropped. Never anybody else's.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`; what it prints is appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file twice"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, for instance `STOP`.
    pub fn signal(&self, name: &str) {
        assert!(signal(self.id(), name), "signal {name} to process {}", self.id());
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it, as `kill -9` does, and waits for its end.
    pub fn kill(&mut self) {
        // It fails only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A private etcd, or one member of it, on free loopback ports, with its data and
/// its log in a directory of its own. Killed and removed when dropped.
pub struct Etcd {
    name: String,
    /// All members, as etcd's flag wants them.
    members: String,
    process: Option<Process>,
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
    flags: Vec<String>,
    scheme: &'static str,
}

impl Etcd {
    /// Starts one, and returns when it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts one with more flags.
    pub async fn start_with(flags: &[&str]) -> Self {
        let mut etcd = Self::prepare("default", flags);
        etcd.restart().await;
        etcd
    }

    /// Starts three members of one cluster with more flags, and returns when all
    /// answer.
    pub async fn start_three(flags: &[&str]) -> Vec<Self> {
        let mut members: Vec<_> =
            ["one", "two", "three"].map(|name| Self::prepare(name, flags)).into();
        let all: Vec<_> = members.iter().map(|member| member.members.clone()).collect();
        for member in &mut members {
            member.members = all.join(",");
            member.spawn();
        }
        for member in &mut members {
            member.wait_until_ready().await;
        }
        members
    }

    fn prepare(name: &str, flags: &[&str]) -> Self {
        let [client_port, peer_port] = free_ports();
        Self {
            name: name.to_owned(),
            members: format!("{name}=http://127.0.0.1:{peer_port}"),
            process: None,
            dir: TempDir::with_prefix("ipconfig-etcd-").expect("a temporary directory"),
            client_port,
            peer_port,
            flags: flags.iter().map(ToString::to_string).collect(),
            scheme: if flags.contains(&"--cert-file") { "https" } else { "http" },
        }
    }

    /// `http://127.0.0.1:port`, or with `https`.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Where its clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.client_port))
    }

    /// Its own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it was killed.
    pub fn id(&self) -> u32 {
        self.running().id()
    }

    /// Kills it at once, as `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it on the same ports and data, after it was killed if it runs;
    /// returns when it answers.
    pub async fn restart(&mut self) {
        self.spawn();
        self.wait_until_ready().await;
    }

    /// As [`restart`](Self::restart), without waiting for an answer: a member alone
    /// gives none.
    pub fn spawn(&mut self) {
        self.kill();
        let clients = self.endpoint();
        let peers = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.dir().join("data"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--name", &self.name, "--initial-cluster", &self.members])
            // Starts faster, and allows for leases of one second.
            .args(["--heartbeat-interval", "50", "--election-timeout", "250"])
            .args(["--log-level", "warn"])
            .args(&self.flags);
        let log = self.dir().join("log");
        self.process = Some(Process::start(&mut command, &log));
    }

    /// Kills it and deletes all its data, as if it had never been.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir().join("data")).expect("its data can be removed");
    }

    /// Kills it and keeps a copy of its data, in place of the one before.
    pub fn save(&mut self) {
        self.kill();
        self.copy("data", "saved");
    }

    /// Kills it and puts the data back that was saved last, as from a backup.
    pub fn restore(&mut self) {
        self.kill();
        self.copy("saved", "data");
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.dir().join(from), self.dir().join(to));
        let copied = Command::new("sh")
            .args(["-c", "rm -rf -- \"$2\" && cp -a -- \"$1\" \"$2\"", "sh"])
            .args([&from, &to])
            .status();
        assert!(copied.expect("a shell").success(), "{from:?} can be copied to {to:?}");
    }

    /// Whether it was saved.
    pub fn is_saved(&self) -> bool {
        self.dir().join("saved").exists()
    }

    /// Stops it where it is: connections stay open and nothing answers.
    pub fn pause(&self) {
        self.running().signal("STOP");
    }

    /// Lets it go on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.running().signal("CONT");
    }

    /// Runs etcdctl against it and returns what it prints.
    ///
    /// # Panics
    /// If etcdctl fails.
    pub fn ctl(&self, args: &[&str]) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint()])
            .args(args)
            .output()
            .expect("etcdctl can be run");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Lets in root and one user, who by a role of the same name may read and write the
    /// keys from `from` up to `to`.
    pub fn admit(&self, user: &str, password: &str, from: &str, to: &str) {
        for args in [
            &["user", "add", "root:rootpw"][..],
            &["user", "grant-role", "root", "root"],
            &["user", "add", &format!("{user}:{password}")],
            &["role", "add", user],
            &["role", "grant-permission", user, "readwrite", from, to],
            &["user", "grant-role", user, user],
            &["auth", "enable"],
        ] {
            self.ctl(args);
        }
    }

    /// Gives a user whom [`admit`](Self::admit) let in another password, with which it
    /// loses its tokens.
    pub fn change_password(&self, user: &str, password: &str) {
        let mut child = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint(), "--user", "root:rootpw"])
            .args(["user", "passwd", user, "--interactive=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("etcdctl can be run");
        let mut stdin = child.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut stdin, format!("{password}\n").as_bytes()).unwrap();
        drop(stdin);
        assert!(child.wait().unwrap().success(), "etcdctl user passwd");
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("etcd was killed")
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub async fn wait_until_ready(&mut self) {
        let address = self.address();
        let tls = self.scheme == "https";
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let ready = if tls {
                TcpStream::connect(address).await.is_ok()
            } else {
                healthy(address).await
            };
            if ready {
                return;
            }
            let running = self.process.as_mut().is_some_and(Process::is_running);
            if !running || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir().join("log")).unwrap_or_default();
                panic!("etcd does not answer at {address}; its log:\n{log}");
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Asks etcd's health page over a connection of its own, so that nothing that
/// is to be tested takes part.
async fn healthy(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.contains(r#""health":"true""#))
    };
    matches!(timeout(Duration::from_secs(10), ask).await, Ok(Ok(true)))
}
