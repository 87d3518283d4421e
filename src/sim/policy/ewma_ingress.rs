//! `ewma_ingress`: the `ewma` of ingress-nginx.
//!
//! Source: ingress-nginx, `rootfs/etc/nginx/lua/balancer/ewma.lua`; the formula and
//! its flaws stand at [`ewma`](super::ewma). The better of two servers by chance
//! (`PICK_SET_SIZE` 2), decay 10 s, weights ignored.
//!
//! A server that joins is given the mean of the averages of those that have one, a
//! server that leaves is forgotten. Those that are there from the start begin with
//! none, which counts as 0.

use rand::rngs::SmallRng;

use super::ewma::SharedAverages;
use super::{Outcome, Policy, World, latency_s};

pub struct EwmaIngress {
    averages: SharedAverages,
    /// Who was registered at this worker's last look; `None` before the first.
    members: Option<Vec<bool>>,
}

impl EwmaIngress {
    pub fn new(averages: SharedAverages) -> Self {
        EwmaIngress { averages, members: None }
    }

    /// Every worker does so by itself, though the averages are shared.
    fn sync(&mut self, world: &dyn World) {
        let servers = 0..world.servers();
        let now: Vec<bool> = servers.clone().map(|server| world.is_member(server)).collect();
        let Some(before) = self.members.replace(now) else { return };
        let was_member = |server: usize| before.get(server).copied().unwrap_or(false);
        let is_member = |server: usize| world.is_member(server);

        let mut averages = self.averages.borrow_mut();
        let left = (0..before.len()).filter(|&server| {
            was_member(server) && !(servers.contains(&server) && is_member(server))
        });
        left.for_each(|server| averages.forget(server));

        let joined: Vec<usize> =
            servers.clone().filter(|&server| is_member(server) && !was_member(server)).collect();
        if joined.is_empty() {
            return;
        }
        let known: Vec<f64> = servers
            .filter(|&server| is_member(server))
            .filter_map(|server| averages.stored(server))
            .collect();
        if known.is_empty() {
            return;
        }
        let mean_s = known.iter().sum::<f64>() / known.len() as f64;
        for server in joined {
            averages.set(server, mean_s, world.now_s());
        }
    }
}

impl Policy for EwmaIngress {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        self.sync(world);
        self.averages.borrow().pick(world, rng)
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        self.averages.borrow_mut().observe(server, latency_s(outcome), world.now_s());
    }
}
