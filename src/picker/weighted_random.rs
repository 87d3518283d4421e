//! `weighted_random`: each instance in proportion to its weight, at random.

use rand::rngs::SmallRng;

use super::draw::{AliasTable, one_untried};
use super::{Moment, Pick, Ranked};

/// Draws by weight, independently for each request.
pub struct WeightedRandom {
    table: AliasTable,
}

impl WeightedRandom {
    pub fn new(ranked: Ranked<'_>) -> Self {
        WeightedRandom { table: AliasTable::new(&ranked.weights()) }
    }
}

impl Pick for WeightedRandom {
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        one_untried(&self.table, now, rng)
    }
}
