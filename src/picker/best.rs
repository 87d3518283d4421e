//! `best`: the top of the ranking.

use std::cmp::Reverse;

use rand::rngs::SmallRng;

use super::draw::in_force;
use super::{Moment, Pick, Ranked};

/// Every request goes to the best instance, a retry to the next best. Fair to
/// nobody by design: all gateways agree on the best, so use it where one
/// instance can take all. One that is governed down (another zone's, one in its slow
/// start) comes after those that are not.
pub struct Best {
    /// Indexes in rank order.
    order: Vec<usize>,
}

impl Best {
    pub fn new(ranked: Ranked<'_>) -> Self {
        let weights = in_force(&ranked.weights());
        let mut order: Vec<usize> = (0..ranked.records.len()).collect();
        // Weight 0 last: the ranking puts it there, manual weights may not.
        let place = |&index: &usize| {
            let record = &ranked.records[index];
            (weights[index] == 0.0, Reverse(class(record.factor)), record.rank)
        };
        order.sort_by_key(place);
        Best { order }
    }
}

/// Factors of one class are no reason to go elsewhere: each is twice the next one.
fn class(factor: f32) -> i32 {
    factor.log2().round() as i32
}

impl Pick for Best {
    fn pick(&mut self, now: &impl Moment, _: &mut SmallRng) -> Option<usize> {
        self.order.iter().copied().find(|&index| !now.is_barred(index))
    }
}
