//! `ewma_apisix`: the `ewma` of Apache APISIX.
//!
//! Source: APISIX, `apisix/balancer/ewma.lua`; the formula and its flaws stand at
//! [`ewma`](super::ewma). The better of two servers by chance, decay 10 s, weights
//! ignored.
//!
//! A server without an average scores 0, the best there is: a new one is taken
//! whenever it is drawn until its first answer. An average is kept for 60 s after
//! its last change, whoever joins or leaves.

use rand::rngs::SmallRng;

use super::ewma::SharedAverages;
use super::{Outcome, Policy, World, latency_s};

/// The time to live of what is in the shared dict.
const KEEP_S: f64 = 60.0;

pub struct EwmaApisix {
    averages: SharedAverages,
}

impl EwmaApisix {
    pub fn new(averages: SharedAverages) -> Self {
        EwmaApisix { averages }
    }
}

impl Policy for EwmaApisix {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        let mut averages = self.averages.borrow_mut();
        averages.expire(KEEP_S, world.now_s());
        averages.pick(world, rng)
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        let mut averages = self.averages.borrow_mut();
        averages.expire(KEEP_S, world.now_s());
        averages.observe(server, latency_s(outcome), world.now_s());
    }
}
