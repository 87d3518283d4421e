//! `least_conn`: the least in flight for its weight.

use rand::RngExt;
use rand::rngs::SmallRng;

use super::draw::{AliasTable, Draw, one_untried};
use super::{Moment, Pick, Ranked};

/// The instance with the least requests in flight, of all workers of this host,
/// for its weight: nginx's rule, `in-flight / weight`. Of equal ones each has its
/// chance by weight, so that workers and gateways do not go to the same idle one.
///
/// Up to [`ALL`] instances are all compared. Of more, the least of [`DRAWN`]
/// drawn by weight gets the request, so that a pick costs the same for 10,000:
/// the least of 32 is on average in the best 1/33, 3 %, and in the best 13 % but
/// for one request in a hundred.
pub struct LeastConn {
    table: AliasTable,
}

/// How many instances are all compared.
const ALL: usize = 64;

/// How many are drawn of more.
const DRAWN: usize = 32;

impl LeastConn {
    pub fn new(ranked: Ranked<'_>) -> Self {
        LeastConn { table: AliasTable::new(&ranked.weights()) }
    }
}

impl Pick for LeastConn {
    fn pick(&mut self, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
        let weights = self.table.weights();
        let mut least = Least { load: f64::INFINITY, chances: 0.0, index: None };
        if weights.len() <= ALL {
            for (index, &weight) in weights.iter().enumerate() {
                if weight > 0.0 && !now.is_barred(index) {
                    let load = f64::from(now.in_flight(index)) / weight;
                    least.compare(index, load, weight, rng);
                }
            }
            // What is left has weight 0, or nothing is.
            return least.index.or_else(|| one_untried(&self.table, now, rng));
        }
        for _ in 0..DRAWN {
            let index = one_untried(&self.table, now, rng)?;
            // That it was drawn has its weight in it already.
            let load = f64::from(now.in_flight(index)) / weights[index];
            least.compare(index, load, 1.0, rng);
        }
        least.index
    }
}

/// The least loaded so far.
struct Least {
    load: f64,
    /// Of all that have that load.
    chances: f64,
    index: Option<usize>,
}

impl Least {
    fn compare(&mut self, index: usize, load: f64, chance: f64, rng: &mut SmallRng) {
        if self.index.is_none() || load < self.load {
            *self = Least { load, chances: chance, index: Some(index) };
        } else if load == self.load {
            self.chances += chance;
            if rng.random::<f64>() * self.chances < chance {
                self.index = Some(index);
            }
        }
    }
}
