//! Drawing by chance: by weight, one that was not tried, or two to
//! choose between.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

use super::Moment;

/// A way to draw one instance.
pub trait Draw {
    /// An index by chance; `None` when there are none.
    fn draw(&self, rng: &mut SmallRng) -> Option<usize>;
    /// The odds of each, not all 0.
    fn weights(&self) -> &[f64];
}

/// Draws that may hit a tried instance before a retry looks for what is left: with
/// 3 of 10 tried, all 8 miss once in 15,000 retries.
const DRAWS: usize = 8;

/// Draws for another instance.
const FURTHER_DRAWS: usize = 7;

/// An instance that was not tried.
pub fn one_untried(by: &impl Draw, now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
    for _ in 0..DRAWS {
        let index = by.draw(rng)?;
        if !now.is_barred(index) {
            return Some(index);
        }
    }
    among_untried(by.weights(), now, rng)
}

/// Two different instances that were not tried, or the same one twice.
pub fn two_untried(
    by: &impl Draw,
    now: &impl Moment,
    rng: &mut SmallRng,
) -> Option<(usize, usize)> {
    let first = one_untried(by, now, rng)?;
    let second = another(by, first, |index| !now.is_barred(index), rng)?;
    Some((first, second))
}

/// A welcome one that is not the first, which few instances or a large weight may
/// make rare: the first then stands.
pub fn another(
    by: &impl Draw,
    first: usize,
    is_welcome: impl Fn(usize) -> bool,
    rng: &mut SmallRng,
) -> Option<usize> {
    for _ in 0..FURTHER_DRAWS {
        let index = by.draw(rng)?;
        if index != first && is_welcome(index) {
            return Some(index);
        }
    }
    Some(first)
}

/// By weight among those that were not tried, and any of weight 0 only when no
/// other is left. O(n), for retries alone.
fn among_untried(weights: &[f64], now: &impl Moment, rng: &mut SmallRng) -> Option<usize> {
    let untried = || (0..weights.len()).filter(|&index| !now.is_barred(index));
    // Divided by the largest, so that no sum of finite weights overflows.
    let largest = untried().map(|index| weights[index]).fold(0.0, f64::max);
    if largest == 0.0 {
        return untried().next();
    }
    let total: f64 = untried().map(|index| weights[index] / largest).sum();
    let mut point = rng.random::<f64>() * total;
    let mut last = None;
    for index in untried().filter(|&index| weights[index] > 0.0) {
        last = Some(index);
        point -= weights[index] / largest;
        if point < 0.0 {
            break;
        }
    }
    last
}

/// The weights in force: what is no weight, such as a NaN, counts as 0, and
/// where all are 0, all are equal.
pub fn in_force(weights: &[f64]) -> Vec<f64> {
    let sound = |&weight: &f64| if weight.is_finite() { weight.max(0.0) } else { 0.0 };
    if weights.iter().any(|weight| sound(weight) > 0.0) {
        weights.iter().map(sound).collect()
    } else {
        vec![1.0; weights.len()]
    }
}

/// By weight, for the price of one random number: the alias table.
///
/// Source: M. D. Vose, A linear algorithm for generating random numbers with a
/// given distribution, IEEE Transactions on Software Engineering 17(9), 1991.
pub struct AliasTable {
    /// Each column is split between its own index and its alias.
    columns: Vec<Column>,
    weights: Vec<f64>,
}

struct Column {
    /// Its own index's part of the column, of 2^32.
    own: u32,
    alias: u32,
}

impl AliasTable {
    /// O(n). All 0 means all equal, see [`in_force`].
    pub fn new(weights: &[f64]) -> Self {
        let weights = in_force(weights);
        // Divided first, so that no sum of finite weights overflows.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
        let scale = weights.len() as f64 / sum;
        let mut own: Vec<f64> = weights.iter().map(|weight| weight / largest * scale).collect();
        let mut alias: Vec<u32> = (0..own.len() as u32).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            alias.iter().partition(|&&index| own[index as usize] < 1.0);
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            alias[less as usize] = more;
            own[more as usize] -= 1.0 - own[less as usize];
            if own[more as usize] < 1.0 {
                small.extend(large.pop());
            }
        }
        // What remains is 1 but for rounding, and its own alias.
        let column =
            |(own, alias): (f64, u32)| Column { own: (own * 4_294_967_296.0) as u32, alias };
        AliasTable { columns: own.into_iter().zip(alias).map(column).collect(), weights }
    }
}

impl Draw for AliasTable {
    fn draw(&self, rng: &mut SmallRng) -> Option<usize> {
        // The one half says which column, the other one where in it.
        let (high, low) = {
            let bits = rng.next_u64();
            (bits >> 32, bits as u32)
        };
        let index = ((high * self.columns.len() as u64) >> 32) as usize;
        let column = self.columns.get(index)?;
        Some(if low < column.own { index } else { column.alias as usize })
    }

    fn weights(&self) -> &[f64] {
        &self.weights
    }
}
