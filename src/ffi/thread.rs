//! The plugin's thread inside a worker of nginx: what it must not inherit, and
//! how it ends.

use std::io;
use std::mem::MaybeUninit;
use std::thread::{Builder, JoinHandle};

use tokio::sync::watch;

use super::shdict::SharedDict;
use crate::board::Board;
use crate::config::Config;
use crate::plugin;

/// The running thread; dropping it stops the thread and waits for its end.
pub(super) struct PluginThread {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl PluginThread {
    /// # Errors
    /// The system's error when there can be no thread.
    pub fn start(config: Config, store: SharedDict, board: Board) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let body = move || {
            leave_affinity();
            plugin::run(&config, store, board, stopped);
        };
        // A thread inherits its maker's mask: nginx's signals are for nginx.
        let mask = block_signals();
        let thread = Builder::new().name("ipconfig".into()).spawn(body);
        restore_signals(&mask);
        Ok(PluginThread { stop, thread: Some(thread?) })
    }
}

impl Drop for PluginThread {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            // It has logged whatever went wrong with it.
            let _ = thread.join();
        }
    }
}

fn block_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the one set, pthread_sigmask the other; both
    // fail on invalid arguments alone.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

fn restore_signals(mask: &libc::sigset_t) {
    // SAFETY: the mask is one that the system gave out.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Lets the thread run on any core: `worker_cpu_affinity` is for the worker's
/// event loop, which the thread would share a core with.
fn leave_affinity() {
    // SAFETY: a set of plain bits, for which zero is valid, changed by the
    // system's own macros and read by the call. Cores that are not there are
    // ignored; a failure leaves the affinity as it was.
    unsafe {
        let mut cores: libc::cpu_set_t = std::mem::zeroed();
        for core in 0..libc::CPU_SETSIZE as usize {
            libc::CPU_SET(core, &mut cores);
        }
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cores);
    }
}
