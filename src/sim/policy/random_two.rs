//! `random_two`, `random_two_worker`: nginx's `random two least_conn`.
//!
//! Source: nginx, `ngx_http_upstream_random_module.c`. Two different servers are
//! drawn in proportion to their weights, and the first is taken if
//!
//! ```text
//! connections(second) * weight(first) > connections(first) * weight(second)
//! ```
//!
//! and the second otherwise, so also of equal ones. Up to 20 draws for two that can
//! be used, then smooth round robin.
//!
//! With `zone` (`random_two`) the connections are those of all workers of the
//! gateway, without it (`random_two_worker`) those of the worker alone. Kept: a
//! large weight is likely to be drawn first, and then loses where counts are equal,
//! so at low load it gets less than its share.

use rand::rngs::SmallRng;

use super::nginx::{Connections, SharedPeers};
use super::random::DRAWS;
use super::{Outcome, Policy, World};

pub struct RandomTwo {
    peers: SharedPeers,
    connections: Connections,
}

impl RandomTwo {
    /// With `zone`.
    pub fn of_gateway(peers: SharedPeers) -> Self {
        RandomTwo { peers, connections: |world, server| world.gateway_in_flight(server) }
    }

    /// Without `zone`.
    pub fn of_worker() -> Self {
        let peers = SharedPeers::default();
        RandomTwo { peers, connections: |world, server| world.worker_in_flight(server) }
    }
}

impl Policy for RandomTwo {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        let mut peers = self.peers.borrow_mut();
        peers.sync(world);
        if peers.number() < 2 {
            return peers.round_robin(world);
        }
        let mut first = None;
        for _ in 0..DRAWS {
            let server = peers.draw(rng)?;
            if Some(server) == first || !peers.is_usable(world, server) {
                continue;
            }
            let Some(other) = first else {
                first = Some(server);
                continue;
            };
            let with_conns = |server| (server, (self.connections)(world, server));
            let busier = peers.is_busier(with_conns(other), with_conns(server));
            let picked = if busier { other } else { server };
            peers.take(world, picked, 0.0);
            return Some(picked);
        }
        peers.round_robin(world)
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        self.peers.borrow_mut().ended(world, server, outcome);
    }
}
