//! `best`: the top of the ranking.

use rand::rngs::SmallRng;

use super::draw::in_force;
use super::{Moment, Picker, Ranked};

/// Every request goes to the best instance, a retry to the next best. Fair to
/// nobody by design: all gateways agree on the best, so use it where one
/// instance can take all.
pub struct Best {
    /// Indexes in rank order.
    order: Vec<usize>,
}

impl Best {
    pub fn new(ranked: Ranked<'_>) -> Self {
        let weights = in_force(&ranked.weights());
        let mut order: Vec<usize> = (0..ranked.records.len()).collect();
        // Weight 0 last: the ranking puts it there, manual weights may not.
        let place = |&index: &usize| (weights[index] == 0.0, ranked.records[index].rank);
        order.sort_by_key(place);
        Best { order }
    }
}

impl Picker for Best {
    fn pick(&mut self, now: &dyn Moment, _: &mut SmallRng) -> Option<usize> {
        self.order.iter().copied().find(|&index| !now.is_barred(index))
    }
}
