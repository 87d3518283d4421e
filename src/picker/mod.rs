//! The strategies: which instance gets this request. One file each, one trait;
//! neither nginx nor a clock is known here, and chance is an argument, so that
//! a simulation can drive the same code.

mod adaptive;
mod best;
mod draw;
mod p2c;
mod random;
mod round_robin;
mod weighted_random;

use rand::rngs::SmallRng;

use crate::config::Strategy;

/// A service's instances as a strategy sees them: what the ranking says of each
/// by index, the same index that [`Picker::pick`] answers with.
#[derive(Debug, Clone, Copy)]
pub struct Ranked<'a> {
    /// Weights, finite and not negative. An instance of weight 0 is picked only
    /// when all weights are 0, or when nothing else is left to try.
    pub weights: &'a [f64],
    /// Ranks, 0 the best; each index's rank is below the number of instances.
    pub ranks: &'a [u32],
}

/// What is known at the moment of the request.
pub trait Moment {
    /// Whether this request has tried an instance before.
    fn is_retry(&self) -> bool;
    /// Whether this request has tried the instance already.
    fn is_tried(&self, index: usize) -> bool;
    /// Requests that this host has open on the instance.
    fn in_flight(&self, index: usize) -> u32;
}

/// A strategy over one ranking; a new ranking makes a new one.
pub trait Picker {
    /// The instance for this request, among those that it has not tried; `None`
    /// only when it has tried all. Costs the same for 3 instances and 10,000, a
    /// retry's aside.
    fn pick(&mut self, now: &dyn Moment, rng: &mut SmallRng) -> Option<usize>;
}

/// The strategy over a ranking.
pub fn build(strategy: Strategy, ranked: Ranked<'_>, rng: &mut SmallRng) -> Box<dyn Picker> {
    match strategy {
        Strategy::Best => Box::new(best::Best::new(ranked)),
        Strategy::WeightedRandom => Box::new(weighted_random::WeightedRandom::new(ranked)),
        Strategy::RoundRobin => Box::new(round_robin::RoundRobin::new(ranked, rng)),
        Strategy::Random => Box::new(random::Random::new(ranked)),
        Strategy::P2c => Box::new(p2c::P2c::new(ranked)),
        Strategy::Adaptive => Box::new(adaptive::Adaptive::new(ranked)),
    }
}

#[cfg(test)]
mod tests;
