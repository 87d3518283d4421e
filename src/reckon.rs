//! Load reports that tell how things are going, in rates and utilizations, as
//! ORCA's do out of band and in the headers of responses: their figures, and the
//! one set of checks that they pass. Counters are what [`Status`] is made of, so
//! they are reckoned here: a rate counts from its report until the next one.

use thiserror::Error;
use tokio::time::Instant;

use crate::model::Status;

/// The largest rates, a second, and numbers of requests that are believed.
pub const MAX_REQUESTS: f64 = 1e9;

/// The largest utilization that is believed: a thousand times what there is.
pub const MAX_UTILIZATION: f64 = 1e3;

/// The largest mean latency that is believed: a day.
pub const MAX_LATENCY_MS: f64 = 86.4e6;

/// The figures of a load report that are of use here; `None` is not told.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// CPU in use as a part of what may be used, 0 to [`MAX_UTILIZATION`].
    pub cpu: Option<f64>,
    /// The application's own measure of how busy it is, in the same range.
    pub application: Option<f64>,
    /// 0 to [`MAX_REQUESTS`]; 0 where it is not told.
    pub requests_per_second: f64,
    /// The same of requests that failed.
    pub errors_per_second: f64,
    /// Mean latency of the answered requests, 0 to [`MAX_LATENCY_MS`].
    pub latency_ms: Option<f64>,
    /// Requests being served, 0 to [`MAX_REQUESTS`].
    pub in_flight: Option<f64>,
    /// Requests waiting, in the same range.
    pub queue: Option<f64>,
}

/// A figure that cannot be.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("refused a load report: {field} is {found}, allowed is 0 to {allowed}")]
pub struct FigureError {
    /// The figure's name.
    pub field: &'static str,
    /// Its value.
    pub found: f64,
    /// The largest value that is taken.
    pub allowed: f64,
}

/// Whether a figure is 0 to `allowed`, which NaN is not.
///
/// # Errors
/// [`FigureError`] if it is not.
pub fn check(field: &'static str, found: f64, allowed: f64) -> Result<(), FigureError> {
    match (0.0..=allowed).contains(&found) {
        true => Ok(()),
        false => Err(FigureError { field, found, allowed }),
    }
}

impl Figures {
    /// The same figures, if all of them can be: where one cannot, the others may be
    /// no better.
    ///
    /// # Errors
    /// The first figure that is out of its range.
    pub fn checked(self) -> Result<Self, FigureError> {
        for (field, found, allowed) in [
            ("cpu_utilization", self.cpu, MAX_UTILIZATION),
            ("application_utilization", self.application, MAX_UTILIZATION),
            ("rps_fractional", Some(self.requests_per_second), MAX_REQUESTS),
            ("eps", Some(self.errors_per_second), MAX_REQUESTS),
            ("latency_ms", self.latency_ms, MAX_LATENCY_MS),
            ("in_flight", self.in_flight, MAX_REQUESTS),
            ("queue", self.queue, MAX_REQUESTS),
        ] {
            found.map_or(Ok(()), |found| check(field, found, allowed))?;
        }
        Ok(self)
    }

    /// Mean latency of the answered requests. Where it is not told, it follows
    /// from how many are being served and how many a second are done (Little's
    /// law), which says much too much where next to none are.
    fn latency_ns(&self) -> f64 {
        let by_law = || Some(self.in_flight? / self.requests_per_second * 1e3);
        let latency_ms = self.latency_ms.or_else(by_law).filter(|ms| ms.is_finite());
        latency_ms.unwrap_or(0.0).min(MAX_LATENCY_MS) * 1e6
    }
}

/// Makes a [`Status`] out of the reports so far.
///
/// A utilization is given as that part of one core, which is all that matters to
/// whoever divides the two. Memory stays unknown: a part of an unknown number of
/// bytes says nothing of how many there are left.
#[derive(Debug)]
pub struct Reckoner {
    boot_id: u64,
    seq: u64,
    /// The last report, and when it came.
    last: Option<(Figures, Instant)>,
    /// Up to when the counters are reckoned; `None` while no report counts.
    until: Option<Instant>,
    requests: Counter,
    errors: Counter,
    latency_sum_ns: u64,
}

/// Counts parts, and tells whole ones.
#[derive(Debug, Default)]
struct Counter {
    whole: u64,
    part: f64,
}

impl Counter {
    /// Returns how many whole ones came about.
    fn add(&mut self, amount: f64) -> u64 {
        let sum = self.part + amount;
        self.part = sum.fract();
        let new = sum.trunc() as u64; // finite and not negative
        self.whole = self.whole.saturating_add(new);
        new
    }
}

impl Reckoner {
    /// With counters that begin at 0. `boot_id` stands for them: that the
    /// instance started anew does not show in its reports, and changes nothing.
    pub fn new(boot_id: u64) -> Self {
        Self {
            boot_id,
            seq: 0,
            last: None,
            until: None,
            requests: Counter::default(),
            errors: Counter::default(),
            latency_sum_ns: 0,
        }
    }

    /// Takes in a report of `now`; what the one before it said went on until then.
    pub fn hear(&mut self, figures: Figures, now: Instant) {
        self.reckon(now);
        self.last = Some((figures, now));
        self.until = Some(now);
    }

    /// No report counts from `now` until the next one.
    pub fn broke(&mut self, now: Instant) {
        self.reckon(now);
        self.until = None;
    }

    /// How things are at `now`, as old as the last report; `None` before the
    /// first.
    pub fn tell(&mut self, now: Instant) -> Option<Status> {
        self.reckon(now);
        let (figures, at) = self.last?;
        self.seq += 1;
        let whole = |number: Option<f64>| number.map(|number| number.round() as u64);
        Some(Status {
            boot_id: self.boot_id,
            seq: self.seq,
            age: now.saturating_duration_since(at),
            requests: self.requests.whole,
            errors: self.errors.whole,
            busy_ns: 0,
            latency_sum_ns: self.latency_sum_ns,
            cpu_used_cores: figures.cpu,
            cpu_limit_cores: figures.cpu.map(|_| 1.0),
            memory_used_bytes: None,
            memory_limit_bytes: None,
            in_flight: whole(figures.in_flight),
            queue: whole(figures.queue),
            application_utilization: figures.application,
            max_in_flight: None,
        })
    }

    fn reckon(&mut self, now: Instant) {
        let (Some((figures, _)), Some(until)) = (self.last, self.until) else { return };
        let seconds = now.saturating_duration_since(until).as_secs_f64();
        let requests = self.requests.add(figures.requests_per_second * seconds);
        self.errors.add(figures.errors_per_second * seconds);
        self.until = Some(now);
        let latency_ns = (figures.latency_ns() * requests as f64) as u64;
        match self.latency_sum_ns.checked_add(latency_ns) {
            Some(sum) => self.latency_sum_ns = sum,
            // A thousand requests in flight fill it in half a year. A counter
            // never falls, so that all begin anew, as after a restart.
            None => {
                let Self { seq, last, until, .. } = *self;
                let boot_id = self.boot_id.wrapping_add(1).max(1);
                *self = Self { seq, last, until, ..Self::new(boot_id) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn figures(requests_per_second: f64, errors_per_second: f64) -> Figures {
        let cpu = Some(0.25);
        Figures { cpu, requests_per_second, errors_per_second, ..Figures::default() }
    }

    fn told(reckoner: &mut Reckoner, now: Instant) -> Status {
        reckoner.tell(now).expect("a report was heard")
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_counts_from_its_report_until_the_next_one() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(Figures { latency_ms: Some(20.0), ..figures(100.0, 10.0) }, start);
        assert_eq!(told(&mut reckoner, start).requests, 0);

        let status = told(&mut reckoner, start + 2 * SECOND);
        assert_eq!((status.requests, status.errors), (200, 20));
        assert_eq!(status.latency_sum_ns, 200 * 20_000_000);
        assert_eq!((status.boot_id, status.seq, status.age), (7, 2, 2 * SECOND));
        assert_eq!(status.cpu_utilization(), Some(0.25));

        reckoner.hear(Figures { latency_ms: Some(1.0), ..figures(10.0, 0.0) }, start + 3 * SECOND);
        let status = told(&mut reckoner, start + 4 * SECOND);
        assert_eq!((status.requests, status.errors), (310, 30));
        assert_eq!(status.age, SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_rates_lose_nothing_to_rounding() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(figures(0.25, 0.0), start);
        let last = (1..=80).map(|n| told(&mut reckoner, start + n * SECOND).requests).last();
        assert_eq!(last, Some(20));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_counted_while_no_report_stands() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(figures(100.0, 0.0), start);
        reckoner.broke(start + SECOND);
        assert_eq!(told(&mut reckoner, start + 9 * SECOND).requests, 100);
        reckoner.hear(figures(100.0, 0.0), start + 10 * SECOND);
        assert_eq!(told(&mut reckoner, start + 11 * SECOND).requests, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_cannot_tell_stays_unknown() {
        let mut reckoner = Reckoner::new(7);
        let now = Instant::now();
        assert!(reckoner.tell(now).is_none(), "before the first report");
        reckoner.hear(Figures::default(), now);
        let status = told(&mut reckoner, now);
        assert_eq!(status.cpu_utilization(), None);
        assert_eq!((status.in_flight, status.queue), (None, None));
        assert_eq!(status.application_utilization, None);
        assert_eq!(status.memory_free_bytes(), None);

        reckoner.hear(Figures { in_flight: Some(0.0), queue: Some(2.0), ..figures(0.0, 0.0) }, now);
        let status = told(&mut reckoner, now);
        assert_eq!((status.in_flight, status.queue), (Some(0), Some(2)), "a named 0 is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_latency_that_is_not_told_follows_from_what_is_in_flight() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(Figures { in_flight: Some(5.0), ..figures(100.0, 0.0) }, start);
        let status = told(&mut reckoner, start + SECOND);
        assert_eq!(status.latency_sum_ns / status.requests, 50_000_000);
        reckoner.hear(Figures { in_flight: Some(5.0), ..figures(0.0, 0.0) }, start + SECOND);
        let later = told(&mut reckoner, start + 2 * SECOND);
        assert_eq!(later.latency_sum_ns, status.latency_sum_ns, "nothing was answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_latency_that_is_not_told_is_believed_as_far_as_one_that_is() {
        let mut reckoner = Reckoner::new(7);
        let start = Instant::now();
        reckoner.hear(Figures { in_flight: Some(MAX_REQUESTS), ..figures(1e-6, 0.0) }, start);
        let status = told(&mut reckoner, start + Duration::from_secs(3_000_000));
        assert!(status.requests > 0);
        assert_eq!(status.latency_sum_ns / status.requests, (MAX_LATENCY_MS * 1e6) as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_counter_grows_until_all_begin_anew() {
        let mut reckoner = Reckoner::new(u64::MAX);
        let start = Instant::now();
        // 18e9 requests of a second each fill it, in a thousand seconds.
        reckoner.hear(Figures { latency_ms: Some(1e3), ..figures(18e6, 0.0) }, start);
        let mut last = told(&mut reckoner, start);
        let mut boots = 1;
        for n in 1..=3000 {
            let status = told(&mut reckoner, start + n * SECOND);
            match status.boot_id == last.boot_id {
                true => assert!(status.latency_sum_ns > last.latency_sum_ns),
                false => {
                    boots += 1;
                    assert_eq!((status.requests, status.latency_sum_ns), (0, 0));
                    assert_ne!(status.boot_id, 0, "that stands for none");
                }
            }
            assert!(status.seq > last.seq);
            last = status;
        }
        assert_eq!(boots, 3);
    }
}
