//! Runs a command as an instance of a service: registers it when it accepts
//! connections, and takes it out of the rankings before it ends.
//!
//! ```text
//! start -> accepts -> registered -> SIGTERM: drain -> wait -> signal -> wait -> deregister
//!    \________ the command ends by itself: deregister, exit with its code ______/
//! ```
//!
//! The command never waits for etcd: without it, it starts, serves and stops as
//! it would alone, and is registered when etcd is back, if it is not being stopped
//! by then.
//!
//! It has a process group of its own, so that Ctrl-C in a terminal reaches this
//! program alone, which then sees to the order of things. What it leaves behind
//! when it has to be killed is killed with it. If this program itself is killed,
//! the command lives on, and its registration ends with the lease: an init system
//! or a container ends both.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{CtlError, Keeper, Settings};
use crate::model::Instance;

/// Between two looks at whether the command accepts connections.
const LISTENS_POLL: Duration = Duration::from_millis(50);

/// The time for one connection: an address that swallows packets is looked at
/// again.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// What to run, as what, and how patiently.
#[derive(Debug, Clone)]
pub struct Run {
    /// The service's name.
    pub service: String,
    /// What is registered. Its `addr` is also where the command is expected to
    /// accept connections.
    pub instance: Instance,
    /// How long the registration outlives this program if that is killed.
    pub ttl: Duration,
    /// From the drain to the signal: for gateways to hear of it, and for requests
    /// that they sent before.
    pub drain_wait: Duration,
    /// From the signal to SIGKILL.
    pub stop_wait: Duration,
    /// From the start to the first connection.
    pub start_timeout: Duration,
    /// The command's program, looked for in PATH.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// What somebody wants of a command that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It is to end by this signal, when gateways have left it. Said again: at
    /// once; and once more: by SIGKILL.
    Stop(Signal),
    /// It is to have this signal, which is between it and whoever sent it.
    Pass(Signal),
}

/// Runs the command to its end, and returns the code that a shell would give: the
/// command's own, or 128 and the number of the signal that ended it. It is signalled when
/// `wishes` say so, and no more when their sender is gone.
///
/// # Errors
/// [`CtlError`] if the address is not allowed, or the command cannot be started
/// or does not accept connections in time. What is wrong with etcd is logged.
pub async fn run(
    settings: &Settings,
    run: Run,
    wishes: mpsc::Receiver<Wish>,
) -> Result<u8, CtlError> {
    let addr = run.instance.addr;
    settings.allow.check(&run.instance)?;
    if accepts(addr).await {
        tracing::warn!("{addr} accepts connections before the start: another process has it");
    }
    let keeper = Keeper::new(settings, &run.service, run.instance.clone(), run.ttl);
    let child = start(&run)?;
    Supervisor { child, keeper, wishes, run }.run().await.map(exit_code)
}

fn start(run: &Run) -> Result<Child, CtlError> {
    let program = run.program.to_string_lossy().into_owned();
    let mut command = Command::new(&run.program);
    command.args(&run.args).process_group(0);
    command.spawn().map_err(|source| CtlError::Start { program, source })
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

struct Supervisor {
    child: Child,
    keeper: Keeper,
    wishes: mpsc::Receiver<Wish>,
    run: Run,
}

/// What ended a stage of the command's life.
enum Event<T> {
    /// The command did.
    Ended(ExitStatus),
    /// A wish to stop.
    Stop(Signal),
    /// What was waited for.
    Done(T),
}

impl Supervisor {
    async fn run(mut self) -> Result<ExitStatus, CtlError> {
        let Run { instance, start_timeout, .. } = &self.run;
        let (addr, limit) = (instance.addr, *start_timeout);
        let listens = async |_: &mut Keeper| timeout(limit, listens(addr)).await.is_ok();
        match self.until(listens).await? {
            Event::Ended(status) => return Ok(status),
            Event::Stop(signal) => return self.stop(signal).await,
            Event::Done(true) => {}
            Event::Done(false) => {
                self.stop(Signal::TERM).await?;
                return Err(CtlError::NotListening { addr, limit });
            }
        }
        match self.until(Keeper::keep).await? {
            Event::Ended(status) => {
                self.keeper.leave().await;
                Ok(status)
            }
            Event::Stop(signal) => self.drain(signal).await,
        }
    }

    /// Out of the rankings first, then the end.
    async fn drain(&mut self, signal: Signal) -> Result<ExitStatus, CtlError> {
        let wait = self.run.drain_wait;
        let drained = async |keeper: &mut Keeper| {
            if keeper.drain().await {
                // What is kept is the lease: the drain is not to end before its time.
                _ = timeout(wait, keeper.keep()).await;
            }
        };
        match self.until(drained).await? {
            Event::Ended(status) => {
                self.keeper.leave().await;
                Ok(status)
            }
            Event::Stop(_) | Event::Done(()) => self.stop(signal).await,
        }
    }

    /// The command's end, and what is left of the registration.
    async fn stop(&mut self, signal: Signal) -> Result<ExitStatus, CtlError> {
        // No gateway is to hear of it now.
        self.keeper.register_no_more();
        self.send(signal);
        let wait = self.run.stop_wait;
        let patience = async |keeper: &mut Keeper| _ = timeout(wait, keeper.keep()).await;
        let status = match self.until(patience).await? {
            Event::Ended(status) => status,
            Event::Stop(_) | Event::Done(()) => {
                tracing::warn!("the command has not ended by its signal: kills it");
                self.kill();
                self.child.wait().await.map_err(CtlError::Wait)?
            }
        };
        self.keeper.leave().await;
        Ok(status)
    }

    /// Waits for `what`, or for what happens before. Signals that are between the
    /// command and their sender are passed on meanwhile.
    async fn until<T>(
        &mut self,
        what: impl AsyncFnOnce(&mut Keeper) -> T,
    ) -> Result<Event<T>, CtlError> {
        let Self { child, keeper, wishes, .. } = self;
        let pid = child.id();
        let mut what = std::pin::pin!(what(keeper));
        loop {
            tokio::select! {
                biased;
                ended = child.wait() => return ended.map(Event::Ended).map_err(CtlError::Wait),
                Some(wish) = wishes.recv() => match wish {
                    Wish::Stop(signal) => return Ok(Event::Stop(signal)),
                    Wish::Pass(signal) => send(pid, signal),
                },
                done = &mut what => return Ok(Event::Done(done)),
            }
        }
    }

    fn send(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// The command, and what it started.
    fn kill(&self) {
        if let Some(pid) = to_pid(self.child.id())
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::warn!("failed to kill the command: {error}");
        }
    }
}

/// To the command alone: what it started is its own to see to.
fn send(pid: Option<u32>, signal: Signal) {
    // It is not waited for yet: the number is its own even if it has just ended.
    if let Some(pid) = to_pid(pid)
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!("failed to send {signal:?} to the command: {error}");
    }
}

fn to_pid(pid: Option<u32>) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid?).ok()?)
}

/// Ends when somebody accepts a connection at `addr`.
async fn listens(addr: SocketAddr) {
    while !accepts(addr).await {
        sleep(LISTENS_POLL).await;
    }
}

async fn accepts(addr: SocketAddr) -> bool {
    match timeout(CONNECT_LIMIT, TcpStream::connect(addr)).await {
        // A port in the range that the system chooses from may be connected with
        // itself, while nobody listens.
        Ok(Ok(stream)) => stream.local_addr().is_ok_and(|local| local != addr),
        Ok(Err(_)) | Err(_) => false,
    }
}
