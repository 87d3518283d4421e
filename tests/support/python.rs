//! A gRPC server written in Python, in an environment of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// `tests/python/orca_server.py`, killed when dropped.
pub struct OrcaServer {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl OrcaServer {
    /// Starts one, and returns when it listens.
    ///
    /// # Panics
    /// If it does not start, or if its packages cannot be installed.
    pub fn start(arguments: &[&str]) -> Self {
        let script = directory().join("orca_server.py");
        let mut child = Command::new(environment().join("bin/python"))
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the environment has a python");
        let mut line = String::new();
        let output = child.stdout.take().expect("it was asked for");
        BufReader::new(output).read_line(&mut line).expect("its output can be read");
        let port = line.trim().parse().expect("the server prints its port");
        Self { child, addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
    }
}

impl Drop for OrcaServer {
    fn drop(&mut self) {
        // It fails only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python"))
}

/// A virtual environment with what `requirements.txt` lists, made anew when
/// that has changed.
fn environment() -> PathBuf {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python");
    // Tests of other processes may want it at the same time.
    let lock = File::create(environment.with_extension("lock")).expect("a lock file");
    lock.lock().expect("the lock file can be locked");

    let list = directory().join("requirements.txt");
    let wanted = fs::read_to_string(&list).expect("the list of packages");
    let stamp = environment.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return environment;
    }
    run(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment),
        "this test needs python3 with venv and ensurepip: `.ci/setup` installs python3-venv",
    );
    let mut pip = Command::new(environment.join("bin/python"));
    // Built packages only: building grpcio takes half an hour.
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--only-binary", ":all:", "--requirement"])
        .arg(&list);
    run(
        &mut pip,
        "this test needs what tests/python/requirements.txt lists, from PyPI or from another \
         index that pip reaches (PIP_INDEX_URL)",
    );
    fs::write(&stamp, wanted).expect("the environment can be written to");
    environment
}

fn run(command: &mut Command, needed: &str) {
    let output = command.output().unwrap_or_else(|err| panic!("{needed}\n{command:?}: {err}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{needed}\n{command:?} failed:\n{said}");
}
