//! `random`: by chance, in proportion to the weights.
//!
//! Source: nginx, `ngx_http_upstream_random_module.c`, `random`. Up to 20 draws for
//! a server that can be used, then smooth round robin.
//!
//! Every worker has a state of its own, as without `zone`.

use rand::rngs::SmallRng;

use super::nginx::Peers;
use super::{Outcome, Policy, World};

/// Draws of one request.
pub const DRAWS: usize = 20;

#[derive(Default)]
pub struct Random {
    peers: Peers,
}

impl Policy for Random {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        self.peers.sync(world);
        for _ in 0..DRAWS {
            let server = self.peers.draw(rng)?;
            if self.peers.is_usable(world, server) {
                self.peers.take(world, server, 0.0);
                return Some(server);
            }
        }
        self.peers.round_robin(world)
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        self.peers.ended(world, server, outcome);
    }
}
