//! `p2c`: the power of two choices.

use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, two_untried};
use super::{Moment, Pick, Ranked};

/// Draws two instances by weight and takes the one with less in flight for its
/// weight.
///
/// As the draw favours large weights already, idle instances tie and the first
/// draw stands: counting the request itself would favour them a second time, and
/// leave out whoever has a small weight.
///
/// Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load
/// Balancing, IEEE Transactions on Parallel and Distributed Systems 12(10), 2001.
pub struct P2c {
    table: AliasTable,
}

impl P2c {
    pub fn new(ranked: Ranked<'_>) -> Self {
        P2c { table: AliasTable::new(&ranked.weights()) }
    }
}

impl Pick for P2c {
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        let (first, second) = two_untried(&self.table, now, rng)?;
        let weights = self.table.weights();
        // Multiplied crosswise, so that a weight of 0 divides nothing.
        let one = f64::from(now.in_flight(first)) * weights[second];
        let two = f64::from(now.in_flight(second)) * weights[first];
        Some(if two < one { second } else { first })
    }
}
