//! The alias table: a draw by weight for the price of two random numbers.
//!
//! Source: M. D. Vose, A linear algorithm for generating random numbers with a
//! given distribution, IEEE Transactions on Software Engineering 17(9), 1991.

use rand::RngExt;
use rand::rngs::SmallRng;

pub struct AliasTable {
    /// Each column is split between its own index and its alias; `own` is the
    /// index's part of the column, 0 to 1.
    columns: Vec<Column>,
}

struct Column {
    own: f64,
    alias: u32,
}

impl AliasTable {
    /// O(n). Weights are finite and not negative; all 0 means all equal.
    pub fn new(weights: &[f64]) -> Self {
        let weights = super::in_force(weights);
        // Divided first, so that no sum of finite weights overflows.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
        let scale = weights.len() as f64 / sum;
        let mut columns: Vec<Column> = (0u32..)
            .zip(&weights)
            .map(|(index, weight)| Column { own: weight / largest * scale, alias: index })
            .collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..columns.len() as u32).partition(|&index| columns[index as usize].own < 1.0);
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            columns[less as usize].alias = more;
            let left = columns[more as usize].own - (1.0 - columns[less as usize].own);
            columns[more as usize].own = left;
            if left < 1.0 {
                small.extend(large.pop());
            }
        }
        // What remains is 1 but for rounding.
        for index in small.into_iter().chain(large) {
            columns[index as usize].own = 1.0;
        }
        AliasTable { columns }
    }

    /// An index by weight; `None` when there are none.
    pub fn draw(&self, rng: &mut SmallRng) -> Option<usize> {
        if self.columns.is_empty() {
            return None;
        }
        let index = rng.random_range(..self.columns.len());
        let column = &self.columns[index];
        let own = rng.random::<f64>() < column.own;
        Some(if own { index } else { column.alias as usize })
    }

    pub fn len(&self) -> usize {
        self.columns.len()
    }
}
