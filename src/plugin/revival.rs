//! How often the plugin's thread begins anew when it cannot go on.

use std::any::Any;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// After the first time. Each further one that comes soon has twice the rest of the
/// one before it, so that what comes back each time costs ever less.
const FIRST_REST: Duration = Duration::from_secs(1);

/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Who ran for so long was well: the next rest is the first again.
const STEADY: Duration = Duration::from_secs(60);

/// How long it is asked at a time whether to stop.
const STEP: Duration = Duration::from_millis(20);

/// Rests between attempts.
#[derive(Debug)]
pub(super) struct Rests {
    next: Duration,
}

impl Rests {
    pub fn new() -> Self {
        Self { next: FIRST_REST }
    }

    /// How long to rest after an attempt that ran for so long.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY {
            self.next = FIRST_REST;
        }
        let rest = self.next;
        self.next = (2 * rest).min(LONGEST_REST);
        rest
    }
}

/// Waits; true if it is time to stop. Needs nothing of the system that may have run
/// out: no descriptor, no runtime.
pub(super) fn rest(stop: &watch::Receiver<bool>, rest: Duration) -> bool {
    let end = Instant::now() + rest;
    loop {
        // An error says that the sender is gone, and with it whoever started us.
        if *stop.borrow() || stop.has_changed().is_err() {
            return true;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::park_timeout(left.min(STEP));
    }
}

/// What a panic says.
pub(super) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_each_time_is_tried_ever_less_often() {
        let mut rests = Rests::new();
        let soon = Duration::from_millis(300);
        let seconds: Vec<_> = (0..7).map(|_| rests.after(soon).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(rests.after(STEADY).as_secs(), 1, "that one was well for a while");
        assert_eq!(rests.after(soon).as_secs(), 2);
    }

    #[test]
    fn a_rest_ends_with_its_time_or_with_whoever_started_the_thread() {
        let (sender, stop) = watch::channel(false);
        assert!(!rest(&stop, Duration::from_millis(30)));
        let long = Duration::from_secs(600);
        let resting = std::thread::spawn(move || (rest(&stop, long), stop));
        sender.send(true).unwrap();
        let (is_stopped, stop) = resting.join().unwrap();
        assert!(is_stopped);
        let (sender, stop_of_another) = watch::channel(false);
        drop(sender);
        assert!(rest(&stop_of_another, long) && rest(&stop, long));
    }
}
