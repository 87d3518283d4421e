//! `round_robin`: nginx's default.
//!
//! Source: nginx, `ngx_http_upstream_round_robin.c`; the formula stands at
//! [`Peers::round_robin`]. No parameter but the weights.
//!
//! Every worker has a state of its own, as without `zone`, and all begin at the
//! first server: many workers walk the list in step for a while.

use rand::rngs::SmallRng;

use super::nginx::Peers;
use super::{Outcome, Policy, World};

#[derive(Default)]
pub struct RoundRobin {
    peers: Peers,
}

impl Policy for RoundRobin {
    fn pick(&mut self, world: &dyn World, _: &mut SmallRng) -> Option<usize> {
        self.peers.sync(world);
        self.peers.round_robin(world)
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        self.peers.ended(world, server, outcome);
    }
}
