//! The latency averages that `ewma_ingress` and `ewma_apisix` keep in a shared
//! dict, one for all workers of a gateway.
//!
//! Source: `ewma.lua` of ingress-nginx and of APISIX, the same formula in both:
//!
//! ```text
//! weight  = exp(-(now - last touched) / 10 s)
//! average = average * weight + latency * (1 - weight)
//! ```
//!
//! To compare, an average is read as if a latency of 0 had come in just now. Flaws
//! that are kept: the average of a server that gets no requests falls to 0, so the
//! longer a server was avoided the better it looks; requests in flight do not
//! count; a failure counts by its latency like any answer, so a server that fails
//! at once looks best.
//!
//! What a simulation cannot show: an update is lost when two workers make one at
//! the same time, the time to connect counts twice, and of a request that was
//! retried only the last try is counted (here each is).

use std::cell::RefCell;
use std::rc::Rc;

use rand::rngs::SmallRng;

use super::{World, draw};

const DECAY_S: f64 = 10.0;

/// One for all workers of a gateway.
pub type SharedAverages = Rc<RefCell<Averages>>;

/// By server.
#[derive(Default)]
pub struct Averages {
    averages: Vec<Option<Average>>,
}

#[derive(Clone, Copy)]
struct Average {
    latency_s: f64,
    touched_s: f64,
}

impl Averages {
    /// What is compared, in seconds: less is better, and 0 is of a server that
    /// nothing is known of.
    pub fn score(&self, server: usize, now_s: f64) -> f64 {
        self.get(server).map_or(0.0, |average| average.decayed(0.0, now_s))
    }

    /// A request took `latency_s`. The first one is the average as it is.
    pub fn observe(&mut self, server: usize, latency_s: f64, now_s: f64) {
        let latency_s =
            self.get(server).map_or(latency_s, |average| average.decayed(latency_s, now_s));
        self.set(server, latency_s, now_s);
    }

    /// As it was when it was last touched, in seconds.
    pub fn stored(&self, server: usize) -> Option<f64> {
        self.get(server).map(|average| average.latency_s)
    }

    pub fn set(&mut self, server: usize, latency_s: f64, now_s: f64) {
        if server >= self.averages.len() {
            self.averages.resize(server + 1, None);
        }
        self.averages[server] = Some(Average { latency_s, touched_s: now_s });
    }

    pub fn forget(&mut self, server: usize) {
        if let Some(average) = self.averages.get_mut(server) {
            *average = None;
        }
    }

    /// Forgets those that were not touched for longer than `keep_s`.
    pub fn expire(&mut self, keep_s: f64, now_s: f64) {
        for average in &mut self.averages {
            *average = average.filter(|average| now_s - average.touched_s <= keep_s);
        }
    }

    /// Two open servers by chance, and of those the lower score; the first of equal
    /// ones.
    pub fn pick(&self, world: &dyn World, rng: &mut SmallRng) -> Option<usize> {
        let now_s = world.now_s();
        let (first, second) = draw::any_two(world, rng)?;
        let second_wins = self.score(second, now_s) < self.score(first, now_s);
        Some(if second_wins { second } else { first })
    }

    fn get(&self, server: usize) -> Option<Average> {
        self.averages.get(server).copied().flatten()
    }
}

impl Average {
    fn decayed(self, latency_s: f64, now_s: f64) -> f64 {
        let weight = (-(now_s - self.touched_s).max(0.0) / DECAY_S).exp();
        self.latency_s * weight + latency_s * (1.0 - weight)
    }
}
