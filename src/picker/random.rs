//! `random`: any instance, all alike.

use rand::rngs::SmallRng;

use super::{Moment, Picker, Ranked, any_of, draw_untried, eligible};

/// Draws evenly, whatever the weights, but for those that are 0.
pub struct Random {
    eligible: Vec<usize>,
    len: usize,
}

impl Random {
    pub fn new(ranked: Ranked<'_>) -> Self {
        Random { eligible: eligible(ranked.weights), len: ranked.weights.len() }
    }
}

impl Picker for Random {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        draw_untried(now, self.len, || any_of(&self.eligible, rng))
    }
}
