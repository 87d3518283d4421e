//! `round_robin`: each instance in proportion to its weight, in turns.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::draw::in_force;
use super::{Moment, Picker, Ranked};

/// Earliest deadline first: an instance of weight `w` is due every `1/w`, and
/// the one that is due first gets the request. Turns come out evenly spread
/// (smooth), any weights will do, and a pick costs O(log n).
///
/// Each instance starts at a random phase, so that many gateways, or one after
/// each new ranking, do not begin with the same instance. Over any stretch each
/// instance is within one turn or so of its share.
///
/// A retry takes nobody's turn: did it, a dead instance and a live one would both
/// move on with each request, and every request would try the dead one first.
pub struct RoundRobin {
    due: BinaryHeap<Turn>,
    /// Set aside while a retry looks for an instance that it has not tried.
    passed: Vec<Turn>,
    /// Instances of weight 0, for when nothing else is left to try.
    idle: Vec<usize>,
}

struct Turn {
    deadline: f64,
    period: f64,
    index: usize,
}

impl RoundRobin {
    pub fn new(ranked: Ranked<'_>, rng: &mut SmallRng) -> Self {
        let weights = in_force(&ranked.weights());
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let (mut due, mut idle) = (Vec::new(), Vec::new());
        for (index, weight) in weights.into_iter().enumerate() {
            // Periods count from the largest weight's, which is 1, and end
            // where adding one to a deadline would no longer change it.
            let period = (largest / weight).min(1e9);
            if weight > 0.0 {
                due.push(Turn { deadline: rng.random::<f64>() * period, period, index });
            } else {
                idle.push(index);
            }
        }
        RoundRobin { due: due.into(), passed: Vec::new(), idle }
    }
}

impl Picker for RoundRobin {
    fn pick(&mut self, now: &dyn Moment, _: &mut SmallRng) -> Option<usize> {
        let mut picked = None;
        while let Some(mut turn) = self.due.pop() {
            if now.is_tried(turn.index) {
                self.passed.push(turn); // still due, for the next request
                continue;
            }
            picked = Some(turn.index);
            if !now.is_retry() {
                turn.deadline += turn.period;
            }
            self.passed.push(turn);
            break;
        }
        self.due.extend(self.passed.drain(..));
        picked.or_else(|| self.idle.iter().copied().find(|&index| !now.is_tried(index)))
    }
}

impl Ord for Turn {
    /// The earliest deadline is the greatest, for `BinaryHeap`.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then_with(|| other.index.cmp(&self.index))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}
