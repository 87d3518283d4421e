//! `least_conn`, `least_conn_worker`: nginx's `least_conn`.
//!
//! Source: nginx, `ngx_http_upstream_least_conn_module.c`. The server with the
//! least connections for its weight; equal ones take turns by smooth round robin
//! among themselves.
//!
//! With `zone` (`least_conn`) the connections are those of all workers of the
//! gateway, without it (`least_conn_worker`) those of the worker alone. Neither
//! knows of other gateways.

use rand::rngs::SmallRng;

use super::nginx::{Connections, SharedPeers};
use super::{Outcome, Policy, World};

pub struct LeastConn {
    peers: SharedPeers,
    connections: Connections,
}

impl LeastConn {
    /// With `zone`.
    pub fn of_gateway(peers: SharedPeers) -> Self {
        LeastConn { peers, connections: |world, server| world.gateway_in_flight(server) }
    }

    /// Without `zone`.
    pub fn of_worker() -> Self {
        let peers = SharedPeers::default();
        LeastConn { peers, connections: |world, server| world.worker_in_flight(server) }
    }
}

impl Policy for LeastConn {
    fn pick(&mut self, world: &dyn World, _: &mut SmallRng) -> Option<usize> {
        let mut peers = self.peers.borrow_mut();
        peers.sync(world);
        peers.least_conn(world, self.connections)
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        self.peers.borrow_mut().ended(world, server, outcome);
    }
}
