//! `oracle_jsq`: join the shortest queue, as it is at this moment.
//!
//! Source: any text on queues; the best there is for servers that are alike, with
//! exponential service times. No gateway can know what it needs: the requests that
//! each server has from everywhere. Equal ones by chance.

use rand::rngs::SmallRng;

use super::{Policy, World, draw};

pub struct OracleJsq;

impl Policy for OracleJsq {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        draw::least(world, rng, |server| f64::from(world.true_in_flight(server)))
    }
}
