//! The processes of the demo: started, asked to end, killed, by their own id.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::{Context, Failure};

/// How long a part may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(15);

/// How long a part may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(4);

/// Between two looks at a part that starts or ends.
const POLL: Duration = Duration::from_millis(20);

/// Lines of a log that are shown when its part fails.
const TAIL_LINES: usize = 15;

/// A program that runs, in a process group of its own: a Ctrl-C in the terminal
/// reaches the demo alone, which then ends its parts in order, and a kill takes
/// nginx's workers along. Killed when dropped.
pub struct Part {
    name: String,
    child: Child,
    log: PathBuf,
    stopped: bool,
}

impl Part {
    /// Starts `command`; what it prints is appended to `<name>.log` in `folder`.
    pub fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self, Failure> {
        let log = folder.join(format!("{name}.log"));
        let opened = File::options().create(true).append(true).open(&log);
        let output = opened.context(format!("open {}", log.display()))?;
        let errors = output.try_clone().context("share a log file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .context(format!("start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log, stopped: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns when `is_ready`, or with the part's last words.
    pub async fn ready(&mut self, mut is_ready: impl AsyncFnMut() -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + START_LIMIT;
        while !is_ready().await {
            self.check()?;
            if Instant::now() > deadline {
                return Err(self.failure(format!("does not answer after {START_LIMIT:?}")));
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Fails if the part is no longer there.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait().context(format!("look after {}", self.name))? {
            None => Ok(()),
            Some(status) => Err(self.failure(format!("ended by itself ({status})"))),
        }
    }

    fn failure(&self, what: String) -> Failure {
        Failure::Part { part: self.name.clone(), what, log: self.log.clone(), tail: self.tail() }
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Ends it at once, as `kill -9` does, and waits for its end.
    pub fn kill(&mut self) {
        send("KILL", &format!("-{}", self.id()));
        // Fails only for a process that was waited for already.
        let _ = self.child.wait();
        self.stopped = true;
    }

    /// Asks it to end, and waits for that; kills it if it does not.
    pub async fn stop(&mut self) {
        let deadline = Instant::now() + STOP_LIMIT;
        send("TERM", &self.id().to_string());
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            sleep(POLL).await;
        }
        self.kill();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.stopped {
            self.kill();
        }
    }
}

/// Signals a process, or a group of them by `-id`; one that has gone needs none.
/// By the shell's own command, since the system call would need unsafe code.
fn send(signal: &str, target: &str) {
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$1\" -- \"$2\"", "sh", signal, target])
        .stderr(Stdio::null())
        .status();
}
