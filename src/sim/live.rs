//! What one gateway has seen of one server: the simulation's board.

use super::agenda::Ns;
use super::policy::Outcome;
use crate::picker::Live;
use crate::ranking::Observed;

/// How fast averages forget.
const TAU: f64 = 1e9; // ns

/// The least that one answer counts in an average, however many there are.
const LEAST_GAIN: f64 = 1.0 / 128.0;

/// The live facts of one server, shared by a gateway's workers.
///
/// Averages are over time rather than over answers: an answer that comes `dt` after
/// the one before has a part of `dt / (tau + dt)` in the average, at least
/// [`LEAST_GAIN`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Requests that were sent there.
    requests: u64,
    in_flight: u32,
    consecutive_failures: u32,
    /// Mean latency, in nanoseconds; means nothing before `timed` is set.
    latency_ns: f64,
    /// The last answer that has a latency.
    timed: Option<Ns>,
    failed: f64,
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
        let (latency_s, failed) = match outcome {
            Outcome::Answered(seconds) => (Some(seconds), 0.0),
            Outcome::Failed(_) => (None, 1.0),
            Outcome::TimedOut(seconds) => (Some(seconds), 1.0),
        };
        if let Some(seconds) = latency_s {
            let latency_ns = seconds * 1e9;
            match self.timed {
                None => self.latency_ns = latency_ns,
                Some(last) => self.latency_ns += gain(now - last) * (latency_ns - self.latency_ns),
            }
            self.timed = Some(now);
        }
        match self.ended {
            None => self.failed = failed,
            Some(last) => self.failed += gain(now - last) * (failed - self.failed),
        }
        self.ended = Some(now);
        self.consecutive_failures = if failed == 0.0 { 0 } else { self.consecutive_failures + 1 };
    }

    /// Requests that the gateway has open on it.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// What a ranking goes by.
    pub fn observed(&self) -> Observed {
        let latency_ms = self.timed.map(|_| self.latency_ns / 1e6);
        Observed { requests: self.requests, latency_ms }
    }

    /// All of it, as a picker wants it.
    pub fn live(&self, now: Ns) -> Live {
        let stalled = match self.in_flight {
            0 => 0,
            _ => now - self.open_since.max(self.ended.unwrap_or(0)),
        };
        Live {
            in_flight: self.in_flight,
            latency_ms: self.timed.map(|_| (self.latency_ns / 1e6) as f32),
            failed: self.failed as f32,
            consecutive_failures: self.consecutive_failures,
            stalled_ms: to_ms(stalled),
            unpicked_ms: to_ms(now - self.picked),
        }
    }
}

fn gain(dt: Ns) -> f64 {
    let dt = dt as f64;
    (dt / (TAU + dt)).max(LEAST_GAIN)
}

fn to_ms(time: Ns) -> u32 {
    u32::try_from(time / 1_000_000).unwrap_or(u32::MAX)
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
