//! `p2c`: the power of two choices.

use rand::RngExt;
use rand::rngs::SmallRng;

use super::draw::{Even, in_force, two_untried};
use super::{Moment, Picker, Ranked};

/// Draws two instances evenly and takes the one with less in flight for its
/// weight.
///
/// With even draws the cost that compares fairly is `(in-flight + 1) / weight`:
/// an idle instance of weight 2 comes before an idle one of weight 1.
///
/// Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load
/// Balancing, IEEE Transactions on Parallel and Distributed Systems 12(10), 2001.
pub struct P2c {
    even: Even,
    weights: Vec<f64>,
}

impl P2c {
    pub fn new(ranked: Ranked<'_>) -> Self {
        let weights = ranked.weights();
        P2c { even: Even::new(&weights), weights: in_force(&weights) }
    }
}

impl Picker for P2c {
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize> {
        let (first, second) = two_untried(&self.even, now, rng)?;
        let cost = |index: usize| (f64::from(now.in_flight(index)) + 1.0) / self.weights[index];
        let (one, two) = (cost(first), cost(second));
        let second_wins = two < one || (two == one && rng.random());
        Some(if second_wins { second } else { first })
    }
}
