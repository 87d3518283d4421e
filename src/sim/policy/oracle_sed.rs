//! `oracle_sed`: the shortest expected delay, as it is at this moment.
//!
//! Source: S. A. Banawan and J. Zahorjan, Load Sharing in Heterogeneous Queueing
//! Systems, INFOCOM 1989, for servers of several slots:
//!
//! ```text
//! delay = s * (1 + max(0, q + 1 - k) / k)
//! ```
//!
//! with mean service time `s`, `q` requests there and `k` slots. No gateway can know
//! what it needs. Equal ones by chance.

use rand::rngs::SmallRng;

use super::{Policy, World, draw};

pub struct OracleSed;

impl Policy for OracleSed {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        draw::least(world, rng, |server| {
            let slots = f64::from(world.slots(server).max(1));
            let waiting = (f64::from(world.true_in_flight(server)) + 1.0 - slots).max(0.0);
            world.true_service_s(server) * (1.0 + waiting / slots)
        })
    }
}
