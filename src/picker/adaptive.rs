//! `adaptive`: slow facts make the draw, fast facts decide.

use rand::rngs::SmallRng;

use super::alias::AliasTable;
use super::{Moment, Picker, Ranked, draw_two};

/// Draws two instances by weight and takes the one with less in flight for its
/// weight.
///
/// The weights come from reports and may be seconds old; in-flight is of this
/// host and of now. As the draw favours large weights already, idle instances
/// tie and the first draw stands: counting the request itself, as `p2c` does,
/// would favour them a second time.
pub struct Adaptive {
    table: AliasTable,
    weights: Vec<f64>,
}

impl Adaptive {
    pub fn new(ranked: Ranked<'_>) -> Self {
        Adaptive {
            table: AliasTable::new(ranked.weights),
            weights: super::in_force(ranked.weights),
        }
    }
}

impl Picker for Adaptive {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        let (first, second) = draw_two(now, self.weights.len(), || self.table.draw(rng))?;
        // Multiplied crosswise, so that a weight of 0 divides nothing.
        let one = f64::from(now.in_flight(first)) * self.weights[second];
        let two = f64::from(now.in_flight(second)) * self.weights[first];
        Some(if two < one { second } else { first })
    }
}
