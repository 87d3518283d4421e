//! `peak_ewma`: finagle's P2C over peak-EWMA loads.
//!
//! Source: finagle, `PeakEwma.scala` and `P2CPick.scala`, decay time 10 s (the
//! default of `Balancers.p2cPeakEwma`). A latency above a server's cost replaces
//! the cost, one below moves it:
//!
//! ```text
//! w    = exp(-(now - last observed) / 10 s)
//! cost = latency                       if latency > cost
//!        cost * w + latency * (1 - w)  otherwise
//! load = cost * (pending + 1)
//! ```
//!
//! Reading a load observes a latency of 0 first, so the cost of a server that gets
//! no requests falls to 0. A server without any history has load 0 while nothing is
//! pending on it, and a penalty beyond all costs while something is: one probe at a
//! time. Of two different servers by chance the lower load wins, of equal ones the
//! second. Every worker has a state of its own; weights are ignored; a failure
//! counts by its latency like any answer (finagle's failure accrual is apart).

use rand::rngs::SmallRng;

use super::{Outcome, Policy, World, draw, latency_s};

const TAU_S: f64 = 10.0;

/// Finagle's `Long.MaxValue >> 16`, which it takes for nanoseconds: 39 hours.
const PENALTY_S: f64 = (i64::MAX >> 16) as f64 * 1e-9;

#[derive(Default)]
pub struct PeakEwma {
    metrics: Vec<Metric>,
}

#[derive(Default, Clone)]
pub(super) struct Metric {
    cost_s: f64,
    observed_s: f64,
}

impl Metric {
    pub(super) fn observe(&mut self, latency_s: f64, now_s: f64) {
        let w = (-(now_s - self.observed_s).max(0.0) / TAU_S).exp();
        self.cost_s = if latency_s > self.cost_s {
            latency_s
        } else {
            self.cost_s * w + latency_s * (1.0 - w)
        };
        self.observed_s = now_s;
    }

    pub(super) fn load(&mut self, pending: u32, now_s: f64) -> f64 {
        self.observe(0.0, now_s);
        if self.cost_s == 0.0 && pending != 0 {
            PENALTY_S + f64::from(pending) * 1e-9
        } else {
            self.cost_s * (f64::from(pending) + 1.0)
        }
    }
}

impl Policy for PeakEwma {
    fn pick(&mut self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        self.metrics.resize(world.servers(), Metric::default());
        for (server, metric) in self.metrics.iter_mut().enumerate() {
            if !world.is_member(server) {
                *metric = Metric::default(); // begins anew if it comes back
            }
        }
        let (first, second) = draw::any_two(world, rng)?;
        let mut load = |server: usize| {
            self.metrics[server].load(world.worker_in_flight(server), world.now_s())
        };
        let first_wins = load(first) < load(second);
        Some(if first_wins { first } else { second })
    }

    fn ended(&mut self, world: &dyn World, server: usize, outcome: Outcome) {
        if let Some(metric) = self.metrics.get_mut(server) {
            metric.observe(latency_s(outcome), world.now_s());
        }
    }
}
