//! `round_robin`: each instance in proportion to its weight, in turns.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use rand::RngExt;
use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, in_force};
use super::{Memory, Moment, Pick, Ranked};

/// Earliest deadline first: an instance of weight `w` is due every `1/w`, and
/// the one that is due first gets the request. Turns come out evenly spread
/// (smooth), any weights will do, and a pick costs O(log n).
///
/// The first turn is drawn by weight, and every other instance starts at a random
/// phase, so that many gateways do not begin with the same instance. This is how
/// the queue looks just before a turn taken at random while it runs: any
/// one turn, the first included, is an instance's with a chance of exactly its
/// share (the superposition's Palm distribution). With random phases
/// alone, large weights would get more than their share of the first turns.
///
/// A new ranking keeps the turns: an instance that was half a period from its
/// turn still is, by its new weight. So turns stay smooth where rankings come
/// more often than requests. Over any stretch each instance is within one turn or
/// so of its share.
///
/// A retry takes nobody's turn: did it, a dead instance and a live one would both
/// move on with each request, and every request would try the dead one first.
pub struct RoundRobin {
    due: BinaryHeap<Turn>,
    /// Set aside while a request looks for an instance that it may go to; with room for
    /// all, so that no request allocates.
    passed: Vec<Turn>,
    /// Instances of weight 0, for when nothing else is left to try.
    idle: Vec<usize>,
    identities: Vec<u64>,
    /// The deadline of the last turn taken.
    clock: f64,
}

struct Turn {
    deadline: f64,
    period: f64,
    index: usize,
}

/// How far each instance is from its turn.
pub struct Turns {
    identities: Vec<u64>,
    /// In its periods, 0 to 1, or less for one whose turn is overdue; `None` for
    /// an instance of weight 0.
    phases: Vec<Option<f64>>,
}

impl RoundRobin {
    pub fn new(ranked: Ranked<'_>, memory: Memory, rng: &mut SmallRng) -> Self {
        let weights = in_force(&ranked.weights());
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let phases = match memory {
            Memory::Turns(turns) => turns.of(ranked.identities),
            _ => vec![None; weights.len()],
        };
        let is_first = phases.iter().all(Option::is_none);
        let first = is_first.then(|| AliasTable::new(&weights).draw(rng)).flatten();
        // An index, not an option: the compiler may look at what `None` leaves open before
        // it looks whether it is one, and valgrind takes that for an error.
        let first = first.unwrap_or(usize::MAX);
        let (mut due, mut idle) = (Vec::new(), Vec::new());
        for (index, (weight, phase)) in weights.into_iter().zip(phases).enumerate() {
            // Periods count from the largest weight's, which is 1, and end
            // where adding one to a deadline would no longer change it.
            let period = (largest / weight).min(1e9);
            if weight > 0.0 {
                let phase = phase.unwrap_or_else(|| rng.random());
                let phase = if first == index { 0.0 } else { phase };
                due.push(Turn { deadline: phase * period, period, index });
            } else {
                idle.push(index);
            }
        }
        let identities = ranked.identities.to_vec();
        let passed = Vec::with_capacity(due.len());
        RoundRobin { due: due.into(), passed, idle, identities, clock: 0.0 }
    }
}

impl Turns {
    /// The phases of these instances; `None` for those that are new.
    fn of(self, identities: &[u64]) -> Vec<Option<f64>> {
        if self.identities == identities {
            return self.phases;
        }
        let known: HashMap<u64, Option<f64>> =
            self.identities.into_iter().zip(self.phases).collect();
        identities.iter().map(|identity| known.get(identity).copied().flatten()).collect()
    }
}

impl Pick for RoundRobin {
    fn pick(&mut self, now: &impl Moment, _: &mut SmallRng) -> Option<usize> {
        let mut picked = None;
        while let Some(mut turn) = self.due.pop() {
            if now.is_barred(turn.index) {
                self.passed.push(turn); // still due, for the next request
                continue;
            }
            picked = Some(turn.index);
            if !now.is_retry() {
                self.clock = turn.deadline;
                turn.deadline += turn.period;
            }
            self.passed.push(turn);
            break;
        }
        self.due.extend(self.passed.drain(..));
        picked.or_else(|| self.idle.iter().copied().find(|&index| !now.is_barred(index)))
    }

    fn into_memory(self) -> Memory {
        let mut phases = vec![None; self.identities.len()];
        for turn in self.due {
            phases[turn.index] = Some((turn.deadline - self.clock) / turn.period);
        }
        Memory::Turns(Turns { identities: self.identities, phases })
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
