//! What nginx knows of an upstream's servers, shared by its methods: the smooth
//! weighted round robin that all of them fall back to, and the passive checks that
//! all of them obey.
//!
//! Source: nginx, `ngx_http_upstream_round_robin.c`; defaults from the reference of
//! `ngx_http_upstream_module` and of `proxy_next_upstream`.
//!
//! Passive checks are on by default: `max_fails=1 fail_timeout=10s`. After one
//! failure a server gets nothing for `fail_timeout`, then one request at a time is
//! let through every `fail_timeout` until one of them succeeds. Only what
//! `proxy_next_upstream` counts by default is a failure: a timeout, not an answer
//! of 500 or 503. With all servers out nginx answers 502 at once: `None` here.
//!
//! nginx's weights are whole numbers from 1; any above 0 will do here, and one that
//! is 0 or not finite is `down`.

use std::cell::RefCell;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::draw::is_open;
use super::{Outcome, World};

/// `max_fails`, its default.
const MAX_FAILS: u32 = 1;
/// `fail_timeout`, its default.
const FAIL_TIMEOUT_S: f64 = 10.0;

/// The servers of an upstream. Without `zone` each worker has its own, with it a
/// gateway's workers share one.
pub type SharedPeers = Rc<RefCell<Peers>>;

/// A connection count of the servers: a worker's, or a gateway's.
pub type Connections = fn(&dyn World, usize) -> u32;

#[derive(Default)]
pub struct Peers {
    peers: Vec<Peer>,
    /// With one server alone, failures do not count.
    single: bool,
}

#[derive(Default, Clone, PartialEq)]
struct Peer {
    weight: f64,
    /// The weight, less after a failure, back by 1 a round.
    effective: f64,
    /// What smooth round robin compares.
    current: f64,
    fails: u32,
    /// Of the last failure; in whole seconds, as nginx's clock.
    accessed_s: f64,
    /// Of the last failure, or of the request let through since.
    checked_s: f64,
}

impl Peers {
    /// Takes over who is registered and with what weight. Who is new, or has a new
    /// weight, begins anew.
    pub fn sync(&mut self, world: &dyn World) {
        self.peers.resize(world.servers(), Peer::default());
        let mut members = 0;
        for (server, peer) in self.peers.iter_mut().enumerate() {
            let weight = world.weight(server);
            let up = world.is_member(server) && weight.is_finite() && weight > 0.0;
            let weight = if up { weight } else { 0.0 };
            if peer.weight != weight {
                *peer = Peer { weight, effective: weight, ..Peer::default() };
            }
            members += usize::from(world.is_member(server));
        }
        self.single = members == 1;
    }

    /// Smooth weighted round robin: each server's current weight grows by its
    /// effective weight, the largest is picked (the first of equals) and falls by
    /// the sum of all. Weights 5, 1, 1 give a a b a c a a.
    pub fn round_robin(&mut self, world: &dyn World) -> Option<usize> {
        let mut best: Option<usize> = None;
        let mut total = 0.0;
        for server in 0..self.peers.len() {
            if !self.is_usable(world, server) {
                continue;
            }
            total += self.peers[server].step();
            if best.is_none_or(|best| self.peers[server].current > self.peers[best].current) {
                best = Some(server);
            }
        }
        self.take(world, best?, total);
        best
    }

    /// The least connections for its weight. Equal ones take turns by smooth round
    /// robin among themselves.
    pub fn least_conn(&mut self, world: &dyn World, conns: Connections) -> Option<usize> {
        let order = |peers: &[Peer], one: usize, other: usize| {
            let one_side = f64::from(conns(world, one)) * peers[other].weight;
            one_side.total_cmp(&(f64::from(conns(world, other)) * peers[one].weight))
        };
        let usable: Vec<usize> =
            (0..self.peers.len()).filter(|&server| self.is_usable(world, server)).collect();
        // min_by gives the first of equals, as nginx's scan does.
        let least = usable.iter().copied().min_by(|&one, &other| order(&self.peers, one, other))?;
        let equals: Vec<usize> = usable
            .into_iter()
            .filter(|&server| order(&self.peers, server, least).is_eq())
            .collect();
        let (mut best, mut total) = (least, 0.0);
        if equals.len() > 1 {
            for server in equals {
                total += self.peers[server].step();
                if self.peers[server].current > self.peers[best].current {
                    best = server;
                }
            }
        }
        self.take(world, best, total);
        Some(best)
    }

    /// A server by chance, in proportion to its weight, whether it can be used or
    /// not.
    pub fn draw(&self, rng: &mut SmallRng) -> Option<usize> {
        let total: f64 = self.peers.iter().map(|peer| peer.weight).sum();
        let mut point = rng.random::<f64>() * total;
        let mut last = None;
        for (server, peer) in self.peers.iter().enumerate().filter(|(_, peer)| peer.weight > 0.0) {
            last = Some(server);
            point -= peer.weight;
            if point < 0.0 {
                break;
            }
        }
        last
    }

    /// Whether the request may go there, and the passive checks do not forbid it.
    pub fn is_usable(&self, world: &dyn World, server: usize) -> bool {
        let peer = &self.peers[server];
        let since_checked_s = world.now_s().floor() - peer.checked_s;
        let out = !self.single && peer.fails >= MAX_FAILS && since_checked_s <= FAIL_TIMEOUT_S;
        peer.weight > 0.0 && is_open(world, server) && !out
    }

    /// How many servers the upstream has.
    pub fn number(&self) -> usize {
        self.peers.iter().filter(|peer| peer.weight > 0.0).count()
    }

    /// Whether `second`, drawn after `first`, has more connections for its weight:
    /// of equal ones the second is taken.
    pub fn is_busier(&self, (first, first_conns): (usize, u32), second: (usize, u32)) -> bool {
        let (second, second_conns) = second;
        f64::from(second_conns) * self.peers[first].weight
            > f64::from(first_conns) * self.peers[second].weight
    }

    /// A request goes to the server; `total` is what smooth round robin added up.
    pub fn take(&mut self, world: &dyn World, server: usize, total: f64) {
        let now_s = world.now_s().floor();
        let peer = &mut self.peers[server];
        peer.current -= total;
        if now_s - peer.checked_s > FAIL_TIMEOUT_S {
            peer.checked_s = now_s;
        }
    }

    /// A request has ended.
    pub fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        let single = self.single;
        let Some(peer) = self.peers.get_mut(server).filter(|_| !single) else { return };
        match outcome {
            Outcome::TimedOut(_) => {
                peer.fails += 1;
                peer.accessed_s = world.now_s().floor();
                peer.checked_s = peer.accessed_s;
                let lost = peer.weight / f64::from(MAX_FAILS);
                peer.effective = (peer.effective - lost).max(0.0);
            }
            Outcome::Answered(_) | Outcome::Failed(_) if peer.accessed_s < peer.checked_s => {
                peer.fails = 0; // it was let through after a failure, and passed
            }
            Outcome::Answered(_) | Outcome::Failed(_) => {}
        }
    }
}

impl Peer {
    /// One round of smooth round robin; gives what it added.
    fn step(&mut self) -> f64 {
        let added = self.effective;
        self.current += added;
        self.effective = (self.effective + 1.0).min(self.weight);
        added
    }
}
