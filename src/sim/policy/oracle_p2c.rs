//! `oracle_p2c`: the shorter of two queues by chance, as they are at this moment.
//!
//! Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing,
//! IEEE Transactions on Parallel and Distributed Systems 12(10), 2001. The two
//! differ. No gateway can know what it needs: the requests that each server has
//! from everywhere. Of equal ones the first, which is as much by chance.

use rand::rngs::SmallRng;

use super::{Policy, World, draw};

pub struct OracleP2c;

impl Policy for OracleP2c {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        let (first, second) = draw::any_two(world, rng)?;
        let second_wins = world.true_in_flight(second) < world.true_in_flight(first);
        Some(if second_wins { second } else { first })
    }
}
