//! Whether an instance is as it was: what need not be written again.
//!
//! Compared are the figures that a ranking is made of. Counters always grow; what
//! counts is how fast, so that each status is seen beside the one before it. To
//! leave a status out loses nothing, since the next one that is written brings
//! the counters up to date.

use std::time::Duration;

use crate::model::{Report, Status};

/// Below these, a difference is measured by them: nobody is ranked otherwise for
/// a single request, or for a percent of a core.
const RATE_FLOOR: f64 = 20.0; // requests/s
const LATENCY_FLOOR_MS: f64 = 2.0;
const PART_FLOOR: f64 = 0.2; // of CPU, memory, errors, and of an application's own measure
const REQUESTS_FLOOR: f64 = 20.0; // in flight, or waiting

/// What an instance's last report says.
#[derive(Debug, Clone, PartialEq)]
pub enum Figures {
    /// That it serves, and no more.
    Serving,
    /// That it wants no requests.
    NotServing,
    /// How it is.
    Told(Told),
}

/// Rates are those since the status before; `None` is unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    boot_id: u64,
    rate: Option<f64>,
    errors: Option<f64>,
    latency_ms: Option<f64>,
    cpu: Option<f64>,
    memory: Option<f64>,
    in_flight: Option<f64>,
    queue: Option<f64>,
    application: Option<f64>,
    max_in_flight: Option<u32>,
}

impl Figures {
    /// Of a report, `elapsed` after the status before it; `None`: of one that
    /// tells no figures because the instance could not be read.
    pub fn of(report: &Report, before: Option<&Status>, elapsed: Duration) -> Option<Self> {
        match report {
            Report::Serving => Some(Self::Serving),
            Report::NotServing => Some(Self::NotServing),
            Report::Unreachable { .. } => None,
            Report::Status(status) => Some(Self::Told(Told::of(status, before, elapsed))),
        }
    }

    /// Whether no figure has moved by more than `deadband`, a part of what it
    /// was. A `deadband` of 0 takes nothing for equal.
    pub fn is_as(&self, before: &Self, deadband: f64) -> bool {
        match (self, before) {
            _ if deadband <= 0.0 => false,
            (Self::Told(now), Self::Told(before)) => now.is_as(before, deadband),
            _ => self == before,
        }
    }
}

impl Told {
    fn of(status: &Status, before: Option<&Status>, elapsed: Duration) -> Self {
        let before = before.filter(|it| it.boot_id == status.boot_id && it.seq < status.seq);
        let grown = |counter: fn(&Status) -> u64| {
            Some(counter(status).checked_sub(counter(before?))? as f64)
        };
        let requests = grown(|it| it.requests);
        let of_requests = |part: Option<f64>| Some(part? / requests.filter(|count| *count > 0.0)?);
        Self {
            boot_id: status.boot_id,
            rate: requests.filter(|_| !elapsed.is_zero()).map(|it| it / elapsed.as_secs_f64()),
            errors: of_requests(grown(|it| it.errors)),
            latency_ms: of_requests(grown(|it| it.latency_sum_ns)).map(|ns| ns / 1e6),
            cpu: status.cpu_utilization(),
            memory: status.memory_utilization(),
            in_flight: status.in_flight.map(|it| it as f64),
            queue: status.queue.map(|it| it as f64),
            application: status.application_utilization,
            max_in_flight: status.max_in_flight,
        }
    }

    fn is_as(&self, before: &Self, deadband: f64) -> bool {
        let is_near = |now: Option<f64>, before: Option<f64>, floor: f64| match (now, before) {
            (Some(now), Some(before)) => (now - before).abs() <= deadband * before.max(floor),
            (now, before) => now.is_none() && before.is_none(),
        };
        // Where no request was answered, the rate says all there is to say.
        let is_near_if_known = |now: Option<f64>, before: Option<f64>, floor: f64| {
            now.is_none() || before.is_none() || is_near(now, before, floor)
        };
        self.boot_id == before.boot_id
            && self.max_in_flight == before.max_in_flight
            && is_near(self.rate, before.rate, RATE_FLOOR)
            && is_near_if_known(self.errors, before.errors, PART_FLOOR)
            && is_near_if_known(self.latency_ms, before.latency_ms, LATENCY_FLOOR_MS)
            && is_near(self.cpu, before.cpu, PART_FLOOR)
            && is_near(self.memory, before.memory, PART_FLOOR)
            && is_near(self.in_flight, before.in_flight, REQUESTS_FLOOR)
            && is_near(self.queue, before.queue, REQUESTS_FLOOR)
            && is_near(self.application, before.application, PART_FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DEADBAND: f64 = 0.05;

    /// The status of second `seq` of an instance that answers `rate` requests a
    /// second in 10 ms each.
    fn status(seq: u64, rate: u64) -> Status {
        Status {
            boot_id: 1,
            seq,
            requests: rate * seq,
            latency_sum_ns: rate * seq * 10_000_000,
            cpu_used_cores: Some(1.0),
            cpu_limit_cores: Some(2.0),
            memory_used_bytes: Some(1 << 30),
            memory_limit_bytes: Some(4 << 30),
            in_flight: Some(100),
            ..Status::default()
        }
    }

    fn steady() -> Figures {
        figures(status(2, 100))
    }

    fn figures(status: Status) -> Figures {
        let before = self::status(1, 100);
        Figures::of(&status.into(), Some(&before), SECOND).unwrap()
    }

    #[test]
    fn counters_that_grow_as_fast_as_before_are_no_change() {
        let later = Figures::of(&status(3, 100).into(), Some(&status(2, 100)), SECOND).unwrap();
        assert!(later.is_as(&steady(), DEADBAND));
        assert!(!later.is_as(&steady(), 0.0), "without a deadband everything is news");
    }

    #[test]
    fn each_figure_alone_is_a_change_beyond_the_deadband_and_none_within_it() {
        type Turn = fn(&mut Status);
        let cases: [(&str, Turn, Turn); 8] = [
            ("rate", |s| s.requests += 4, |s| s.requests += 6),
            ("errors", |s| s.errors = 1, |s| s.errors = 2),
            ("latency", |s| s.latency_sum_ns += 49_000_000, |s| s.latency_sum_ns += 51_000_000),
            ("cpu", |s| s.cpu_used_cores = Some(1.04), |s| s.cpu_used_cores = Some(1.06)),
            (
                "memory",
                |s| s.memory_used_bytes = Some((1 << 30) + (40 << 20)),
                |s| s.memory_used_bytes = Some((1 << 30) + (60 << 20)),
            ),
            ("in flight", |s| s.in_flight = Some(105), |s| s.in_flight = Some(106)),
            ("queue", |_| {}, |s| s.queue = Some(0)),
            ("limit", |_| {}, |s| s.max_in_flight = Some(1000)),
        ];
        for (figure, within, beyond) in cases {
            for (turn, is_as) in [(within, true), (beyond, false)] {
                let mut turned = status(2, 100);
                turn(&mut turned);
                // The requests' own latencies grow with them.
                if figure == "rate" {
                    turned.latency_sum_ns = turned.requests * 10_000_000;
                }
                assert_eq!(figures(turned).is_as(&steady(), DEADBAND), is_as, "{figure}");
            }
        }
    }

    #[test]
    fn any_change_of_a_limit_is_a_change() {
        let limited = |max| figures(Status { max_in_flight: Some(max), ..status(2, 100) });
        assert!(limited(1000).is_as(&limited(1000), DEADBAND));
        assert!(!limited(1001).is_as(&limited(1000), DEADBAND));
    }

    #[test]
    fn little_beside_nothing_is_no_change() {
        let mut idle = status(2, 100);
        idle.in_flight = Some(0);
        let mut one_request = idle.clone();
        one_request.in_flight = Some(1);
        assert!(figures(one_request).is_as(&figures(idle), DEADBAND));
    }

    #[test]
    fn a_second_without_a_request_is_no_change_where_there_are_few() {
        let quiet =
            figures(Status { requests: 100, latency_sum_ns: 1_000_000_000, ..status(2, 0) });
        let mut one = status(2, 0);
        (one.requests, one.latency_sum_ns) = (101, 1_010_000_000);
        assert!(figures(one).is_as(&quiet, DEADBAND));
        assert!(!steady().is_as(&quiet, DEADBAND), "a hundred requests are many");
    }

    #[test]
    fn a_restart_and_a_change_of_kind_are_changes() {
        let mut restarted = status(2, 100);
        restarted.boot_id = 2;
        assert!(!figures(restarted).is_as(&steady(), DEADBAND));
        assert!(!Figures::Serving.is_as(&steady(), DEADBAND));
        assert!(!Figures::Serving.is_as(&Figures::NotServing, DEADBAND));
        assert!(Figures::Serving.is_as(&Figures::Serving, DEADBAND));
    }
}
