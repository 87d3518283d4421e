//! `random`: any instance, all alike.

use rand::rngs::SmallRng;

use super::draw::{Even, one_untried};
use super::{Moment, Picker, Ranked};

/// Draws evenly, whatever the weights, but for those that are 0.
pub struct Random {
    even: Even,
}

impl Random {
    pub fn new(ranked: Ranked<'_>) -> Self {
        Random { even: Even::new(&ranked.weights()) }
    }
}

impl Picker for Random {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        one_untried(&self.even, now, rng)
    }
}
