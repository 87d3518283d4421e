//! `adaptive`: slow facts make the draw, fast facts decide.

use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, two_untried};
use super::{Moment, Picker, Ranked};

/// Draws two instances by weight and takes the one with less in flight for its
/// weight.
///
/// The weights come from reports and may be seconds old; in-flight is of this
/// host and of now. As the draw favours large weights already, idle instances
/// tie and the first draw stands: counting the request itself, as `p2c` does,
/// would favour them a second time.
pub struct Adaptive {
    table: AliasTable,
}

impl Adaptive {
    pub fn new(ranked: Ranked<'_>) -> Self {
        Adaptive { table: AliasTable::new(&ranked.weights()) }
    }
}

impl Picker for Adaptive {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        let (first, second) = two_untried(&self.table, now, rng)?;
        let weights = self.table.weights();
        // Multiplied crosswise, so that a weight of 0 divides nothing.
        let one = f64::from(now.in_flight(first)) * weights[second];
        let two = f64::from(now.in_flight(second)) * weights[first];
        Some(if two < one { second } else { first })
    }
}
