//! What one gateway has seen of one server: the simulation's board.

use std::cell::Cell;

use super::agenda::Ns;
use super::policy::Outcome;
use crate::board::average::{Latency, Part};
use crate::picker::Live;
use crate::ranking::Observed;

/// The live facts of one server, shared by a gateway's workers; averages are those
/// of the board.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Requests that were sent there.
    requests: u64,
    in_flight: u32,
    consecutive_failures: u32,
    latency: Latency<Cell<u32>>,
    /// The last answer that has a latency.
    timed: Ns,
    failed: Part<Cell<u32>>,
    /// The last answer of any kind.
    ended: Option<Ns>,
    /// Since when requests have been open.
    open_since: Ns,
    picked: Ns,
}

impl Seen {
    /// Of a server that is new to the gateway.
    pub fn new(now: Ns) -> Self {
        Self { picked: now, ..Self::default() }
    }

    /// A request goes to it.
    pub fn begin(&mut self, now: Ns) {
        if self.in_flight == 0 {
            self.open_since = now;
        }
        self.in_flight += 1;
        self.requests += 1;
        self.picked = now;
    }

    /// A request to it has ended.
    ///
    /// A failure says nothing of how long an answer takes; one that was given up
    /// says that it takes at least so long.
    pub fn end(&mut self, now: Ns, outcome: Outcome) {
        self.in_flight -= 1;
        let (latency_s, has_failed) = match outcome {
            Outcome::Answered(seconds) => (Some(seconds), false),
            Outcome::Failed(_) => (None, true),
            Outcome::TimedOut(seconds) => (Some(seconds), true),
        };
        if let Some(seconds) = latency_s {
            self.latency.add_to_mean((seconds * 1e3) as f32, in_ms(now - self.timed));
            self.timed = now;
        }
        self.failed.add(has_failed, self.ended.map(|last| in_ms(now - last)));
        self.ended = Some(now);
        self.consecutive_failures = if has_failed { self.consecutive_failures + 1 } else { 0 };
    }

    /// Requests that the gateway has open on it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What a ranking goes by.
    pub fn observed(&self) -> Observed {
        Observed { requests: self.requests, latency_ms: self.latency.get().map(f64::from) }
    }

    /// All of it, as a picker wants it.
    pub fn live(&self, now: Ns) -> Live {
        let stalled = match self.in_flight {
            0 => 0,
            _ => now - self.open_since.max(self.ended.unwrap_or(0)),
        };
        Live {
            in_flight: self.in_flight,
            latency_ms: self.latency.get(),
            failed: self.failed.get(),
            consecutive_failures: self.consecutive_failures,
            stalled_ms: to_ms(stalled),
            unpicked_ms: to_ms(now - self.picked),
        }
    }
}

fn in_ms(time: Ns) -> u64 {
    time / 1_000_000
}

fn to_ms(time: Ns) -> u32 {
    u32::try_from(in_ms(time)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Ns = 1_000_000;

    #[test]
    fn averages_follow_time_and_not_the_number_of_answers() {
        let mut seen = Seen::new(0);
        let mut answer = |at, seconds| {
            seen.begin(at);
            seen.end(at, Outcome::Answered(seconds));
            seen.live(at).latency_ms.unwrap()
        };
        assert_eq!(answer(0, 0.01), 10.0, "the first is the average");
        assert_eq!(answer(1000 * MS, 0.02), 15.0, "a second later it is half of it");
        let dense = (0..10).fold(0.0, |_, _| answer(1000 * MS, 0.143));
        assert!((dense - 24.7).abs() < 0.1, "ten at once: {dense}");
    }

    #[test]
    fn a_server_is_stalled_while_requests_are_open_and_none_ends() {
        let mut seen = Seen::new(0);
        assert_eq!(seen.live(500 * MS).stalled_ms, 0);
        seen.begin(1000 * MS);
        seen.begin(1500 * MS);
        assert_eq!(seen.live(1700 * MS).stalled_ms, 700);
        seen.end(1800 * MS, Outcome::Answered(0.8));
        assert_eq!(seen.live(2000 * MS).stalled_ms, 200);
        seen.end(2000 * MS, Outcome::Answered(0.5));
        assert_eq!(seen.live(3000 * MS).stalled_ms, 0);
        seen.begin(4000 * MS);
        assert_eq!(seen.live(4100 * MS).stalled_ms, 100, "not since the last answer");
        assert_eq!(seen.live(4100 * MS).unpicked_ms, 100);
    }

    #[test]
    fn failures_are_counted_in_a_row_and_have_no_latency() {
        let mut seen = Seen::new(0);
        for at in [0, 1000 * MS] {
            seen.begin(at);
            seen.end(at, Outcome::Failed(0.0));
        }
        let live = seen.live(1000 * MS);
        assert_eq!((live.consecutive_failures, live.failed, live.latency_ms), (2, 1.0, None));
        seen.begin(1000 * MS);
        seen.end(2000 * MS, Outcome::Answered(1.0));
        let live = seen.live(2000 * MS);
        assert_eq!((live.consecutive_failures, live.failed), (0, 0.5));
    }
}
