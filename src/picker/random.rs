//! `random`: any instance, all alike.

use rand::rngs::SmallRng;

use super::draw::{AliasTable, in_force, one_untried};
use super::{Moment, Pick, Ranked};

/// Draws evenly, whatever the ranking's weights, but for those that are 0; by what
/// governs an instance beside them (its zone, its slow start), where anything does.
pub struct Random {
    table: AliasTable,
}

impl Random {
    pub fn new(ranked: Ranked<'_>) -> Self {
        let weights = in_force(&ranked.weights());
        let odds = ranked
            .records
            .iter()
            .zip(weights)
            .map(|(record, weight)| if weight > 0.0 { f64::from(record.factor) } else { 0.0 });
        Random { table: AliasTable::new(&odds.collect::<Vec<_>>()) }
    }
}

impl Pick for Random {
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        one_untried(&self.table, now, rng)
    }
}
