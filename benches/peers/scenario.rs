//! What the sides are compared by: a fleet, requests, and what happens to both.

use std::ops::Range;
use std::time::Duration;

use crate::servers::Shape;

/// Coefficient of variation of the service times, which are lognormal.
pub const CV: f64 = 1.0;

/// One of the tables.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// So many instances of each shape.
    groups: &'static [(usize, Shape)],
    /// Requests a second, but for the surge.
    pub rate: f64,
    /// More of them for a while.
    surge: Option<(Range<Duration>, f64)>,
    /// In the order of time.
    pub changes: &'static [Change],
    /// What happens needs so long.
    pub at_least: Duration,
    pub goal: Option<Goal>,
    /// Whether every side takes part even if it is not asked for: else only those of
    /// [`is_of_the_few`](crate::sides::is_of_the_few), so that a run of all scenarios
    /// stays short.
    pub has_all_sides: bool,
}

/// Some instances become so many times as fast as they are by their shape.
pub struct Change {
    /// Since requests are counted.
    pub at: Duration,
    pub instances: Range<usize>,
    pub speed: f64,
}

/// At most so many times what the best of the peers has.
pub struct Goal {
    pub p99: f64,
    pub mean: Option<f64>,
}

impl Scenario {
    pub fn shapes(&self) -> Vec<Shape> {
        self.groups.iter().flat_map(|&(count, shape)| vec![shape; count]).collect()
    }

    /// The indices of the instances of each shape.
    pub fn groups(&self) -> Vec<Range<usize>> {
        let mut next = 0;
        let range = |&(count, _): &(usize, Shape)| {
            next += count;
            next - count..next
        };
        self.groups.iter().map(range).collect()
    }

    /// Requests a second at a time since they are counted.
    pub fn rate_at(&self, time: Duration) -> f64 {
        match &self.surge {
            Some((during, rate)) if during.contains(&time) => *rate,
            _ => self.rate,
        }
    }
}

const fn shape(slots: usize, mean_ms: u64) -> Shape {
    Shape { slots, mean: Duration::from_millis(mean_ms) }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const TWO_SPEEDS: &[(usize, Shape)] = &[(5, shape(4, 10)), (5, shape(4, 30))];

/// With nothing special about it.
const PLAIN: Scenario = Scenario {
    name: "",
    about: "",
    groups: TWO_SPEEDS,
    rate: 0.0,
    surge: None,
    changes: &[],
    at_least: Duration::ZERO,
    goal: None,
    has_all_sides: false,
};

pub const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "two-speeds-1200",
        about: "5 servers of 4 slots and 10 ms, 5 of 4 slots and 30 ms: 45 % busy",
        rate: 1200.0,
        goal: Some(Goal { p99: 0.6, mean: None }),
        has_all_sides: true,
        ..PLAIN
    },
    Scenario {
        name: "two-speeds-1900",
        about: "5 servers of 4 slots and 10 ms, 5 of 4 slots and 30 ms: 71 % busy",
        rate: 1900.0,
        goal: Some(Goal { p99: 0.75, mean: Some(1.0) }),
        has_all_sides: true,
        ..PLAIN
    },
    Scenario {
        name: "equal",
        about: "10 servers of 4 slots and 10 ms: 75 % busy",
        groups: &[(10, shape(4, 10))],
        rate: 3000.0,
        goal: Some(Goal { p99: 1.03, mean: None }),
        has_all_sides: true,
        ..PLAIN
    },
    Scenario {
        name: "three-sizes",
        about: "2 servers of 12 slots, 3 of 4, 3 of 1, all of 20 ms: 60 % busy",
        groups: &[(2, shape(12, 20)), (3, shape(4, 20)), (3, shape(1, 20))],
        rate: 1170.0,
        ..PLAIN
    },
    Scenario {
        name: "slowdown",
        about: "7 servers of 4 slots and 10 ms, 50 % busy; for 5 s two are a fifth as fast",
        groups: &[(7, shape(4, 10))],
        rate: 1400.0,
        changes: &[
            Change { at: seconds(2), instances: 5..7, speed: 0.2 },
            Change { at: seconds(7), instances: 5..7, speed: 1.0 },
        ],
        at_least: seconds(9),
        ..PLAIN
    },
    Scenario {
        name: "surge",
        about: "5 servers of 4 slots and 10 ms, 5 of 4 slots and 30 ms: 30 % busy, 82 % for 5 s",
        rate: 800.0,
        surge: Some((seconds(2)..seconds(7), 2200.0)),
        at_least: seconds(9),
        ..PLAIN
    },
];
