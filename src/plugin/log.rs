//! The thread's log lines, on their way to nginx's error log: the thread queues
//! them, worker 0 writes them from a timer.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::io::{self, Write};

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::printable;

/// One line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// nginx's number of the level: 4 error, 5 warn, 6 notice, 8 debug.
    pub level: c_int,
    pub text: String,
}

/// Lines that wait at most; older ones are dropped. A worker fetches them four
/// times a second.
const CAPACITY: usize = 256;

static LINES: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// The oldest line that waits.
pub fn next() -> Option<Line> {
    LINES.lock().pop_front()
}

/// Collects what the calling thread logs, until the guard is dropped: all of our
/// own from info up, warnings of the libraries.
pub fn collect() -> DefaultGuard {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Queue)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false);
    let filter = Targets::new().with_target("ipconfig", Level::INFO).with_default(Level::WARN);
    tracing::subscriber::set_default(tracing_subscriber::registry().with(filter).with(layer))
}

struct Queue;

/// Writes one line.
struct LineWriter {
    level: c_int,
    text: Vec<u8>,
}

impl MakeWriter<'_> for Queue {
    type Writer = LineWriter;

    fn make_writer(&self) -> LineWriter {
        LineWriter { level: nginx_level(Level::INFO), text: Vec::new() }
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> LineWriter {
        LineWriter { level: nginx_level(*meta.level()), text: Vec::new() }
    }
}

/// The numbers of `ngx_log_level`, as `ngx.log` takes them.
fn nginx_level(level: Level) -> c_int {
    match level {
        Level::ERROR => 4,
        Level::WARN => 5,
        Level::INFO => 6, // notice: what nginx logs about its own processes
        Level::DEBUG | Level::TRACE => 8,
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        // An error may quote what anybody wrote: one call is one line.
        let text = printable::text(String::from_utf8_lossy(&self.text).trim_end());
        let mut lines = LINES.lock();
        if lines.len() == CAPACITY {
            lines.pop_front();
        }
        lines.push_back(Line { level: self.level, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_arrives_once_as_one_with_its_level_and_nothing_of_other_threads() {
        let guard = collect();
        tracing::warn!(key = "/ipconfig/v1/instances/a/b", "dropped a record");
        tracing::debug!("not for the log");
        tracing::warn!("dropped: {}", "what a stranger wrote\n2026/01/01 [alert] forged");
        drop(guard);
        tracing::error!("nobody listens any more");
        let lines: Vec<_> = std::iter::from_fn(next).collect();
        let text = "dropped a record key=\"/ipconfig/v1/instances/a/b\"".to_owned();
        let forged = "dropped: what a stranger wrote\\n2026/01/01 [alert] forged".to_owned();
        assert_eq!(lines, [Line { level: 5, text }, Line { level: 5, text: forged }]);
    }
}
