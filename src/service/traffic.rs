//! What a service knows of its requests.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Counts requests as they come and go. Each takes a lock twice, for a few
/// additions; the clock is read outside of it.
#[derive(Debug, Default)]
pub struct Traffic {
    counts: Mutex<Counts>,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrafficSnapshot {
    /// Requests answered, failed ones included.
    pub requests: u64,
    /// Requests answered with a failure of the service's own.
    pub errors: u64,
    /// Time with at least one request being served.
    pub busy: Duration,
    /// Sum of the latencies of the answered requests, their waits included.
    pub latency_sum: Duration,
    /// Requests being served now.
    pub in_flight: u64,
    /// Requests waiting now; no request is in both.
    pub queue: u64,
}

/// How an answered request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With what was asked for, or with a refusal that is the client's doing.
    Served,
    /// With a failure of the service's own.
    Failed,
}

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    errors: u64,
    latency_sum: Duration,
    /// Ended times with a request being served.
    busy: Duration,
    /// Since when there has been one.
    busy_since: Option<Instant>,
    /// Requests that have begun and not ended.
    open: u64,
    /// Those of them that wait.
    waiting: u64,
}

impl Counts {
    fn in_flight(&self) -> u64 {
        // A wait may outlive its request, where a task of its own holds it.
        self.open.saturating_sub(self.waiting)
    }

    /// Begins or ends busy time after `open` or `waiting` changed.
    fn turn(&mut self, now: Instant) {
        if self.in_flight() > 0 {
            self.busy_since.get_or_insert(now);
        } else if let Some(since) = self.busy_since.take() {
            self.busy += now.saturating_duration_since(since);
        }
    }
}

impl Traffic {
    /// Counts a request as being served, until it is answered or dropped.
    pub fn begin(self: &Arc<Self>) -> Request {
        let begun = Instant::now();
        let mut counts = self.counts.lock();
        counts.open += 1;
        counts.turn(begun);
        drop(counts);
        Request { traffic: Arc::clone(self), begun, outcome: None }
    }

    /// Counts one of the requests under way as waiting and not as being served,
    /// until what this returns is dropped: for a service that lets only so many
    /// in at once.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.change_waiting(|waiting| waiting + 1);
        Waiting { traffic: Arc::clone(self) }
    }

    fn change_waiting(&self, change: impl FnOnce(u64) -> u64) {
        let now = Instant::now();
        let mut counts = self.counts.lock();
        counts.waiting = change(counts.waiting);
        counts.turn(now);
    }

    /// The counts as of now.
    pub fn snapshot(&self) -> TrafficSnapshot {
        let now = Instant::now();
        let counts = self.counts.lock();
        let serving = counts.busy_since.map(|since| now.saturating_duration_since(since));
        TrafficSnapshot {
            requests: counts.requests,
            errors: counts.errors,
            busy: counts.busy + serving.unwrap_or_default(),
            latency_sum: counts.latency_sum,
            in_flight: counts.in_flight(),
            queue: counts.waiting,
        }
    }
}

/// A request under way. Its drop takes it out of the gauges, so that a client
/// that hangs up leaves nothing behind. One that is dropped before it was
/// answered is counted in neither requests nor errors: nobody knows how it would
/// have ended. A panic is known to be a failure.
#[derive(Debug)]
#[must_use = "a request is under way for as long as this lives"]
pub struct Request {
    traffic: Arc<Traffic>,
    begun: Instant,
    outcome: Option<Outcome>,
}

impl Request {
    /// The request ends now, with an answer.
    pub fn answered(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let now = Instant::now();
        let panicked = std::thread::panicking().then_some(Outcome::Failed);
        let mut counts = self.traffic.counts.lock();
        if let Some(outcome) = self.outcome.or(panicked) {
            counts.requests += 1;
            counts.errors += u64::from(outcome == Outcome::Failed);
            counts.latency_sum += now.saturating_duration_since(self.begun);
        }
        counts.open -= 1;
        counts.turn(now);
    }
}

/// A request's wait, over when it is dropped.
#[derive(Debug)]
#[must_use = "the request waits for as long as this lives"]
pub struct Waiting {
    traffic: Arc<Traffic>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.traffic.change_waiting(|waiting| waiting - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn busy_time_is_counted_once_however_many_are_served() {
        let traffic = Arc::new(Traffic::default());
        advance(SECOND).await;
        let first = traffic.begin();
        advance(SECOND).await;
        let second = traffic.begin();
        advance(SECOND).await;
        assert_eq!(traffic.snapshot().busy, 2 * SECOND, "also while it lasts");
        first.answered(Outcome::Served);
        advance(SECOND).await;
        second.answered(Outcome::Failed);
        advance(SECOND).await;

        let expected = TrafficSnapshot {
            requests: 2,
            errors: 1,
            busy: 3 * SECOND,
            latency_sum: 4 * SECOND,
            in_flight: 0,
            queue: 0,
        };
        assert_eq!(traffic.snapshot(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_is_queued_and_keeps_nobody_busy() {
        let traffic = Arc::new(Traffic::default());
        let gauges = || {
            let TrafficSnapshot { in_flight, queue, busy, .. } = traffic.snapshot();
            (in_flight, queue, busy)
        };
        let request = traffic.begin();
        let waiting = traffic.wait();
        advance(SECOND).await;
        assert_eq!(gauges(), (0, 1, Duration::ZERO));
        drop(waiting);
        advance(SECOND).await;
        assert_eq!(gauges(), (1, 0, SECOND));
        request.answered(Outcome::Served);
        assert_eq!(traffic.snapshot().latency_sum, 2 * SECOND, "the client waited both");
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_up_is_neither_a_request_nor_an_error() {
        let traffic = Arc::new(Traffic::default());
        let (request, waiting) = (traffic.begin(), traffic.wait());
        drop(request);
        assert_eq!(traffic.snapshot().in_flight, 0, "a wait may outlive its request");
        drop(waiting);
        assert_eq!(traffic.snapshot(), TrafficSnapshot::default());
    }

    #[test]
    fn a_request_that_panics_has_failed() {
        let traffic = Arc::new(Traffic::default());
        let request = traffic.begin();
        let serve = move || {
            let _request = request;
            panic!("on purpose");
        };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve)).unwrap_err();
        let TrafficSnapshot { requests, errors, in_flight, .. } = traffic.snapshot();
        assert_eq!((requests, errors, in_flight), (1, 1, 0));
    }

    #[test]
    fn no_request_is_lost_between_threads() {
        let traffic = Arc::new(Traffic::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| traffic.begin().answered(Outcome::Served));
                });
            }
        });
        let TrafficSnapshot { requests, in_flight, .. } = traffic.snapshot();
        assert_eq!((requests, in_flight), (4000, 0));
    }
}
