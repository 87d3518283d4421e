//! Sleeping to a fraction of a millisecond: tokio's own timer counts in whole
//! ones, a tenth of what a request is served in here.

use std::collections::BinaryHeap;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A thread that wakes whoever sleeps here. A clone is the same clock.
#[derive(Clone)]
pub struct Clock {
    sleepers: Arc<Sleepers>,
}

#[derive(Default)]
struct Sleepers {
    queue: Mutex<BinaryHeap<Sleeper>>,
    is_earlier: Condvar,
}

struct Sleeper {
    until: Instant,
    wake: oneshot::Sender<()>,
}

impl Clock {
    /// Starts the thread, which stays as long as the process.
    pub fn start() -> Self {
        let sleepers = Arc::new(Sleepers::default());
        let clock = Clock { sleepers: Arc::clone(&sleepers) };
        thread::spawn(move || sleepers.wake_forever());
        clock
    }

    /// Returns at `until`, or after it by what the kernel takes to wake a thread.
    pub async fn sleep_until(&self, until: Instant) {
        if until <= Instant::now() {
            return;
        }
        let (wake, woken) = oneshot::channel();
        self.sleepers.add(Sleeper { until, wake });
        woken.await.expect("the clock goes on");
    }
}

impl Sleepers {
    fn add(&self, sleeper: Sleeper) {
        let mut queue = self.queue.lock();
        let is_first = queue.peek().is_none_or(|first| sleeper.until < first.until);
        queue.push(sleeper);
        drop(queue);
        if is_first {
            self.is_earlier.notify_one();
        }
    }

    fn wake_forever(&self) {
        let mut queue = self.queue.lock();
        loop {
            let now = Instant::now();
            match queue.peek().map(|first| first.until) {
                None => self.is_earlier.wait(&mut queue),
                Some(until) if until > now => {
                    self.is_earlier.wait_for(&mut queue, until - now);
                }
                Some(_) => {
                    if let Some(due) = queue.pop() {
                        // Whoever does not wait any more needs no waking.
                        let _ = due.wake.send(());
                    }
                }
            }
        }
    }
}

// The heap's largest is the one that is due first.
impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.until.cmp(&self.until)
    }
}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Sleeper {}
